"""Mixture of n-gram models: the mean of their probabilities at every word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from audio_llm.lm.ngram import END, MEMO_SIZE, START, NgramLm


class MixedLm:
    """An equal mixture; a word unknown to one model gets most of its probability from the others.

    Args:
        models: One or more.
    """

    def __init__(self, models: Sequence[NgramLm]) -> None:
        self.models = tuple(models)
        self.order = max(model.order for model in self.models)
        self._needed = self.order - 1
        self._memo: dict[tuple[str, ...], float] = {}

    def __contains__(self, word: str) -> bool:
        return any(word in model for model in self.models)

    def score(self, history: Sequence[str], word: str) -> float:
        """Return log p(word | history); see `NgramLm.score`."""
        length, needed = len(history), self._needed
        key = (*history[length - needed :], word) if length >= needed else (START, *history, word)
        value = self._memo.get(key)
        if value is None:
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            logs = [model.score(history, word) for model in self.models]
            top = max(logs)
            value = self._memo[key] = top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))
        return value

    def log_prob(self, words: Sequence[str]) -> float:
        """Return log p(words and then the end of the sentence)."""
        words = tuple(words)
        return sum(self.score(words[:position], word) for position, word in enumerate((*words, END)))

    def log_probs(self, sentences: Iterable[Sequence[str]]) -> list[float]:
        """Return log p of each sentence, its end included."""
        return [self.log_prob(sentence) for sentence in sentences]
