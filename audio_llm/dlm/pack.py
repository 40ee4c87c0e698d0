"""Writes pairs and texts to shards that training reads without any audio or text library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.simulation.confusions import learn_confusions
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards

CONFUSIONS_NAME = "confusions.json"


@dataclass(frozen=True)
class PackedPairs:
    """Pairs and texts in memory.

    Attributes:
        references: Normalized texts.
        hypotheses: The recognizer's hypotheses of a pair, best first; empty for a text.
        is_pair: (N,) bool.
        lengths: (N,) int64, characters of the longer of reference and best hypothesis.
    """

    references: list[str]
    hypotheses: list[tuple[str, ...]]
    is_pair: np.ndarray
    lengths: np.ndarray


def pack(
    pairs: Sequence[dict[str, Any]],
    texts: Sequence[str],
    tune: Sequence[dict[str, Any]],
    output: Path,
    hypotheses: int = 5,
    other_pairs: Sequence[dict[str, Any]] = (),
    copies: int = 1,
) -> None:
    """Write the parts `train` and `tune` and the table of confusions.

    Args:
        pairs: Training pairs from `generate.read_pairs`; pairs with an error or without a hypothesis are skipped.
        texts: Additional normalized sentences, to be corrupted on the fly.
        tune: Pairs for validation.
        output: Folder to write.
        hypotheses: Number of hypotheses to store of each pair.
        other_pairs: Training pairs that are not used for the table of confusions, because they come from another
            recognizer, which may write non-words.
        copies: Copies of each of `pairs`, to balance them against many `other_pairs`.
    """
    from audio_llm.asr.pronounce import read_dictionary

    output.mkdir(parents=True, exist_ok=True)
    usable = [pair for pair in pairs if _has_hypothesis(pair)]
    all_pairs = [*usable * copies, *(pair for pair in other_pairs if _has_hypothesis(pair))]
    write_shards(_rows(all_pairs, texts, hypotheses), output / "train")
    write_shards(_rows([pair for pair in tune if _has_hypothesis(pair)], (), hypotheses), output / "tune")
    observed = [(pair["reference"], [h["text"] for h in pair["hypotheses"]]) for pair in usable]
    sentences = [*texts, *(pair["reference"] for pair in usable)]
    learn_confusions(observed, sentences, read_dictionary()).save(output / CONFUSIONS_NAME)


def read_packed(folder: Path) -> PackedPairs:
    """Read one part.

    Raises:
        DataError: The part is missing or damaged.
    """
    reader = ShardReader(folder)
    references = [decode_text(array) for array in reader.column("reference")]
    joined = [decode_text(array) for array in reader.column("hypotheses")]
    hypotheses = [tuple(text.split("\n")) if text else () for text in joined]
    lengths = [max(len(r), len(h[0]) if h else 0) for r, h in zip(references, hypotheses, strict=True)]
    is_pair = np.array([bool(h) for h in hypotheses])
    return PackedPairs(references, hypotheses, is_pair, np.array(lengths, dtype=np.int64))


def _has_hypothesis(pair: dict[str, Any]) -> bool:
    return bool(pair.get("hypotheses") and pair["hypotheses"][0]["text"])


def _rows(pairs: Iterable[dict[str, Any]], texts: Iterable[str], count: int) -> Iterator[dict[str, np.ndarray]]:
    for pair in pairs:
        joined = "\n".join(h["text"] for h in pair["hypotheses"][:count] if h["text"])
        yield {"reference": encode_text(pair["reference"]), "hypotheses": encode_text(joined)}
    for text in texts:
        yield {"reference": encode_text(text), "hypotheses": encode_text("")}
