"""Names and terms put right after recognition: words that sound like a listed term and are likelier as that term.

Whisper may spell a name as it has seen it most, even with the name in its prompt. So every place in a text that sounds
like a listed term is tried with the term in it, and the recognizer itself says whether the sound supports it. English
only: sounds are compared by the phones of an English dictionary and of letter-to-sound rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from audio_llm.align import edit_distance
from audio_llm.asr.pronounce import phones_of
from audio_llm.text import DEFAULT_NORMALIZER

_FAR = 0.5  # phones that differ, per phone of the longer side, beyond which a term is not tried
_SHORT = 3  # terms of fewer phones sound like too much
_TRIES = 6  # places of a text that are tried, the nearest ones
_MARGIN = 4.0  # nats by which a text with a listed term may be less likely and still be taken

Score = Callable[[Sequence[str]], Sequence[float | None]]


@dataclass(frozen=True)
class Place:
    """Where a term might be in a text: words `start` to `end`, and how far their sound is from the term's, 0 to 1."""

    start: int
    end: int
    term: str
    distance: float


def restore_terms(text: str, terms: Sequence[str], score: Score, margin: float = _MARGIN) -> tuple[str, list[Place]]:
    """Put listed terms into a text where the sound supports them.

    Args:
        text: Recognized text.
        terms: As they are written.
        score: Texts -> log p(text | audio) of each in nats, None for one it cannot score.
        margin: Nats by which a text with a term may be less likely.

    Returns:
        The text, and the places that were changed, in the order of the changes.
    """
    changed: list[Place] = []
    places = find_places(text.split(), terms)[:_TRIES]
    if not places:
        return text, changed
    texts = [text, *(_replace(text.split(), place) for place in places)]
    scores = score(texts)
    before = scores[0]
    if before is None:
        return text, changed
    gains = [(value - before, place) for value, place in zip(scores[1:], places, strict=True) if value is not None]
    words = text.split()
    for gain, place in sorted(gains, key=lambda pair: -pair[0]):
        overlaps = any(place.start < other.end and other.start < place.end for other in changed)
        if gain >= -margin and not overlaps:
            changed.append(place)
    for place in sorted(changed, key=lambda place: -place.start):
        words = _replace(words, place).split()
    return " ".join(words), changed


def find_places(words: Sequence[str], terms: Sequence[str]) -> list[Place]:
    """Return where terms might be in a text, the places that sound most alike first."""
    plain = [DEFAULT_NORMALIZER(word) for word in words]
    listed = {DEFAULT_NORMALIZER(term) for term in terms}
    places: list[Place] = []
    for term in terms:
        wanted = DEFAULT_NORMALIZER(term)
        sound = _sound(wanted)
        if len(sound) < _SHORT:
            continue
        count = len(wanted.split())
        for length in range(max(1, count - 1), count + 3):
            for start in range(len(words) - length + 1):
                own = " ".join(plain[start : start + length]).strip()
                if not own or own == wanted or own in listed or own == f"{wanted}'s":
                    continue
                distance = _distance(_sound(own), sound)
                if distance <= _FAR:
                    places.append(Place(start, start + length, term, distance))
    return sorted(places, key=lambda place: (place.distance, place.start, place.end))


def _sound(text: str) -> tuple[str, ...]:
    return tuple(phone for word in text.split() for phone in phones_of(word))


def _distance(own: Sequence[str], other: Sequence[str]) -> float:
    longest = max(len(own), len(other))
    if not longest or abs(len(own) - len(other)) > _FAR * longest:
        return 1.0
    return edit_distance(own, other) / longest


def _replace(words: Sequence[str], place: Place) -> str:
    """Return a text with the term in its place; punctuation and a possessive at the end of the place stay."""
    last = words[place.end - 1]
    bare = last.rstrip(".,;:!?\"')]}")
    ending = last[len(bare) :]
    if bare.endswith(("'s", "’s")) and not place.term.endswith(("'s", "’s")):  # noqa: RUF001
        ending = bare[-2:] + ending
    return " ".join([*words[: place.start], place.term + ending, *words[place.end :]])
