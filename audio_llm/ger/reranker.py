"""Linear reranker of the candidates of a list, trained for the lowest expected number of word errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearReranker:
    """Scores candidates as `features @ weights`.

    Attributes:
        weights: (F,) float64.
    """

    weights: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return (candidates,) scores for (candidates, F) features; only differences within a list are meaningful."""
        return np.asarray(features @ self.weights)


def expected_errors(scores: np.ndarray, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return (C,) the expected word errors of each text, if the texts' probabilities are the softmax of the scores.

    The text with the fewest is the minimum Bayes risk choice; it need not be the likeliest one.

    Args:
        scores: (C,) scores of the texts.
        texts: The texts as words.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    p = np.exp(scores - scores.max())
    distances = cdist(texts, texts, scorer=Levenshtein.distance, dtype=np.int32)
    return np.asarray(distances @ (p / p.sum()))


def train_reranker(
    features: Sequence[np.ndarray], errors: Sequence[np.ndarray], cross_entropy: float = 0.2, decay: float = 0.5
) -> LinearReranker:
    """Fit the weights by L-BFGS to the expected word errors plus a cross-entropy towards the best candidates.

    The expectation is over the softmax of the scores; the cross-entropy avoids plateaus where the softmax is nearly
    uniform or one-hot.

    Args:
        features: For each list (candidates, F) features.
        errors: For each list (candidates,) word errors.
        cross_entropy: Weight of the cross-entropy relative to the expected errors per list.
        decay: Weight of the squared norm of the weights relative to the sum over all lists, for features scaled to
            unit deviation within a list.
    """
    from scipy.optimize import minimize

    sizes = np.array([len(rows) for rows in features])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    x = np.concatenate([rows - rows.mean(axis=0) for rows in features])
    spread = np.sqrt((x**2).mean(axis=0))
    scale = np.where(spread > 1e-9, 1.0 / np.maximum(spread, 1e-9), 0.0)
    x *= scale
    wrong = np.concatenate(errors).astype(np.float64)
    is_best = (wrong == np.minimum.reduceat(wrong, starts)[owner]).astype(np.float64)

    decay /= len(sizes)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = _log_softmax(x @ weights, starts, owner)
        p = np.exp(log_p)
        expected = np.add.reduceat(p * wrong, starts)
        best_p = np.add.reduceat(p * is_best, starts)
        value = (expected.sum() - cross_entropy * np.log(best_p + 1e-30).sum()) / len(sizes)
        slope = p * (wrong - expected[owner]) - cross_entropy * p * (is_best / (best_p[owner] + 1e-30) - 1.0)
        return value + decay * float(weights @ weights), x.T @ slope / len(sizes) + 2 * decay * weights

    solution = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return LinearReranker(np.asarray(solution.x) * scale)


def _log_softmax(scores: np.ndarray, starts: np.ndarray, owner: np.ndarray) -> np.ndarray:
    scores = scores - np.maximum.reduceat(scores, starts)[owner]
    return np.asarray(scores - np.log(np.add.reduceat(np.exp(scores), starts))[owner])
