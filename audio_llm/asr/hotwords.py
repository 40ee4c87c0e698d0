"""Spelling of names and terms as in a list."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_AROUND = re.compile(r"^(\W*)(.*?)((?:['\N{RIGHT SINGLE QUOTATION MARK}]s)?\W*)$", re.DOTALL)
_SENTENCE_ENDS = (".", "!", "?", "...", "\N{HORIZONTAL ELLIPSIS}")
_SHORT = 4  # letters: at the start of a sentence "IT" may be the pronoun


def listed_spelling(words: Sequence[str], terms: Sequence[str]) -> list[str]:
    """Return words with the capitals that a list of terms gives them; letters are never changed.

    A word takes the capitals of a term where the recognizer wrote it with a capital itself ("Nasa" becomes "NASA"), or
    where no common word has such capitals ("macdougall" becomes "MacDougall"). Where "IT" is listed, "it" stays, and so
    does "It" at the start of a sentence.

    Args:
        words: Words of one text in order, with their punctuation.
        terms: Terms of one or several words in their correct spelling.
    """
    written = list(words)
    parts = [_parts(word) for word in words]
    for term in sorted(terms, key=lambda term: -len(term.split())):
        listed = [_parts(word)[1] for word in term.split()]
        plain = [word.lower() for word in listed]
        if not all(listed):
            continue
        for start in range(len(words) - len(listed) + 1):
            recognized = [part[1] for part in parts[start : start + len(listed)]]
            if [word.lower() for word in recognized] != plain or recognized == listed:
                continue
            first = start == 0 or words[start - 1].rstrip("\"')]").endswith(_SENTENCE_ENDS)
            if len(listed) > 1 or _may_take(recognized[0], listed[0], first):
                for index, word in enumerate(listed, start):
                    before, _, after = parts[index]
                    written[index] = before + word + after
    return written


def _parts(word: str) -> tuple[str, str, str]:
    """Return punctuation before a word, the word, and a possessive with punctuation after it."""
    match = _AROUND.match(word)
    assert match is not None  # every part may be empty
    before, core, after = match.groups()
    return before, core, after


def _may_take(recognized: str, listed: str, first: bool) -> bool:
    inner = any(one.islower() and other.isupper() for one, other in itertools.pairwise(listed))
    if inner:
        return True
    short = listed.isupper() and len(listed) <= _SHORT
    return recognized != recognized.lower() and not (first and short)
