"""Words to phones: the dictionary inside pocketsphinx, and letter-to-sound rules learned from it for other words."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOWELS = frozenset("aeiouy")
_PLAIN = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "th", "þ": "th", "ı": "i"})
_APOSTROPHES = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "`": "'"})  # noqa: RUF001
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PIECE = re.compile(r"[a-z']+|[0-9]")

_LEARN_EVERY = 6  # one dictionary word in six is learned from: 20,000 words, two seconds
_LONGEST = 14  # letters of a word to learn from
_ROUNDS = 5  # of aligning and counting again
_CONTEXTS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (3, 3))  # letters to the left and right, in order of back-off
_TRUST = 0.5  # how many observations the next shorter context weighs
_WIDEST = 3
_EDGE = 0  # number of the place outside a word; letters count from 1
_SMOOTHING = 0.1  # added to every count of the alignment
_START_PENALTY = 4.0  # nats, for no phone and for a second phone, before anything was counted
_OUTPUTS = 2048  # above the number of codes for 0, 1 and 2 phones


def read_dictionary() -> dict[str, tuple[str, ...]]:
    """Return the first pronunciation of every word, as phones without stress."""
    from pocketsphinx import get_model_path

    entries: dict[str, tuple[str, ...]] = {}
    for line in Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8").splitlines():
        word, *phones = line.split()
        entries.setdefault(word.split("(")[0], tuple(phones))
    return entries


def pronounce(word: str, lookup: Callable[[str], str | None] | None = None) -> str:
    """Guess how an English speaker says a word that no dictionary has: a name, a term, an acronym.

    Parts between hyphens and digits are said one after another; an ending 's as in "Gregson's"; a part without a
    vowel ("NEC" has one, "BBC" has none) or with a point behind each letter is spelled. Accents are dropped.

    Args:
        word: One word as it is written; case makes no difference.
        lookup: Gives the phones of a known word, or None; asked for every part before the rules are used.

    Returns:
        Phones of the pocketsphinx dictionary, separated by spaces; empty where the word has no letter, or one that
        is not of the Latin alphabet.
    """
    plain = unicodedata.normalize("NFKD", word.translate(_APOSTROPHES).casefold().translate(_PLAIN))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    letters = [character for character in plain if character.isalpha()]
    if not letters or not set(letters) <= set(_LETTERS):
        return ""
    if re.fullmatch(r"(?:[a-z]\.)+[a-z]?(?:'?s)?", plain):
        plain = plain.replace(".", "-")
    phones: list[str] = []
    for piece in _PIECE.findall(plain.replace(".", "")):
        phones += _say(_DIGITS[int(piece)] if piece.isdigit() else piece, lookup)
    return " ".join(phones)


@dataclass(frozen=True)
class LetterRules:
    """What each letter sounds like, counted for the letters around it.

    Attributes:
        phones: Names of the phones.
        keys: For each of `_CONTEXTS`, (K,) int64, sorted: code of the context times `_OUTPUTS`, plus code of the output.
        counts: For each of `_CONTEXTS`, (K,) int64: how often the output was seen in the context.
    """

    phones: tuple[str, ...]
    keys: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    def apply(self, word: str) -> list[str]:
        """Return the phones of a word of the letters a to z."""
        numbers = np.full(len(word) + 2 * _WIDEST, _EDGE, np.int64)
        numbers[_WIDEST : _WIDEST + len(word)] = [_LETTERS.index(letter) + 1 for letter in word]
        codes = [_context_codes(numbers[None], *context)[0] for context in _CONTEXTS]
        phones: list[str] = []
        for place in range(len(word)):
            phones += self._decode(self._choose([int(code[place]) for code in codes]))
        return phones

    def _choose(self, contexts: Sequence[int]) -> int:
        """Return the most probable output; a longer context takes over as far as it has been seen."""
        chances: dict[int, float] = {}
        for context, keys, counts in zip(contexts, self.keys, self.counts, strict=True):
            start, end = np.searchsorted(keys, (context * _OUTPUTS, (context + 1) * _OUTPUTS))
            total = float(counts[start:end].sum()) + _TRUST
            chances = {output: chance * _TRUST / total for output, chance in chances.items()}
            for key, count in zip(keys[start:end].tolist(), counts[start:end].tolist(), strict=True):
                output = key % _OUTPUTS
                chances[output] = chances.get(output, 0.0) + count / total
        return max(chances, key=lambda output: (chances[output], -output), default=0)

    def _decode(self, output: int) -> tuple[str, ...]:
        first, second = divmod(output, len(self.phones) + 1)
        return tuple(self.phones[number - 1] for number in (first, second) if number)


def learn_rules(entries: Mapping[str, Sequence[str]]) -> LetterRules:
    """Learn from words with their phones; words with other signs than a to z, or very long ones, are left out.

    The letters of each word are aligned with 0 to 2 phones each, as Viterbi training does: align with the present
    probabilities, count, repeat.

    Args:
        entries: Word to phones.
    """
    usable = {
        word: phones
        for word, phones in entries.items()
        if set(word) <= set(_LETTERS) and 2 <= len(word) <= _LONGEST and len(phones) <= 2 * len(word)
    }
    names = tuple(sorted({phone for phones in usable.values() for phone in phones}))
    letters = _table([[_LETTERS.index(letter) + 1 for letter in word] for word in usable])
    phones = _table([[names.index(phone) + 1 for phone in phones] for phones in usable.values()])
    scores = _first_scores(letters, phones, len(names) + 1)
    for _ in range(_ROUNDS):
        outputs = _align(letters, phones, scores)
        scores = _count_scores(letters, outputs, len(names) + 1)
    return _collect(names, letters, _align(letters, phones, scores))


@functools.cache
def _rules() -> LetterRules:
    entries = read_dictionary()
    spoken = [word for word in entries if _VOWELS & set(word)]
    return learn_rules({word: entries[word] for word in spoken[::_LEARN_EVERY]})


def _say(piece: str, lookup: Callable[[str], str | None] | None) -> list[str]:
    """Return the phones of letters and apostrophes, of which an ending 's is one."""
    if lookup is not None and (known := lookup(piece)):
        return known.split()
    if piece.endswith("'s") and len(piece) > 2:
        stem = _say(piece[:-2], lookup)
        return [*stem, *_ending_s(stem)]
    letters = piece.replace("'", "")
    if not letters:
        return []
    if len(letters) == 1 or not _VOWELS & set(letters):
        return [phone for letter in letters for phone in _letter_names()[letter]]
    return _rules().apply(letters)


def _ending_s(stem: Sequence[str]) -> tuple[str, ...]:
    if not stem or stem[-1] in {"S", "Z", "SH", "ZH", "CH", "JH"}:
        return ("IH", "Z")
    return ("S",) if stem[-1] in {"P", "T", "K", "F", "TH"} else ("Z",)


@functools.cache
def _letter_names() -> dict[str, tuple[str, ...]]:
    entries = read_dictionary()
    return {letter: entries[f"{letter}."] for letter in _LETTERS}
