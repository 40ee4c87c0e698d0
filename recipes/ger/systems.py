"""What is compared: baselines, rescoring, the phrase corrector, the neural one and its controls."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.align import edit_distance
from audio_llm.ger.word_graph import align_slots
from audio_llm.lm.ngram import NgramLm
from audio_llm.metrics import oracle
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER

System = Callable[[Sequence[NBest]], list[str]]


def words_of(nbest: NBest) -> list[tuple[str, ...]]:
    """Return the words of each hypothesis, normalised, duplicates kept."""
    return [tuple(DEFAULT_NORMALIZER(text).split()) for text in nbest.texts]


def first(found: Sequence[NBest]) -> list[str]:
    """Keep the recogniser's best text."""
    return [nbest.best for nbest in found]


def best_possible(found: Sequence[NBest]) -> list[str]:
    """Choose the hypothesis with the fewest errors, which nobody can."""
    return [oracle(nbest) for nbest in found]


def minimum_risk(found: Sequence[NBest]) -> list[str]:
    """Choose the hypothesis that is nearest to all others (MBR, all equally likely)."""
    chosen = []
    for nbest in found:
        texts = words_of(nbest)
        distances = [sum(edit_distance(text, other) for other in texts) for text in texts]
        chosen.append(" ".join(texts[int(np.argmin(distances))]))
    return chosen


def vote(found: Sequence[NBest]) -> list[str]:
    """Take the word that most hypotheses have in each slot (ROVER), the best hypothesis' among equals."""
    return [
        " ".join(filter(None, (Counter(slot).most_common(1)[0][0] for slot in align_slots(words_of(nbest)))))
        for nbest in found
    ]


@dataclass(frozen=True)
class Rescoring:
    """Choice by recogniser and n-gram model.

    Attributes:
        lm: The n-gram model.
        lm_weight: Of its log-probability, beside the recogniser's score times the words.
        word_bonus: For each word.
    """

    lm: NgramLm
    lm_weight: float
    word_bonus: float

    def __call__(self, found: Sequence[NBest]) -> list[str]:
        chosen = []
        for nbest in found:
            texts = words_of(nbest)
            lms = self.lm.log_probs(texts)
            totals = [
                _sound(nbest, rank, text) + self.lm_weight * lm + self.word_bonus * len(text)
                for rank, (text, lm) in enumerate(zip(texts, lms, strict=True))
            ]
            chosen.append(" ".join(texts[int(np.argmax(totals))]))
        return chosen


def tune_rescoring(lm: NgramLm, found: Sequence[NBest]) -> Rescoring:
    """Return the weights with the fewest word errors on tuning lists."""
    grid = itertools.product((0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8), (0.0, 0.5, 1.0, 2.0))
    references = [tuple(DEFAULT_NORMALIZER(nbest.reference or "").split()) for nbest in found]

    def errors(system: Rescoring) -> int:
        return sum(edit_distance(r, t.split()) for r, t in zip(references, system(found), strict=True))

    return min((Rescoring(lm, *weights) for weights in grid), key=errors)


def _sound(nbest: NBest, rank: int, text: Sequence[str]) -> float:
    """Return the recogniser's score of a whole text, its rank where it gives none."""
    score = nbest.hypotheses[rank].score
    return -0.5 * rank if score is None else score * max(1, len(text))
