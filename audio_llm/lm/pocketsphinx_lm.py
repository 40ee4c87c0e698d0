"""The US English trigram of the pocketsphinx package, the language model of its recognizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from audio_llm.lm.ngram import END, START

_LOG_BASE = 1.0001  # base of pocketsphinx's log probabilities
_LEAST = -20.0  # nats; unknown words have no probability in the model


class PocketsphinxLm:
    """Natural-log probabilities of sentences; an unknown word costs 20 nats."""

    order = 3

    def __init__(self) -> None:
        from pocketsphinx import NGramModel, get_model_path

        self._model: Any = NGramModel.readfile(get_model_path("en-us/en-us.lm.bin"))

    def log_prob(self, words: Sequence[str]) -> float:
        """Return log p(words and then the end of the sentence)."""
        padded = [START, *words, END]
        newest_first = (
            padded[max(0, position - self.order + 1) : position + 1][::-1] for position in range(1, len(padded))
        )
        return sum(max(_LEAST, self._model.prob(some) * math.log(_LOG_BASE)) for some in newest_first)

    def log_probs(self, sentences: Iterable[Sequence[str]]) -> list[float]:
        """Return log p of each sentence, its end included."""
        return [self.log_prob(sentence) for sentence in sentences]
