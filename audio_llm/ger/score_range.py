"""Which lists a corrector knows: a recognizer's scores tell a list of one kind from those of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.nbest import NBest

_FACTOR = 10.0  # between recognizers the sizes of scores differ by hundreds, between recordings by a few


@dataclass(frozen=True)
class ScoreRange:
    """What the scores of the lists that a corrector learned from are like.

    Attributes:
        scored: Nearly all of them have scores, and those of first hypotheses are not all 0.
        low: Size of the first hypothesis' score over its words, where 5 % of them are below.
        high: Where 5 % are above.
    """

    scored: bool = False
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, lists: Sequence[NBest]) -> ScoreRange:
        """Look at the lists that are learned from."""
        sizes = [size for size in map(_size, lists) if size is not None]
        if len(sizes) < 0.9 * len(lists) or not sizes:
            return cls()
        low, high = np.quantile(sizes, [0.05, 0.95])
        return cls(bool(high > 0), float(low), float(high))

    def reject_reason(self, nbest: NBest) -> str:
        """Return why the list is not of this kind, or an empty string."""
        if not self.scored:
            return ""
        size = _size(nbest)
        if size is None:
            return "the list lacks scores, which those learned from have"
        if not self.low / _FACTOR <= size <= self.high * _FACTOR:
            return "the scores are unlike those of the lists learned from: another recognizer?"
        return ""


def _size(nbest: NBest) -> float | None:
    """Return the size of the first hypothesis' score over its words; None where the list lacks a score."""
    scores = [hypothesis.score for hypothesis in nbest.hypotheses]
    if not scores or scores[0] is None or not all(score is not None and math.isfinite(score) for score in scores):
        return None
    return abs(scores[0]) / max(1, len(nbest.best.split()))
