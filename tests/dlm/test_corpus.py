from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audio_llm.dlm.corpus import Sentence, drop_shared, read_book, split_sentences
from audio_llm.errors import DataError
from audio_llm.text import NORMALIZERS

BOOK = """CHAPTER I

Mr. Holmes paid 21 shillings to Dr. Watson at St. Paul's. "Is it you?" he cried; nobody came in.

The _Nellie_ lay--as before--at anchor, e. g. in the river of the old gray town by the sea!
"""


def test_sentences_end_at_stops_and_not_at_titles() -> None:
    assert list(split_sentences(BOOK)) == [
        "CHAPTER I",
        "Mr. Holmes paid 21 shillings to Dr. Watson at St. Paul's.",
        '"Is it you?" he cried;',
        "nobody came in.",
        "The Nellie lay as before at anchor, e. g. in the river of the old gray town by the sea!",
    ]


def test_book_gives_normalized_words_and_stable_ids(tmp_path: Path) -> None:
    path = tmp_path / "holmes.txt"
    path.write_text(BOOK)
    sentences = read_book(path)
    assert sentences[0] == Sentence(
        "holmes:00001",
        "Mr. Holmes paid 21 shillings to Dr. Watson at St. Paul's.",
        "mister holmes paid twenty one shillings to doctor watson at saint paul's",
    )
    assert all(4 <= len(s.words.split()) <= 25 for s in sentences)


def test_missing_book_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        read_book(tmp_path / "nowhere.txt")


def test_shared_passages_are_dropped() -> None:
    passage = "it was the best of times it was the worst of times"
    sentences = [
        Sentence("a:0", "", f"he said {passage}"),
        Sentence("a:1", "", "short one"),
        Sentence("a:2", "", "it was the best of days and nothing else"),
    ]
    retained = drop_shared(sentences, [passage, "short one"])
    assert [s.id for s in retained] == ["a:2"]


@pytest.mark.parametrize("name", list(NORMALIZERS))
@given(text=st.text(max_size=60))
@example(text="D%R")
def test_normalizing_twice_changes_nothing(name: str, text: str) -> None:
    normalizer = NORMALIZERS[name]
    assert normalizer(normalizer(text)) == normalizer(text)


def test_written_and_spoken_forms_meet() -> None:
    normalize = NORMALIZERS["spoken"]
    assert normalize("Mr. O\u2019Brien & I\u2014in 1897, the 3rd time") == normalize(
        "mister o'brien and i in eighteen ninety-seven the third time"
    )
    assert NORMALIZERS["letters"]("flights to J. F. K. airport") == "flights to jfk airport"
