"""A sentence -> an N-best list that a recogniser might have made of it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.nbest import Hypothesis, NBest
from audio_llm.simulation.confusions import MAX_SPAN, Confusions

_SMALL_WORDS = ("a", "the", "and", "in", "of", "to", "it", "is", "was", "that", "i", "he", "on", "at", "as", "but")
_SPAN_BOUNDS = (0.75, 0.96)  # probabilities 0.75, 0.21, 0.04 of a place of 1, 2, 3 words


@dataclass(frozen=True)
class ListNoise:
    """How lists are made up; log-probabilities are of a place being heard one way or another.

    Attributes:
        hypotheses: Entries of a list.
        clean_share: Share of lists whose places are all certain.
        mean_rate: Mean of the exponential distribution that the rate of uncertain places per word is drawn from.
        alternatives: Things that may be heard at one place besides the true words, at most.
        advantage: Mean and standard deviation of what the true words have before the others, in nats.
        missing_share: Share of places where the true words are not heard at all.
        distinct_share: Share of lists of different texts; in the others the likely ones are repeated.
    """

    hypotheses: int = 5
    clean_share: float = 0.15
    mean_rate: float = 0.18
    alternatives: int = 3
    advantage: tuple[float, float] = (1.0, 1.5)
    missing_share: float = 0.2
    distinct_share: float = 0.5


@dataclass(frozen=True)
class _Place:
    """Words [start, end) of the sentence and what may be heard there, with log-probabilities."""

    start: int
    end: int
    options: tuple[tuple[str, ...], ...]
    logs: tuple[float, ...]


def simulate_list(name: str, text: str, confusions: Confusions, settings: ListNoise, rng: np.random.Generator) -> NBest:
    """Make up a list for a sentence; scores are mean log-probabilities of a word.

    Args:
        name: The list's id.
        text: Normalised words; the list's reference.
        confusions: What may be heard instead of what.
        settings: How much.
        rng: Source of all draws.
    """
    words = text.split()
    clean = rng.random() < settings.clean_share
    rate = 0.0 if clean else min(0.6, rng.exponential(settings.mean_rate))
    places = sorted(_places(words, rate, confusions, settings, rng), key=lambda place: place.start)
    distinct = rng.random() < settings.distinct_share
    chosen = _best(places, 4 * settings.hypotheses)
    if not distinct:
        logs = np.array([log for log, _ in chosen])
        share = np.exp((logs - logs.max()) / 2.0)
        copies = rng.multinomial(settings.hypotheses, share / share.sum())
        chosen = [entry for entry, count in zip(chosen, copies, strict=True) for _ in range(count)]
    texts = [(_compose(words, places, picks), log / max(1, len(words))) for log, picks in chosen[: settings.hypotheses]]
    while len(texts) < settings.hypotheses:  # as HyPoradise fills a list
        texts.append(texts[int(rng.integers(len(texts)))])
    texts.sort(key=lambda entry: -entry[1])
    return NBest(name, tuple(Hypothesis(t, round(score, 4)) for t, score in texts), text)


def _places(
    words: Sequence[str], rate: float, confusions: Confusions, settings: ListNoise, rng: np.random.Generator
) -> list[_Place]:
    free = np.ones(len(words), dtype=bool)
    places = []
    for start in np.flatnonzero(rng.random(len(words)) < rate).tolist():
        length = min(1 + int(np.searchsorted(_SPAN_BOUNDS, rng.random())), MAX_SPAN, len(words) - start)
        while length and not free[start : start + length].all():
            length -= 1
        if not length:
            continue
        place = _place(words, start, length, confusions, settings, rng)
        if place is not None:
            free[place.start : place.end] = False
            places.append(place)
    return places


def _place(
    words: Sequence[str],
    start: int,
    length: int,
    confusions: Confusions,
    settings: ListNoise,
    rng: np.random.Generator,
) -> _Place | None:
    kind = rng.random()
    for count in range(length, 0, -1):
        true = tuple(words[start : start + count])
        others = _others(true, kind, confusions, settings, rng)
        if others:
            logs = [float(rng.normal(*settings.advantage)), *rng.normal(0.0, 1.0, size=len(others)).tolist()]
            options = [true, *others]
            if rng.random() < settings.missing_share:
                options, logs = options[1:], logs[1:]
            total = float(np.logaddexp.reduce(logs))
            return _Place(start, start + count, tuple(options), tuple(log - total for log in logs))
    return None


def _others(
    true: tuple[str, ...], kind: float, confusions: Confusions, settings: ListNoise, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """Return what may be heard instead: what the table knows, or a word lost, joined, split or put in."""
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
    wanted = min(len(rows), 1 + int(rng.integers(settings.alternatives)))
    picked = rng.choice(len(rows), size=wanted, replace=False, p=weights / weights.sum())
    return [tuple(rows[i][0].split()) for i in picked if tuple(rows[i][0].split()) != true]


def _best(places: Sequence[_Place], count: int) -> list[tuple[float, tuple[int, ...]]]:
    """Return the likeliest combinations of options, (log-probability, option of each place), best first."""
    beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for place in places:
        longer = ((log + more, (*picks, i)) for log, picks in beam for i, more in enumerate(place.logs))
        beam = heapq.nlargest(count, longer)
    return beam


def _compose(words: Sequence[str], places: Sequence[_Place], picks: Sequence[int]) -> str:
    heard: list[str] = []
    at = 0
    for place, pick in zip(places, picks, strict=True):
        heard += [*words[at : place.start], *place.options[pick]]
        at = place.end
    return " ".join([*heard, *words[at:]])
