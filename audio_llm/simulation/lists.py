"""Simulated N-best lists: a sentence to a list that a recognizer could have produced for it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.nbest import Hypothesis, NBest
from audio_llm.simulation.confusions import MAX_SPAN, Confusions
from audio_llm.training.config import renamed

_SMALL_WORDS = ("a", "the", "and", "in", "of", "to", "it", "is", "was", "that", "i", "he", "on", "at", "as", "but")
_SPAN_BOUNDS = (0.75, 0.96)  # probabilities 0.75, 0.21, 0.04 of an uncertain span of 1, 2, 3 words


@dataclass(frozen=True)
class ListNoise:
    """Settings of simulated lists; each uncertain span of words has alternatives with log-probabilities.

    Attributes:
        hypotheses: Entries of a list.
        clean_prob: Fraction of lists without uncertain spans.
        mean_rate: Mean of the exponential distribution of the number of uncertain spans per word.
        alternatives: Highest number of alternatives to the correct words of a span.
        advantage: Mean and standard deviation of the advantage of the correct words over the alternatives, in nats.
        missing_prob: Fraction of spans where the correct words are no option.
        distinct_prob: Fraction of lists of distinct texts; in the other lists likely texts are repeated.
    """

    hypotheses: int = 5
    clean_prob: float = renamed("clean_share", 0.15)
    mean_rate: float = 0.18
    alternatives: int = 3
    advantage: tuple[float, float] = (1.0, 1.5)
    missing_prob: float = renamed("missing_share", 0.2)
    distinct_prob: float = renamed("distinct_share", 0.5)


@dataclass(frozen=True)
class _UncertainSpan:
    """Words [start, end) of the sentence and the options there, with log-probabilities."""

    start: int
    end: int
    options: tuple[tuple[str, ...], ...]
    logs: tuple[float, ...]


def simulate_list(name: str, text: str, confusions: Confusions, settings: ListNoise, rng: np.random.Generator) -> NBest:
    """Simulate the N-best list of a sentence; scores are mean log-probabilities per word.

    Args:
        name: The list's id.
        text: Normalized words; the list's reference.
        confusions: Table of likely misrecognitions.
        settings: Settings of the simulation.
        rng: Source of all draws.
    """
    words = text.split()
    clean = rng.random() < settings.clean_prob
    rate = 0.0 if clean else min(0.6, rng.exponential(settings.mean_rate))
    spans = sorted(_uncertain_spans(words, rate, confusions, settings, rng), key=lambda span: span.start)
    distinct = rng.random() < settings.distinct_prob
    chosen = _best(spans, 4 * settings.hypotheses)
    if not distinct:
        logs = np.array([log for log, _ in chosen])
        probability = np.exp((logs - logs.max()) / 2.0)
        copies = rng.multinomial(settings.hypotheses, probability / probability.sum())
        chosen = [entry for entry, count in zip(chosen, copies, strict=True) for _ in range(count)]
    texts = [(_compose(words, spans, picks), log / max(1, len(words))) for log, picks in chosen[: settings.hypotheses]]
    while len(texts) < settings.hypotheses:  # as in HyPoradise
        texts.append(texts[int(rng.integers(len(texts)))])
    texts.sort(key=lambda entry: -entry[1])
    return NBest(name, tuple(Hypothesis(t, round(score, 4)) for t, score in texts), text)


def _uncertain_spans(
    words: Sequence[str], rate: float, confusions: Confusions, settings: ListNoise, rng: np.random.Generator
) -> list[_UncertainSpan]:
    free = np.ones(len(words), dtype=bool)
    spans = []
    for start in np.flatnonzero(rng.random(len(words)) < rate).tolist():
        length = min(1 + int(np.searchsorted(_SPAN_BOUNDS, rng.random())), MAX_SPAN, len(words) - start)
        while length and not free[start : start + length].all():
            length -= 1
        if not length:
            continue
        span = _uncertain_span(words, start, length, confusions, settings, rng)
        if span is not None:
            free[span.start : span.end] = False
            spans.append(span)
    return spans


def _uncertain_span(
    words: Sequence[str],
    start: int,
    length: int,
    confusions: Confusions,
    settings: ListNoise,
    rng: np.random.Generator,
) -> _UncertainSpan | None:
    kind = rng.random()
    for count in range(length, 0, -1):
        true = tuple(words[start : start + count])
        alternatives = _alternatives(true, kind, confusions, settings, rng)
        if alternatives:
            logs = [float(rng.normal(*settings.advantage)), *rng.normal(0.0, 1.0, size=len(alternatives)).tolist()]
            options = [true, *alternatives]
            if rng.random() < settings.missing_prob:
                options, logs = options[1:], logs[1:]
            total = float(np.logaddexp.reduce(logs))
            return _UncertainSpan(start, start + count, tuple(options), tuple(log - total for log in logs))
    return None


def _alternatives(
    true: tuple[str, ...], kind: float, confusions: Confusions, settings: ListNoise, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """Return alternatives to the correct words: from the table, or a word deleted, joined, split or inserted."""
    if kind < 0.06 and len(true) == 1 and len(true[0]) < 5:
        return [()]
    if kind < 0.12:
        return [(*true, str(rng.choice(_SMALL_WORDS)))]
    if kind < 0.17 and len(true) == 2:
        return [("".join(true),)]
    if kind < 0.2 and len(true) == 1 and len(true[0]) > 6:
        cut = int(rng.integers(3, len(true[0]) - 2))
        return [(true[0][:cut], true[0][cut:])]
    rows = confusions.table.get(" ".join(true))
    if not rows:
        return []
    weights = np.array([weight for _, weight in rows]) ** 0.7
    count = min(len(rows), 1 + int(rng.integers(settings.alternatives)))
    picked = rng.choice(len(rows), size=count, replace=False, p=weights / weights.sum())
    return [tuple(rows[i][0].split()) for i in picked if tuple(rows[i][0].split()) != true]


def _best(spans: Sequence[_UncertainSpan], count: int) -> list[tuple[float, tuple[int, ...]]]:
    """Return the likeliest combinations of options, (log-probability, option of each span), best first."""
    beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for span in spans:
        longer = ((log + more, (*picks, i)) for log, picks in beam for i, more in enumerate(span.logs))
        beam = heapq.nlargest(count, longer)
    return beam


def _compose(words: Sequence[str], spans: Sequence[_UncertainSpan], picks: Sequence[int]) -> str:
    chosen_words: list[str] = []
    at = 0
    for span, pick in zip(spans, picks, strict=True):
        chosen_words += [*words[at : span.start], *span.options[pick]]
        at = span.end
    return " ".join([*chosen_words, *words[at:]])
