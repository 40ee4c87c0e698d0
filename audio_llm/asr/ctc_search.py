"""Search for the best texts of a CTC network, with or without a word n-gram model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.asr.ctc_model import BLANK, SYMBOLS
from audio_llm.lm.ngram import END, NgramLm

_SPACE = " "
_NEVER_SEEN = "\0"  # any word outside the vocabulary


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search, tuned on development data and stored in the model directory.

    Attributes:
        beam: Beam size: prefixes kept after each frame.
        language_model: Name of the word n-gram model, a sibling of the network's folder or any that `hub.find_model`
            knows; empty for none.
        language_model_sha256: Fingerprint of that model.
        language_weight: Factor of its natural-log probabilities.
        word_reward: Nats added for each word.
        unknown_reward: Nats added for each word outside the vocabulary; negative.
    """

    beam: int = 24
    language_model: str = ""
    language_model_sha256: str = ""
    language_weight: float = 0.0
    word_reward: float = 0.0
    unknown_reward: float = 0.0


class WordPrior:
    """Score that a language model adds to the log-probability of a text (shallow fusion), word by word.

    A word outside the vocabulary is penalized as soon as its first letters begin no known word, so that it does not
    crowd out others until it ends.

    Args:
        model: The word n-gram model.
        settings: Weights of the language model, of words and of unknown words.
    """

    def __init__(self, model: NgramLm, settings: SearchSettings) -> None:
        self._model = model
        self._weight = settings.language_weight
        self._reward = settings.word_reward
        self._unknown_reward = settings.unknown_reward
        self._beginnings = {word[:size] for word in model.vocabulary for size in range(1, len(word) + 1)}

    def text(self, text: str) -> float:
        """Return the score of a whole text, its end included."""
        words = text.split()
        log_prob = self._weight * self._model.log_prob(words)
        return log_prob + self._reward * len(words) + self._unknown_reward * self.unknown(words)

    def unknown(self, words: Sequence[str]) -> int:
        """Return the number of words outside the vocabulary."""
        return sum(word not in self._model for word in words)

    def word(self, before: Sequence[str], word: str) -> float:
        """Return the score of a word after the previous words."""
        reward = self._reward + self._unknown_reward * self.unknown([word])
        return self._weight * self._model.score(before, word) + reward

    def end(self, words: Sequence[str]) -> float:
        """Return the score of the end of the text."""
        return self._weight * self._model.score(words, END)

    def beginning(self, letters: str) -> float:
        """Return the provisional score of the first letters of a word."""
        return 0.0 if not letters or letters in self._beginnings else self.word((), _NEVER_SEEN)


def prefix_beam(
    log_probs: np.ndarray, beam: int, least: float = -8.0, prior: WordPrior | None = None
) -> list[list[int]]:
    """Return the most probable symbol sequences, best first, by prefix search.

    Args:
        log_probs: (N, 29) log-probabilities of the symbols.
        beam: Beam size: prefixes kept after each frame.
        least: Natural-log probability below which a symbol is not tried in a frame.
        prior: Language model whose scores are added per word; None for none.
    """
    beams: dict[str, tuple[float, float]] = {"": (0.0, -math.inf)}  # prefix -> ending in a blank, ending in a symbol
    known: dict[str, tuple[float, float]] = {"": (0.0, 0.0)}  # prefix -> prior of its whole words, of its last letters
    for frame in log_probs:
        blank = float(frame[BLANK])
        tried = [(int(k), float(frame[k])) for k in np.flatnonzero(frame > least) if k != BLANK]
        grown: dict[str, tuple[float, float]] = {}
        for prefix, (in_blank, in_symbol) in beams.items():
            total = _add(in_blank, in_symbol)
            last = prefix[-1:]
            repeat = in_symbol + float(frame[SYMBOLS.index(last)]) if last else -math.inf
            old = grown.get(prefix, (-math.inf, -math.inf))
            grown[prefix] = (_add(old[0], total + blank), _add(old[1], repeat))
            for number, log_prob in tried:
                symbol = SYMBOLS[number]
                if symbol == _SPACE and (not last or last == _SPACE):
                    continue  # a text has one space between words
                longer = prefix + symbol
                old = grown.get(longer, (-math.inf, -math.inf))
                grown[longer] = (old[0], _add(old[1], (in_blank if symbol == last else total) + log_prob))
        if prior is None:
            ranked = sorted(grown, key=lambda prefix: -_add(*grown[prefix]))
        else:
            known = {prefix: known.get(prefix) or _prior_of(prefix, known, prior) for prefix in grown}
            ranked = sorted(grown, key=lambda prefix: -_add(*grown[prefix]) - sum(known[prefix]))
        beams = {prefix: grown[prefix] for prefix in ranked[:beam]}
    if prior is not None:
        ends = {prefix: _add(*beams[prefix]) + _whole(prefix, known, prior) for prefix in beams}
        beams = {prefix: beams[prefix] for prefix in sorted(ends, key=lambda prefix: -ends[prefix])}
    return [[SYMBOLS.index(symbol) for symbol in prefix] for prefix in beams]


def _prior_of(prefix: str, known: dict[str, tuple[float, float]], prior: WordPrior) -> tuple[float, float]:
    """Return the prior of a prefix from that of the prefix before its last symbol."""
    words, letters = known[prefix[:-1]]
    if not prefix.endswith(_SPACE):
        return words, letters or prior.beginning(prefix[prefix.rfind(_SPACE) + 1 :])
    *before, word = prefix.split()
    return words + prior.word(before, word), 0.0


def _whole(prefix: str, known: dict[str, tuple[float, float]], prior: WordPrior) -> float:
    """Return the prior of a prefix as a whole text."""
    *before, word = prefix.split() or [""]
    if not word:
        return prior.end(())
    last = 0.0 if prefix.endswith(_SPACE) else prior.word(before, word)
    return known[prefix][0] + last + prior.end((*before, word))


def _add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
