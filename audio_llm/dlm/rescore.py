"""Selecting candidates by a weighted sum of scores (DSR), and fitting the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.align import count_edits
from audio_llm.errors import DataError


@dataclass(frozen=True)
class Scored:
    """A candidate with all scores that the selection uses.

    Attributes:
        text: Normalized words.
        scores: Score by name, natural logarithms; the same names for all candidates of an utterance.
    """

    text: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class ScoreWeights:
    """Weights of the scores of a candidate.

    Attributes:
        weights: Factor by name of the score. The recognizer's is 1 by convention, or its inverse temperature.
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
    """Result of a weight search.

    Attributes:
        score_weights: The best weights.
        errors: Word errors on the tuning set with these weights.
        words: Words in its references.
    """

    score_weights: ScoreWeights
    errors: int
    words: int


def choose(candidates: Sequence[Scored], score_weights: ScoreWeights) -> int:
    """Return the index of the candidate with the highest total, the first one on ties."""
    totals = [score_weights.total(candidate) for candidate in candidates]
    return int(np.argmax(totals))


def fit_weights(
    utterances: Sequence[Sequence[Scored]],
    references: Sequence[str],
    names: Sequence[str],
    split: str,
    ridge: float = 5e-5,
) -> TuneResult:
    """Fit the weights that minimize the expected word errors, where p(candidate) = softmax(total).

    The number of errors itself is a step function; with several weights and a few hundred utterances, its minimum is
    often due to chance. The expectation is smooth, and the totals become roughly log-probabilities.

    Args:
        utterances: Candidates of each utterance, not empty.
        references: Normalized true texts.
        names: Names of the scores.
        split: Names of the data sets, joined by `+`. A name that contains test, dev or held is rejected, unless it
            also contains `tun`, for a part set aside for tuning.
        ridge: Weight of the squared factors against the error rate, each factor in units of the spread of its score
            within an utterance.

    Raises:
        DataError: The split is a test or development set for reporting, or a candidate lacks a score.
    """
    import torch

    _check_split(split)
    tables = _Tables(utterances, references, names)
    there = torch.from_numpy(~tables.missing)
    mask = there[:, :, None].double()
    features = torch.from_numpy(tables.features)  # (U, C, F), zeros past the end of a shorter list
    centered = (features - features.sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask
    spread = (centered.square().sum((0, 1)) / mask.sum()).sqrt().clamp_min(1e-6)
    centered = centered / spread
    errors = torch.from_numpy(tables.counts).double()
    words = max(1, sum(len(reference.split()) for reference in references))
    factors = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([factors], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        chosen = (centered @ factors).masked_fill(~there, -torch.inf).softmax(1)
        value = (chosen * errors).sum() / words + ridge * factors.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    values = (factors.detach() / spread).tolist()
    score_weights = ScoreWeights(dict(zip(names, values[:-1], strict=True)), values[-1])
    return TuneResult(score_weights, tables.errors(np.array(values)), words)


def _check_split(split: str) -> None:
    if any(_is_for_reporting(part) for part in split.lower().split("+")):
        raise DataError(
            f"score weights are not tuned on {split!r}", remedy="tune on a part set aside from the training data"
        )


def _is_for_reporting(part: str) -> bool:
    return "tun" not in part and any(word in part for word in ("test", "dev", "held"))


class _Tables:
    """Scores and word errors of all candidates, padded to the longest list.

    Args:
        utterances: Candidates of each utterance.
        references: Normalized true texts.
        names: Names of the scores in the order of the weights; the word reward comes last.
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

    def errors(self, weights: np.ndarray) -> int:
        """Return the word errors of the candidates that the weights (names + 1,) select."""
        totals = np.where(self.missing, -np.inf, self.features @ weights)
        return int(np.take_along_axis(self.counts, totals.argmax(axis=1)[:, None], axis=1).sum())


def _score(candidate: Scored, name: str) -> float:
    if name not in candidate.scores:
        raise DataError(
            f"candidate {candidate.text!r} has no score {name!r}", remedy="give every candidate every score, or drop it"
        )
    return candidate.scores[name]
