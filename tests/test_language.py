"""The project's words are the field's: private terms become fewer with every change, and none comes back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from language import CODE, TEXT, identifiers, phrases, private_words

REMAINING = json.loads((Path(__file__).parent / "data" / "language.json").read_text(encoding="utf-8"))


def part(path: str) -> str:
    """Return what is counted together: a package or a recipe."""
    parts = path.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else path


@pytest.mark.parametrize("kind", ["identifiers", "text"])
def test_private_words_become_fewer(kind: str) -> None:
    uses = [use for folder in CODE for use in identifiers(folder)] if kind == "identifiers" else []
    uses += [use for folder in TEXT for use in phrases(folder)] if kind == "text" else []
    counts = Counter(part(use.path) for use in uses)
    more = {name: (count, REMAINING[kind].get(name, 0)) for name, count in counts.items()}
    assert {name: pair for name, pair in more.items() if pair[0] > pair[1]} == {}, "python tests/language.py lists them"
    fewer = {name: counts[name] for name, before in REMAINING[kind].items() if counts[name] < before}
    assert fewer == {}, "lower the numbers in tests/data/language.json"


@pytest.mark.parametrize(
    ("identifier", "words"),
    [("found_words", ["found"]), ("HeardText", ["heard"]), ("profound", []), ("sequence_layout", []), ("own", ["own"])],
)
def test_words_of_identifiers(identifier: str, words: list[str]) -> None:
    assert private_words(identifier) == words
