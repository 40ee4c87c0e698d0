"""Choosing among candidates by the recogniser's and the Denoising LM's scores (DSR), and finding the scales."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.align import count_edits
from audio_llm.errors import DataError

_SCALES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0)
_REWARDS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Scored:
    """A candidate with every score that the choice uses.

    Attributes:
        text: Normalised words.
        scores: Name of the score -> natural logarithm; the same names for all candidates of an utterance.
    """

    text: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Scales:
    """Weights of the scores.

    Attributes:
        weights: Name of the score -> factor. The recogniser's is 1 by convention, or its inverse temperature.
        word_reward: Added for every word, against short outputs.
    """

    weights: Mapping[str, float]
    word_reward: float = 0.0

    def total(self, candidate: Scored) -> float:
        """Return the weighted sum.

        Raises:
            DataError: The candidate lacks a score.
        """
        combined = sum(factor * _score(candidate, name) for name, factor in self.weights.items())
        return combined + self.word_reward * len(candidate.text.split())


@dataclass(frozen=True)
class TuneResult:
    """What a scale search found.

    Attributes:
        scales: The best.
        errors: Word errors they leave on the tuning set.
        words: Words of its references.
        at_edge: Names of scores whose factor is the largest tried: the grid should be widened.
    """

    scales: Scales
    errors: int
    words: int
    at_edge: tuple[str, ...]


def choose(candidates: Sequence[Scored], scales: Scales) -> int:
    """Return the index of the candidate with the highest total, the first of equals."""
    totals = [scales.total(candidate) for candidate in candidates]
    return int(np.argmax(totals))


def tune_scales(
    utterances: Sequence[Sequence[Scored]],
    references: Sequence[str],
    fixed: Mapping[str, float],
    free: Sequence[str],
    split: str,
    grid: Sequence[float] = _SCALES,
    rewards: Sequence[float] = _REWARDS,
) -> TuneResult:
    """Search factors for the fewest word errors, the smallest of equals.

    Args:
        utterances: Candidates of each utterance.
        references: Normalised true texts.
        fixed: Factors that are not searched.
        free: Names of the scores whose factors are.
        split: Name of the data, parts joined by `+`; a part with test, dev or held in its name is refused unless
            its name says that it was carved out for tuning (`tune`).
        grid: Factors to try.
        rewards: Word rewards to try.

    Raises:
        DataError: The split is named as a test or development set for reporting, or a candidate lacks a score.
    """
    if any(_is_for_reporting(part) for part in split.lower().split("+")):
        raise DataError(f"scales are not tuned on {split!r}", remedy="tune on a part carved from the training data")
    names = [*fixed, *free]
    tables = [
        _table(candidates, reference, names) for candidates, reference in zip(utterances, references, strict=True)
    ]
    best: tuple[int, int, Scales] | None = None
    settings = itertools.product(*[grid] * len(free), sorted(rewards, key=abs))
    for order, (*factors, reward) in enumerate(settings):
        weights = np.array([*fixed.values(), *factors, reward])
        errors = sum(int(wrong[int(np.argmax(features @ weights))]) for features, wrong in tables)
        if best is None or (errors, order) < best[:2]:
            best = (errors, order, Scales(dict(zip(names, weights[:-1].tolist(), strict=True)), float(reward)))
    assert best is not None
    words = sum(len(reference.split()) for reference in references)
    edge = tuple(name for name in free if best[2].weights[name] == max(grid))
    return TuneResult(best[2], best[0], words, edge)


def _is_for_reporting(part: str) -> bool:
    return "tun" not in part and any(word in part for word in ("test", "dev", "held"))


def _table(candidates: Sequence[Scored], reference: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    features = np.array([[*(_score(c, name) for name in names), float(len(c.text.split()))] for c in candidates])
    wrong = np.array([count_edits(reference.split(), c.text.split()).errors for c in candidates])
    return features, wrong


def _score(candidate: Scored, name: str) -> float:
    if name not in candidate.scores:
        raise DataError(
            f"candidate {candidate.text!r} has no score {name!r}", remedy="give every candidate every score, or drop it"
        )
    return candidate.scores[name]
