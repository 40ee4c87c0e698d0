"""Writes n-gram models in the ARPA format that kenlm, SRILM and others read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audio_llm.atomic import replacing
from audio_llm.lm.ngram import START, NgramLm

_NEVER = -99.0  # the format's value for the logarithm of zero


def write_arpa(model: NgramLm, path: str | os.PathLike[str]) -> Path:
    """Write the model with base-10 logs and tab-separated columns; return the path.

    The whole mass of unknown words is written as that of `<unk>`.
    """
    path = Path(path)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(level.keys)}\n" for n, level in enumerate(model.levels, 1))
        for n in range(1, model.order + 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_lines(model, n))
        file.write("\n\\end\\\n")
    return path


def _lines(model: NgramLm, n: int) -> Iterator[str]:
    level = model.levels[n - 1]
    words = np.stack(_word_columns(model, n), axis=1)
    scale = 1 / math.log(10)
    for row, log_prob, backoff in zip(words, level.log_probs * scale, level.backoffs * scale, strict=True):
        text = " ".join(model.vocabulary[number] for number in row)
        shown = _NEVER if text == START else float(log_prob)
        yield f"{shown:.6f}\t{text}\n" if n == model.order else f"{shown:.6f}\t{text}\t{float(backoff):.6f}\n"


def _word_columns(model: NgramLm, n: int) -> list[np.ndarray]:
    """Return the words of all n-grams of an order, one array of word numbers per column."""
    size = len(model.vocabulary)
    columns: list[np.ndarray] = []
    indices = np.arange(len(model.levels[n - 1].keys))
    for level in reversed(model.levels[:n]):
        keys = level.keys[indices]
        columns.append(keys % size)
        indices = keys // size
    return columns[::-1]
