"""Words to phones: the dictionary inside pocketsphinx, and letter-to-sound rules learned from it for other words."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOWELS = frozenset("aeiouy")
PLAIN_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "th", "þ": "th"})
_APOSTROPHES = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "`": "'"})  # noqa: RUF001
_NAMES_IN_ORDER = (
    "EY|B IY|S IY|D IY|IY|EH F|JH IY|EY CH|AY|JH EY|K EY|EH L|EH M|EH N|OW|P IY|K Y UW|AA R|EH S|T IY|Y UW|V IY|"
    "D AH B AH L Y UW|EH K S|W AY|Z IY|Z IH R OW|W AH N|T UW|TH R IY|F AO R|F AY V|S IH K S|S EH V AH N|EY T|N AY N"
)
_NAMES = dict(zip(_LETTERS + "0123456789", _NAMES_IN_ORDER.split("|"), strict=True))
_PIECE = re.compile(r"[a-z']+|[0-9]")

_LEARN_EVERY = 4  # every fourth dictionary word is used for training: 31,000 words, two seconds
_LONGEST = 14  # longest word of the training, letters
_ROUNDS = 5  # iterations of the alignment
_CONTEXTS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (3, 3))  # letters to the left and right, from the shortest context
_TRUST = 2.0  # weight of the next shorter context, in observations
_WIDEST = 3
_EDGE = 0  # number outside a word; letters are numbered from 1
_SMOOTHING = 0.1  # added to every count of the alignment
_START_PENALTY = 4.0  # nats, initial cost of no phone and of a second phone
_OUTPUTS = 2048  # above the number of codes for 0, 1 and 2 phones


def read_dictionary() -> dict[str, tuple[str, ...]]:
    """Return the first pronunciation of every word, as phones without stress."""
    from pocketsphinx import get_model_path

    entries: dict[str, tuple[str, ...]] = {}
    for line in Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8").splitlines():
        word, *phones = line.split()
        entries.setdefault(word.split("(")[0], tuple(phones))
    return entries


@functools.lru_cache(maxsize=100_000)
def phones_of(word: str) -> tuple[str, ...]:
    """Return the phones of a word from the dictionary, else from the rules, else its letters."""
    known = _known_words()
    phones = known.get(word)
    if phones is None:
        phones = tuple(pronounce(word, lambda part: " ".join(known[part]) if part in known else None).split())
    return phones or tuple(word)


def is_known(word: str) -> bool:
    """Return whether the dictionary has a word in lower case."""
    return word in _known_words()


@functools.cache
def _known_words() -> dict[str, tuple[str, ...]]:
    return read_dictionary()


def pronounce(word: str, lookup: Callable[[str], str | None] | None = None) -> str:
    """Return a likely English pronunciation of a word that no dictionary has: a name, a term, an acronym.

    Parts between hyphens and digits are pronounced one after another; an ending 's as in "Gregson's"; a part without a
    vowel ("NEC" has one, "BBC" has none) or with a point after each letter is spelled. Accents are dropped.

    Args:
        word: One written word in any letter case.
        lookup: Returns the phones of a known word, or None; called for every part before the rules are used.

    Returns:
        Phones of the pocketsphinx dictionary, separated by spaces; empty where the word has no letter, or one that
        is not of the Latin alphabet.
    """
    plain = unicodedata.normalize("NFKD", word.translate(_APOSTROPHES).casefold().translate(PLAIN_LETTERS))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    letters = [character for character in plain if character.isalpha()]
    if not letters or not set(letters) <= set(_LETTERS):
        return ""
    pieces = _PIECE.findall(re.sub(r"\.(?![a-z])", "", plain))
    return " ".join(phone for piece in pieces for phone in _pronounce_piece(piece, lookup))


@dataclass(frozen=True)
class LetterRules:
    """Letter-to-sound rules: counts of the phones of each letter in its context.

    Attributes:
        phones: Names of the phones.
        keys: For each of `_CONTEXTS`, (K,) int64, sorted: code of context times `_OUTPUTS`, plus code of output.
        counts: For each of `_CONTEXTS`, (K,) int64: number of observations of the output in the context.
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
        for index in range(len(word)):
            phones += self._decode(self._choose([int(code[index]) for code in codes]))
        return phones

    def _choose(self, contexts: Sequence[int]) -> int:
        """Return the most probable output; longer contexts have more weight the more observations they have."""
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
    """Learn rules from words and their phones; words with characters other than a to z, or very long ones, are skipped.

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
    with_vowels = [word for word in entries if _VOWELS & set(word)]
    return learn_rules({word: entries[word] for word in with_vowels[::_LEARN_EVERY]})


def _pronounce_piece(piece: str, lookup: Callable[[str], str | None] | None) -> list[str]:
    """Return the phones of one digit, or of letters and apostrophes, of which an ending 's is one."""
    if piece in _NAMES:
        return _NAMES[piece].split()
    if lookup is not None and (known := lookup(piece)):
        return known.split()
    if piece.endswith("'s") and len(piece) > 2:
        stem = _pronounce_piece(piece[:-2], lookup)
        return [*stem, *_ending_s(stem)]
    letters = piece.replace("'", "")
    if not _VOWELS & set(letters):
        return [phone for letter in letters for phone in _NAMES[letter].split()]
    return _rules().apply(letters)


def _ending_s(stem: Sequence[str]) -> tuple[str, ...]:
    if not stem or stem[-1] in {"S", "Z", "SH", "ZH", "CH", "JH"}:
        return ("IH", "Z")
    return ("S",) if stem[-1] in {"P", "T", "K", "F", "TH"} else ("Z",)


def _table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (N, longest) int64, rows padded with 0."""
    table = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


def _first_scores(letters: np.ndarray, phones: np.ndarray, symbols: int) -> np.ndarray:
    """Return initial scores from how often a letter and a phone have similar relative positions in a word.

    Args:
        letters: (N, L) int64, padded with 0.
        phones: (N, P) int64, padded with 0.
        symbols: Number of phones, plus 1 for none.

    Returns:
        (27, symbols, symbols) float32: log score of a letter giving these two phones, 0 for none.
    """
    near = np.full((len(_LETTERS) + 1, symbols), _SMOOTHING)
    letter_position = (np.arange(letters.shape[1]) + 0.5) / np.maximum((letters > 0).sum(1), 1)[:, None]
    phone_position = (np.arange(phones.shape[1]) + 0.5) / np.maximum((phones > 0).sum(1), 1)[:, None]
    for column in range(letters.shape[1]):
        distance = np.abs(phone_position - letter_position[:, column, None])
        np.add.at(near, (letters[:, column, None], phones), np.exp(-8.0 * distance))
    near = (
        near / near.sum(1, keepdims=True) / near[1:].sum(0)
    )  # a phone that is frequent with every letter has little weight
    one = np.log(near / near[1:].max())
    scores = one[:, :, None] + one[:, None, :] - _START_PENALTY
    scores[:, :, 0] = one
    scores[:, 0, :] = -np.inf
    scores[:, 0, 0] = -_START_PENALTY
    return scores.astype(np.float32)


def _count_scores(letters: np.ndarray, outputs: np.ndarray, symbols: int) -> np.ndarray:
    """Return log p(output | letter), shaped as those of `_first_scores`, from the outputs of `_align`."""
    counts = np.full((len(_LETTERS) + 1, symbols * symbols), _SMOOTHING)
    counts[:, 1:symbols] = 0.0  # a second phone without a first
    np.add.at(counts, (letters, outputs), 1.0)
    with np.errstate(divide="ignore"):
        scores = np.log(counts / counts.sum(1, keepdims=True))
    return scores.reshape(-1, symbols, symbols).astype(np.float32)


def _align(letters: np.ndarray, phones: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return (N, L) int64: code of the phones of each letter on the best path, for all words."""
    words, longest = letters.shape
    positions = phones.shape[1] + 1
    best = np.full((words, positions), -np.inf, np.float32)
    best[:, 0] = 0.0
    taken = np.zeros((longest, words, positions), np.int8)
    for step in range(longest):
        letter = letters[:, step, None]
        options = np.full((3, words, positions), -np.inf, np.float32)
        options[0] = best + np.where(letter > 0, scores[letter, 0, 0], 0.0)
        options[1, :, 1:] = best[:, :-1] + np.where(letter > 0, scores[letter, phones, 0], -np.inf)
        options[2, :, 2:] = best[:, :-2] + np.where(letter > 0, scores[letter, phones[:, :-1], phones[:, 1:]], -np.inf)
        taken[step] = options.argmax(0)
        best = options.max(0)
    return _trace_back(taken, phones, scores.shape[1])


def _trace_back(taken: np.ndarray, phones: np.ndarray, symbols: int) -> np.ndarray:
    steps, words, _ = taken.shape
    outputs = np.zeros((words, steps), np.int64)
    everyone = np.arange(words)
    position = (phones > 0).sum(1)
    for step in reversed(range(steps)):
        count = taken[step, everyone, position]
        first = np.where(count > 0, phones[everyone, position - count], 0)
        second = np.where(count > 1, phones[everyone, position - 1], 0)
        outputs[:, step] = first * symbols + second
        position = position - count
    return outputs


def _collect(names: tuple[str, ...], letters: np.ndarray, outputs: np.ndarray) -> LetterRules:
    """Count the outputs in every context."""
    padded = np.pad(letters, ((0, 0), (_WIDEST, _WIDEST)), constant_values=_EDGE)
    keys, counts = [], []
    for left, right in _CONTEXTS:
        codes = _context_codes(padded, left, right) * _OUTPUTS + outputs
        key, count = np.unique(codes[letters > 0], return_counts=True)
        keys.append(key)
        counts.append(count)
    return LetterRules(names, tuple(keys), tuple(counts))


def _context_codes(padded: np.ndarray, left: int, right: int) -> np.ndarray:
    """Return (N, L) int64: code of the letters around each position; `padded` is (N, L + 2 * _WIDEST)."""
    length = padded.shape[1] - 2 * _WIDEST
    codes = np.zeros((len(padded), length), np.int64)
    for offset in range(-left, right + 1):
        codes = codes * (len(_LETTERS) + 1) + padded[:, _WIDEST + offset : _WIDEST + offset + length]
    return codes
