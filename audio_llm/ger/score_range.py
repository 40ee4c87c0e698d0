"""Range of the scores that a corrector was trained on, to detect lists of another recognizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.nbest import NBest

_FACTOR = 10.0  # scores differ by factors of hundreds between recognizers, by a few between recordings


@dataclass(frozen=True)
class ScoreRange:
    """Scores of the first hypotheses of the lists that a corrector was trained on.

    Attributes:
        scored: Whether at least 90 % of the lists have scores, and those of first hypotheses are not all 0.
        low: 5 % quantile of the absolute score per word of the first hypothesis.
        high: 95 % quantile.
    """

    scored: bool = False
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, lists: Sequence[NBest]) -> ScoreRange:
        """Measure the range on training lists."""
        sizes = [size for size in map(_size, lists) if size is not None]
        if len(sizes) < 0.9 * len(lists) or not sizes:
            return cls()
        low, high = np.quantile(sizes, [0.05, 0.95])
        return cls(bool(high > 0), float(low), float(high))

    def reject_reason(self, nbest: NBest) -> str:
        """Return why the scores of a list are outside the range, or an empty string."""
        if not self.scored:
            return ""
        size = _size(nbest)
        if size is None:
            return "the list lacks scores, which the training lists have"
        if not self.low / _FACTOR <= size <= self.high * _FACTOR:
            return "the scores are unlike those of the training lists: another recognizer?"
        return ""


def _size(nbest: NBest) -> float | None:
    """Return the absolute score per word of the first hypothesis; None if the list lacks a score."""
    scores = [hypothesis.score for hypothesis in nbest.hypotheses]
    if not scores or scores[0] is None or not all(score is not None and math.isfinite(score) for score in scores):
        return None
    return abs(scores[0]) / max(1, len(nbest.best.split()))
