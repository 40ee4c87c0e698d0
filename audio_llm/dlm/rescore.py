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

    One or two factors are searched in full, with the reward. More are searched two at a time, the others held, in
    rounds until a round finds nothing better; so the result is an optimum of every pair, not surely of all together.

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
    _check_split(split)
    names = [*fixed, *free]
    tables = _Tables(utterances, references, names)
    ordered = sorted(rewards, key=abs)
    weights = np.array([*fixed.values(), *[min(grid)] * len(free), ordered[0]])
    places = range(len(fixed), len(names))
    pairs: list[tuple[int, ...]] = [*itertools.combinations(places, 2)] or [tuple(places)]
    best = tables.errors(weights[None])[0]
    improved = True
    while improved:
        improved = False
        for pair in pairs:
            tried = np.array([[*values] for values in itertools.product(*[grid] * len(pair), ordered)])
            rows = np.repeat(weights[None], len(tried), axis=0)
            rows[:, [*pair, -1]] = tried
            errors = tables.errors(rows)
            found = int(errors.argmin())
            if errors[found] < best:
                best, weights, improved = errors[found], rows[found], len(pairs) > 1
    scales = Scales(dict(zip(names, weights[:-1].tolist(), strict=True)), float(weights[-1]))
    words = sum(len(reference.split()) for reference in references)
    edge = tuple(name for name in free if scales.weights[name] == max(grid))
    return TuneResult(scales, int(best), words, edge)


def fit_scales(
    utterances: Sequence[Sequence[Scored]],
    references: Sequence[str],
    names: Sequence[str],
    split: str,
    ridge: float = 5e-5,
) -> TuneResult:
    """Find factors for the fewest expected word errors, where a candidate is chosen with probability softmax(total).

    The number of errors itself jumps, and with several factors and some hundred utterances the lowest count is often a
    chance find; its expectation is smooth. Totals come out as log-probabilities, more or less.

    Args:
        utterances: Candidates of each utterance, not empty.
        references: Normalised true texts.
        names: Of the scores.
        split: As for `tune_scales`.
        ridge: Weight of the squared factors, each in units of its score's spread within an utterance, against the
            error rate.

    Raises:
        DataError: As `tune_scales`.
    """
    import torch

    _check_split(split)
    tables = _Tables(utterances, references, names)
    there = torch.from_numpy(~tables.missing)
    mask = there[:, :, None].double()
    features = torch.from_numpy(tables.features)  # (U, C, F), zeros where a list is shorter
    centred = (features - features.sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask
    spread = (centred.square().sum((0, 1)) / mask.sum()).sqrt().clamp_min(1e-6)
    centred = centred / spread
    errors = torch.from_numpy(tables.counts).double()
    words = max(1, sum(len(reference.split()) for reference in references))
    factors = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([factors], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        chosen = (centred @ factors).masked_fill(~there, -torch.inf).softmax(1)
        value = (chosen * errors).sum() / words + ridge * factors.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weights = (factors.detach() / spread).tolist()
    scales = Scales(dict(zip(names, weights[:-1], strict=True)), weights[-1])
    return TuneResult(scales, int(tables.errors(np.array([weights]))[0]), words, ())


def _check_split(split: str) -> None:
    if any(_is_for_reporting(part) for part in split.lower().split("+")):
        raise DataError(f"scales are not tuned on {split!r}", remedy="tune on a part carved from the training data")


def _is_for_reporting(part: str) -> bool:
    return "tun" not in part and any(word in part for word in ("test", "dev", "held"))


class _Tables:
    """Scores and word errors of all candidates, padded to the longest list.

    Args:
        utterances: Candidates of each utterance.
        references: Normalised true texts.
        names: Of the scores, in the order of the weights; the word reward comes last.
    """

    def __init__(self, utterances: Sequence[Sequence[Scored]], references: Sequence[str], names: Sequence[str]) -> None:
        most = max(map(len, utterances), default=0)
        self.features = np.zeros((len(utterances), most, len(names) + 1))
        self.counts = np.zeros((len(utterances), most), dtype=np.int64)
        self.missing = np.ones((len(utterances), most), dtype=bool)
        for row, (candidates, reference) in enumerate(zip(utterances, references, strict=True)):
            for column, candidate in enumerate(candidates):
                words = candidate.text.split()
                self.features[row, column] = [*(_score(candidate, name) for name in names), float(len(words))]
                self.counts[row, column] = count_edits(reference.split(), words).errors
                self.missing[row, column] = False

    def errors(self, weights: np.ndarray) -> np.ndarray:
        """Return the word errors (W,) int64 of what each row of weights (W, names + 1) chooses."""
        found = np.zeros(len(weights), dtype=np.int64)
        for features, errors, missing in zip(self.features, self.counts, self.missing, strict=True):
            if not missing.all():
                found += errors[(features[~missing] @ weights.T).argmax(axis=0)]
        return found


def _score(candidate: Scored, name: str) -> float:
    if name not in candidate.scores:
        raise DataError(
            f"candidate {candidate.text!r} has no score {name!r}", remedy="give every candidate every score, or drop it"
        )
    return candidate.scores[name]
