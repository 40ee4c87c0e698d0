"""Text normalization and pronunciation: numbers, dates and abbreviations to words, words to phones, marks to pauses."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from audio_llm.asr.pronounce import PLAIN_LETTERS, is_known, phones_of, pronounce
from audio_llm.errors import DataError
from audio_llm.text import DEFAULT_NORMALIZER, split_sentences

BETWEEN = "_"  # separates words
MARKS = (",", ".", "?", "!")
PHONES = (  # of the pocketsphinx dictionary  # noqa: SIM905
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
).split()
SYMBOLS = (BETWEEN, *MARKS, *PHONES)
LONGEST = 220  # characters of a sentence; a longer one is split

_KNOWN = frozenset(PHONES)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_SPEAKABLE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'()-–—…/&@%$£€¥°+")  # noqa: RUF001
_SILENT = frozenset('"“”„«»‹›*_~^`{}[]|\\<>#=\u200b\u200c\u200d\ufeff\ufe0f\xad')  # noqa: RUF001
_APOSTROPHES = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "`": "'", "\u2044": "/"})  # noqa: RUF001
_MARK_OF = {"?": "?", "!": "!", ".": "."} | dict.fromkeys(",;:()", ",")
_PIECE = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*'?|[^\s\w]|\d|_")
_FRACTION = re.compile(r"(?<=\d)([¼-¾⅐-⅞])")
_AMOUNT = re.compile(r"(\d[\d.,]*)\s?([€£¥])")
_SAINT = re.compile(r"\bSt\.(?= [A-Z])")
_DASHES = re.compile(r"\s+-+\s+|--+|[–—…]|\.{2,}")  # noqa: RUF001
_ACRONYM = 3  # letters at most; a longer word in capitals is read as a word
_SPELLED = frozenset("AM PM US UK EU UN TV PC AI IQ ID FM".split())  # though the dictionary has such words  # noqa: SIM905
_BREAK = re.compile(r"(?<=[,;:])\s+")


class UnspeakableError(DataError):
    """A text that contains nothing pronounceable."""


@dataclass(frozen=True)
class NormalizedText:
    """A text as it is pronounced.

    Attributes:
        text: Words, without digits and abbreviations.
        symbols: Phones, with `BETWEEN` between words and one of `MARKS` where there is a pause; ends in a mark.
        left_out: Names of what is not pronounced: characters of other scripts, emoji, tags.
    """

    text: str
    symbols: tuple[str, ...]
    left_out: tuple[str, ...]


def normalize_text(text: str) -> NormalizedText:
    """Return the pronunciation of an English text.

    Raises:
        UnspeakableError: Nothing in the text can be pronounced.
    """
    text, tags = without_tags(text)
    plain, left_out = _plain(text)
    left_out = dict.fromkeys(tags) | left_out
    words = _in_words(plain)
    symbols: list[str] = []
    pronounced: list[str] = []
    for piece in _PIECE.findall(words):
        if piece in _MARK_OF:
            _mark(symbols, _MARK_OF[piece])
            continue
        phones = _phones(piece)
        if not phones:
            left_out |= dict.fromkeys(_name(c) for c in piece if c.isalnum())
            continue
        if symbols and symbols[-1] not in MARKS:
            symbols.append(BETWEEN)
        symbols += phones
        pronounced.append(piece)
    if not pronounced:
        skipped = f": {', '.join(list(left_out)[:5])}" if left_out else ""
        remedy = "give English words, numbers or abbreviations"
        raise UnspeakableError(f"nothing to pronounce in {text[:40]!r}{skipped}", remedy=remedy)
    if symbols[-1] not in MARKS:
        symbols.append(".")
    return NormalizedText(" ".join(words.split()), tuple(symbols), tuple(left_out))


def without_tags(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text without what resembles SSML or HTML tags, which are not read, and the names of these tags."""
    return _TAG.sub(" ", text), tuple(dict.fromkeys(f"tag {tag}" for tag in _TAG.findall(text)))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; those longer than `LONGEST` are split."""
    return [part for sentence in split_sentences(_DASHES.sub(", ", text)) for part in _parts(sentence)]


def _plain(text: str) -> tuple[str, dict[str, None]]:
    """Return a text in the characters that the normalizer supports, and the names of the others."""
    characters: list[str] = []
    left_out: dict[str, None] = {}
    text = _AMOUNT.sub(r"\2\1", _FRACTION.sub(r" \1", _SAINT.sub("Saint", text)))
    composed = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).translate(PLAIN_LETTERS)
    for character in unicodedata.normalize("NFKD", composed):
        if character in _SPEAKABLE:
            characters.append(character)
        elif unicodedata.combining(character):
            continue
        else:
            characters.append(" ")
            if not character.isspace() and character not in _SILENT:
                left_out[_name(character)] = None
    return " ".join(_DASHES.sub(", ", "".join(characters)).split()), left_out


def _parts(sentence: str) -> Iterator[str]:
    """Split at commas where possible, else between words, else anywhere."""
    rest = sentence
    while len(rest) > LONGEST:
        breaks = [match.start() for match in _BREAK.finditer(rest, LONGEST // 3, LONGEST)]
        cut = breaks[-1] if breaks else rest.rfind(" ", 1, LONGEST)
        cut = cut if cut > 0 else LONGEST
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    if rest:
        yield rest


def _in_words(text: str) -> str:
    """Return a text without digits and abbreviations; if the normalizer rejects it, word by word."""
    words = text.split()
    try:
        return str(_normalizer().normalize(text)) if words else ""
    except AssertionError:  # no path of its grammar fits
        return " ".join(map(_in_words, words)) if len(words) > 1 else DEFAULT_NORMALIZER(text)


def _mark(symbols: list[str], mark: str) -> None:
    """Add a mark; of two in a row the later one counts, but a comma never replaces another mark."""
    if not symbols:
        return
    if symbols[-1] not in MARKS:
        symbols.append(mark)
    elif mark != ",":
        symbols[-1] = mark


def _phones(word: str) -> tuple[str, ...]:
    """Return the phones of a word; empty if it cannot be pronounced."""
    if word in _SPELLED or (word.isupper() and 1 < len(word) <= _ACRONYM and not is_known(word.lower())):
        return tuple(pronounce(".".join(word)).split())
    phones = phones_of(word.lower())
    return phones if _KNOWN.issuperset(phones) else ()


def _name(character: str) -> str:
    return unicodedata.name(character, f"U+{ord(character):04X}").lower()


@functools.cache
def _normalizer() -> Any:
    from wetext import Normalizer

    return Normalizer(lang="en", operator="tn")
