"""Corrupts a text as a recognizer might misrecognize it, with new random errors at every use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audio_llm.align import edit_distance
from audio_llm.dlm import vocab
from audio_llm.simulation.confusions import MAX_SPAN, Confusions
from audio_llm.training.config import renamed

_SPAN_BOUNDS = (0.68, 0.93)  # probabilities 0.68, 0.25, 0.07 of replacing 1, 2, 3 words at once


@dataclass(frozen=True)
class NoiseConfig:
    """How texts are corrupted on the fly.

    Attributes:
        substitution_prob: Probability that random characters of a sentence are substituted.
        substitution_rate: Range of the fraction of substituted characters in such a sentence.
        clean_prob: Probability that a sentence stays unchanged, in addition to sentences whose drawn error rate is 0.
        rate_factor: Factor on the drawn word error rate.
    """

    substitution_prob: float = renamed("substitution_share", 0.3)
    substitution_rate: tuple[float, float] = (0.0, 0.08)
    clean_prob: float = renamed("clean_share", 0.05)
    rate_factor: float = 1.0


def corrupt(text: str, confusions: Confusions, config: NoiseConfig, rng: np.random.Generator) -> str:
    """Replace words by confusable ones, at an error rate drawn from the observed error rates.

    Args:
        text: Normalized words.
        confusions: Table of confusions with the observed error rates.
        config: Amount of noise.
        rng: Random generator.
    """
    if rng.random() < config.clean_prob:
        return text
    rate = float(rng.choice(confusions.error_rates)) * config.rate_factor if confusions.error_rates else 0.0
    return substitute_characters(_confuse(text.split(), rate, confusions, rng), config, rng)


def substitute_characters(text: str, config: NoiseConfig, rng: np.random.Generator) -> str:
    """Replace random characters of a random part of the texts by uniformly drawn symbols, never by padding."""
    if not text or rng.random() >= config.substitution_prob:
        return text
    rate = rng.uniform(*config.substitution_rate)
    chosen = rng.random(len(text)) < rate
    drawn = rng.integers(len(vocab.SYMBOLS), size=len(text))
    noisy = "".join(vocab.SYMBOLS[d] if c else old for old, c, d in zip(text, chosen, drawn, strict=True))
    return " ".join(noisy.split())


def _confuse(words: list[str], rate: float, confusions: Confusions, rng: np.random.Generator) -> str:
    """Replace random spans of words until a fraction `rate` of the words is wrong, exactly so on average."""
    spans = [[word] for word in words]
    free = np.ones(len(words), dtype=bool)
    remaining = rate * len(words)
    for start in rng.permutation(len(words)).tolist():
        if remaining <= 0.0:
            break
        following = free[start : start + MAX_SPAN]
        open_words = len(following) if following.all() else int(following.argmin())
        length = min(1 + int(np.searchsorted(_SPAN_BOUNDS, rng.random())), open_words)
        replacement = _replacement(words, start, length, confusions, rng)
        if replacement is None:
            continue
        count, text = replacement
        new = text.split()
        errors = edit_distance(words[start : start + count], new)
        if (
            errors > remaining and rng.random() * errors >= remaining
        ):  # exceeds the rest: accepted only so often that the average is right
            break
        spans[start : start + count] = [new, *([[]] * (count - 1))]
        free[start : start + count] = False
        remaining -= errors
    return " ".join(word for part in spans for word in part)


def _replacement(
    words: list[str], start: int, length: int, confusions: Confusions, rng: np.random.Generator
) -> tuple[int, str] | None:
    """Return (number of words to replace, replacement) for the longest span up to `length` that is in the table."""
    for count in range(min(length, len(words) - start), 0, -1):
        rows = confusions.table.get(" ".join(words[start : start + count]))
        if rows:
            weights = np.array([weight for _, weight in rows])
            return count, rows[int(rng.choice(len(rows), p=weights / weights.sum()))][0]
    return None
