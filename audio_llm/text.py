"""Named text normalizers, the same for training and scoring; splitting of text into sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from audio_llm.errors import UsageError

_QUOTES = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"'})  # noqa: RUF001
_TITLES = {
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "messrs": "messieurs",
    "mme": "madame",
    "mlle": "mademoiselle",
    "etc": "etcetera",
}
_SAINT = re.compile(r"\bSt\.(?= [A-Z])")
_NOT_WORD = re.compile(r"[^\w' ]|_")
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th)?")
_LONGEST_NUMBER = 15  # digits; a longer one is read digit by digit
_ABBREVIATIONS = (
    "Mr",
    "Mrs",
    "Ms",
    "Dr",
    "St",
    "Messrs",
    "Mme",
    "Mlle",
    "Col",
    "Capt",
    "Rev",
    "Esq",
    "No",
    "vol",
    "Vol",
)
_PARAGRAPH = re.compile(r"\n\s*\n")
_MARKS = re.compile(r"[_*\[\]{}|<>=~^]|--+")
_STOP = "\u2024"  # replaces a full stop that does not end a sentence
_ABBREVIATION = re.compile(r"\b(" + "|".join(_ABBREVIATIONS) + r"|[A-Z])\.")
_END = re.compile(r"(?<=[.!?;])[\"')”’]*\s+(?=[\"'(“‘]*[A-Z])|(?<=;)\s+")  # noqa: RUF001
_SPELLED = re.compile(r"\b(?:[a-z] )+[a-z]\b")


@dataclass(frozen=True)
class Normalizer:
    """A named mapping from written text to the words that are compared.

    It is idempotent: `n(n(text)) == n(text)`.
    """

    name: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return self.function(text)


def get_normalizer(name: str) -> Normalizer:
    """Return the normalizer of that name.

    Args:
        name: One of `NORMALIZERS`.

    Raises:
        UsageError: No normalizer has that name.
    """
    if name not in NORMALIZERS:
        raise UsageError(f"no text normalizer is named {name!r}", remedy=f"use one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


def split_sentences(book: str) -> Iterator[str]:
    """Split running text into sentences: at full stops, question and exclamation marks, and semicolons."""
    for paragraph in _PARAGRAPH.split(book.replace("\r\n", "\n").replace("\r", "\n")):
        text = " ".join(_MARKS.sub(" ", paragraph).split())
        text = _ABBREVIATION.sub(lambda match: match.group(1) + _STOP, text)
        for sentence in _END.split(text):
            if sentence.strip():
                yield sentence.replace(_STOP, ".").strip()


def _raw(text: str) -> str:
    return " ".join(text.split())


def _basic(text: str) -> str:
    """Lower case, no punctuation; apostrophes inside words stay, hyphens and dashes become spaces."""
    text = _plain_characters(text).lower()
    text = _NOT_WORD.sub(" ", text)
    return " ".join(_OUTER_APOSTROPHE.sub(" ", text).split())


def _numbers_as_words(text: str) -> str:
    """As `basic`, with numbers, titles and the ampersand as spoken words."""
    text = _SAINT.sub("saint", _plain_characters(text)).replace("&", " and ")
    text = _NUMBER.sub(lambda match: f" {_number_words(match.group())} ", text)
    return " ".join(_TITLES.get(word, word) for word in _basic(text).split())


def _plain_characters(text: str) -> str:
    return unicodedata.normalize("NFKC", text.translate(_QUOTES)).translate(_QUOTES)


def _number_words(digits: str) -> str:
    from num2words import num2words

    ordinal = digits[-2:] in {"st", "nd", "rd", "th"}
    digits = (digits[:-2] if ordinal else digits).replace(",", "")
    if len(digits) > _LONGEST_NUMBER:
        return " ".join(str(num2words(int(digit))) for digit in digits if digit != ".")
    number = float(digits) if "." in digits else int(digits)
    if ordinal:
        return str(num2words(int(number), to="ordinal"))
    if isinstance(number, int) and len(digits) == 4 and 1100 <= number <= 2099:
        return str(num2words(number, to="year"))
    return str(num2words(number))


def _letters(text: str) -> str:
    """As `spoken`, with runs of spelled letters joined: `n e c` becomes `nec`."""
    joined = _SPELLED.sub(lambda match: match.group().replace(" ", ""), _numbers_as_words(text))
    return _numbers_as_words(joined)  # `d r` is now an abbreviation


_FUNCTIONS = {"raw": _raw, "basic": _basic, "spoken": _numbers_as_words, "letters": _letters}
NORMALIZERS = {name: Normalizer(name, function) for name, function in _FUNCTIONS.items()}
DEFAULT_NORMALIZER = NORMALIZERS["spoken"]
