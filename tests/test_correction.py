"""Tests of how a correction tells what it changed, and where the new words come from."""

from __future__ import annotations

import pytest

from audio_llm.correction import Edit, describe_edits


@pytest.mark.parametrize(
    "first, corrected, edits",
    [
        ("a b c", "a b c", []),
        ("a b c", "a x c", [Edit(1, 2, "b", "x", "hypothesis 2")]),
        ("a b c", "x b c", [Edit(0, 1, "a", "x", "name")]),  # hypothesis 2 has it elsewhere
        ("a b c", "a c", [Edit(1, 2, "b", "", "name")]),
        ("a b c", "a x c d", [Edit(1, 2, "b", "x", "hypothesis 2"), Edit(3, 3, "", "d", "name")]),
        ("a c", "a x c", [Edit(1, 1, "", "x", "hypothesis 2")]),
        ("a b c d e", "x b y z", [Edit(0, 1, "a", "x", "name"), Edit(2, 5, "c d e", "y z", "name")]),
        ("art", "a r", [Edit(0, 1, "art", "a r", "name")]),
    ],
)
def test_edits_rebuild_the_text_and_name_the_first_hypothesis_that_has_them_there(
    first: str, corrected: str, edits: list[Edit]
) -> None:
    hypotheses = [tuple(text.split()) for text in (first, "a x c", "a x d")]
    found = describe_edits(hypotheses, tuple(corrected.split()), "name")
    assert list(found) == edits
    words = first.split()
    for edit in reversed(found):
        words[edit.start : edit.end] = edit.after.split()
    assert words == corrected.split()
