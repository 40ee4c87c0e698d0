"""Compared systems: baselines, rescoring, the phrase corrector, the neural corrector and its controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_llm.align import edit_distance
from audio_llm.ger import decode
from audio_llm.ger.batches import Collator
from audio_llm.ger.checkpoint import GerCheckpoint
from audio_llm.ger.neural import NeuralScorer
from audio_llm.ger.phrase import PhraseCorrector
from audio_llm.ger.phrase_table import Words
from audio_llm.ger.reranker import LinearReranker, train_reranker
from audio_llm.ger.word_graph import align_slots
from audio_llm.lm.ngram import NgramLm
from audio_llm.metrics import oracle, word_errors
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER

_MARGINS = (0.1, 0.3, 0.5, 1.0)  # of expected errors; otherwise nothing is changed
_BATCH = 64  # lists; noise embeddings are shuffled within a batch

System = Callable[[Sequence[NBest]], list[str]]


def words_of(nbest: NBest) -> list[tuple[str, ...]]:
    """Return the words of each hypothesis, normalized, duplicates kept."""
    return [tuple(DEFAULT_NORMALIZER(text).split()) for text in nbest.texts]


def first(lists: Sequence[NBest]) -> list[str]:
    """Keep the recognizer's best text."""
    return [nbest.best for nbest in lists]


def best_possible(lists: Sequence[NBest]) -> list[str]:
    """Choose the hypothesis with the fewest errors (the oracle)."""
    return [oracle(nbest) for nbest in lists]


def minimum_risk(lists: Sequence[NBest]) -> list[str]:
    """Choose the hypothesis that is nearest to all others (MBR, all equally likely)."""
    chosen = []
    for nbest in lists:
        texts = words_of(nbest)
        distances = [sum(edit_distance(text, other) for other in texts) for text in texts]
        chosen.append(" ".join(texts[int(np.argmin(distances))]))
    return chosen


def vote(lists: Sequence[NBest]) -> list[str]:
    """Take the most frequent word in each slot (ROVER), the best hypothesis' among equals."""
    return [
        " ".join(filter(None, (Counter(slot).most_common(1)[0][0] for slot in align_slots(words_of(nbest)))))
        for nbest in lists
    ]


def baselines(oracle_name: str) -> dict[str, System]:
    """Return the systems that need no training, by name."""
    return {"1-best": first, oracle_name: best_possible, "MBR": minimum_risk, "ROVER": vote}


@dataclass(frozen=True)
class Texts:
    """A corrector as a system.

    Attributes:
        corrector: The corrector.
    """

    corrector: Any

    def __call__(self, lists: Sequence[NBest]) -> list[str]:
        return [correction.text for correction in self.corrector.correct(lists)]


def find_margin(held_out: Sequence[tuple[PhraseCorrector, Sequence[NBest]]]) -> float:
    """Return the margin with the fewest errors on lists of unseen domains, the widest of equals."""
    references = [[nbest.reference or "" for nbest in lists] for _, lists in held_out]

    def errors(margin: float) -> int:
        texts = [Texts(replace(corrector, margin=margin))(lists) for corrector, lists in held_out]
        return sum(word_errors(r, t).errors for r, t in zip(references, texts, strict=True))

    unchanged = sum(word_errors(r, first(lists)).errors for r, (_, lists) in zip(references, held_out, strict=True))
    rates = {1e9: unchanged, **{margin: errors(margin) for margin in sorted(_MARGINS, reverse=True)}}
    return min(rates, key=lambda margin: rates[margin])


@dataclass(frozen=True)
class Rescoring:
    """Rescoring of the hypotheses by recognizer and n-gram model.

    Attributes:
        lm: The n-gram model.
        reranker: Weights of the features of `_measure`.
    """

    lm: NgramLm
    reranker: LinearReranker

    def __call__(self, lists: Sequence[NBest]) -> list[str]:
        return [" ".join(words_of(n)[int(np.argmax(self.reranker.scores(_measure(n, self.lm))))]) for n in lists]


def train_rescoring(lm: NgramLm, lists: Sequence[NBest]) -> Rescoring:
    """Train the weights for the fewest expected word errors on lists."""
    references = [DEFAULT_NORMALIZER(nbest.reference or "").split() for nbest in lists]
    errors = [
        np.array([edit_distance(reference, text) for text in words_of(nbest)])
        for reference, nbest in zip(references, lists, strict=True)
    ]
    return Rescoring(lm, train_reranker([_measure(nbest, lm) for nbest in lists], errors))


def _measure(nbest: NBest, lm: NgramLm) -> np.ndarray:
    """Return features (texts, 6): score (a total or a mean per word), score times words, rank, ..."""
    texts = words_of(nbest)
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    scores = [hypothesis.score for hypothesis in nbest.hypotheses]
    known = np.zeros(len(texts)) if None in scores else np.array(scores, dtype=np.float64)
    ranks = np.arange(len(texts))
    return np.column_stack([known, known * lengths, ranks, ranks == 0, lm.log_probs(texts), lengths])


@dataclass(frozen=True)
class CachedScorer:
    """A `NeuralScorer` with a cache, as every fold asks for the same scores."""

    scorer: NeuralScorer
    _written: dict[tuple[Words, ...], Words] = field(default_factory=dict)
    _logs: dict[tuple[tuple[Words, ...], Words], float] = field(default_factory=dict)

    @property
    def checkpoint(self) -> GerCheckpoint:
        """The neural corrector."""
        return self.scorer.checkpoint

    def write(self, lists: Sequence[Sequence[Words]]) -> list[Words]:
        """See `NeuralScorer.write`."""
        new = list(dict.fromkeys(key for key in map(tuple, lists) if key not in self._written))
        self._written.update(zip(new, self.scorer.write(new), strict=True))
        return [self._written[tuple(texts)] for texts in lists]

    def log_probs(self, hypotheses: Sequence[Words], candidates: Sequence[Words]) -> list[float]:
        """See `NeuralScorer.log_probs`."""
        key = tuple(hypotheses)
        new = [words for words in candidates if (key, words) not in self._logs]
        self._logs.update(zip([(key, words) for words in new], self.scorer.log_probs(key, new), strict=True))
        return [self._logs[key, words] for words in candidates]

    def log_probs_alone(self, candidates: Sequence[Words]) -> list[float]:
        """See `NeuralScorer.log_probs_alone`."""
        return self.log_probs([()], candidates)


def surprise(checkpoint: GerCheckpoint, lists: Sequence[NBest]) -> np.ndarray:
    """Return (lists,) -log p(reference | list) per word, the end counted as a word, in nats."""
    values = []
    for begin in range(0, len(lists), _BATCH):
        some = lists[begin : begin + _BATCH]
        hypotheses = [[" ".join(words) for words in words_of(nbest)] for nbest in some]
        references = [DEFAULT_NORMALIZER(nbest.reference or "") for nbest in some]
        logs = decode.log_probs(checkpoint.model, checkpoint.collator, hypotheses, references)
        values += [-log / (1 + len(text.split())) for log, text in zip(logs, references, strict=True)]
    return np.array(values)


@dataclass(frozen=True)
class WrongNoise(Collator):
    """Builds batches whose noise embeddings are not those of their lists: the controls."""

    control: str = "zero"

    @classmethod
    def of(cls, collator: Collator, control: str) -> WrongNoise:
        """Return the same collator with `zero`, `shuffled` (another list's) or `random` noise embeddings."""
        return cls(collator.prompts, collator.encoder, collator.noise, control)

    def noises(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Return wrong noise embeddings in the form of `Collator.noises`."""
        noise, valid = super().noises(texts)
        if self.control == "zero":
            return torch.zeros_like(noise), valid
        if self.control == "shuffled":
            return noise.roll(1, dims=0), valid.roll(1, dims=0)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(noise.shape, generator=generator) * noise.pow(2).mean().sqrt(), valid
