"""The language-space noise embedding of an N-best list: how its hypotheses differ (RobustGER, eq. 4-6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from audio_llm.align import edits
from audio_llm.ger.encoders import TextEncoder


@dataclass(frozen=True)
class NoiseSettings:
    """Settings of the noise embedding.

    Attributes:
        hypotheses: Entries N of a list that are compared; it has N (N - 1) rows.
        token_pool: Whether edits of a pair are summed over the words (the paper) or averaged over the edited positions
            (the authors' release).
        encoder: `hash` (hashed n-grams), `llm` (the language model's embeddings) or the folder of a
            sentence-transformers model.
        width: Length of a hashed vector.
    """

    hypotheses: int = 5
    token_pool: Literal["sum", "mean"] = "sum"
    encoder: str = "hash"
    width: int = 128

    @property
    def rows(self) -> int:
        """Number of rows of the embedding."""
        return self.hypotheses * (self.hypotheses - 1)


def pairs(count: int) -> list[tuple[int, int]]:
    """Return the pairs (worse, better) in the order of the rows: (1, 0), (2, 0), (2, 1), (3, 0) ..."""
    return [(i, j) for i in range(count) for j in range(i)]


def noise_embedding(
    texts: Sequence[str], encoder: TextEncoder, settings: NoiseSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embedding of a list and the mask of its rows.

    The first half of the rows compares whole texts, the second half words: each row is worse minus better, for the
    pairs of `pairs`. For words the two texts are aligned and their differences compared; a missing word is zero.
    Lists shorter than N leave the rows of missing pairs zero and not valid; two equal texts give exact zeros.

    Args:
        texts: Hypotheses, best first, with duplicates.
        encoder: See `encoders`.
        settings: See `NoiseSettings`.

    Returns:
        (N (N - 1), d) float32, and (N (N - 1),) bool.
    """
    texts = list(texts[: settings.hypotheses])
    order = pairs(settings.hypotheses)
    half = len(order)
    rows = np.zeros((2 * half, encoder.width), dtype=np.float32)
    valid = np.zeros(2 * half, dtype=bool)
    whole = encoder.encode(texts)
    split = [text.split() for text in texts]
    known: dict[tuple[str, str], np.ndarray] = {}
    for row, (worse, better) in enumerate(order):
        if worse >= len(texts):
            break
        valid[row] = valid[half + row] = True
        if texts[worse] == texts[better]:
            continue
        rows[row] = whole[worse] - whole[better]
        key = texts[worse], texts[better]
        if key not in known:
            known[key] = _edit_embedding(split[better], split[worse], encoder, settings.token_pool)
        rows[half + row] = known[key]
    return rows, valid


def _edit_embedding(better: Sequence[str], worse: Sequence[str], encoder: TextEncoder, pool: str) -> np.ndarray:
    """Return the words of `worse` minus those of `better` where the two differ: (d,)."""
    changes = edits(better, worse)
    lost = [word for op in changes for word in better[op.source_start : op.source_end]]
    gained = [word for op in changes for word in worse[op.target_start : op.target_end]]
    total = encoder.encode(gained).sum(axis=0) - encoder.encode(lost).sum(axis=0)
    if pool == "mean":
        positions = sum(max(op.source_end - op.source_start, op.target_end - op.target_start) for op in changes)
        total = total / max(1, positions)
    return np.asarray(total, dtype=np.float32)
