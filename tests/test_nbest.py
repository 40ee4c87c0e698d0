from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from audio_llm.errors import DataError
from audio_llm.nbest import Hypothesis, NBest, Word, nbest_from_dict, read_nbest, write_nbest

FULL = NBest("u1", (Hypothesis("a b", -1.5), Hypothesis("a")), "a b", (Word("a", 0.0, 0.5, 0.9), Word("b", 0.5, 1.0)))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    lists = [FULL, NBest("ü", ()), NBest("3", (Hypothesis("one\u2028line"),))]
    with path.open("w", encoding="utf-8") as file:
        assert write_nbest(lists, file) == 3
    assert list(read_nbest(path)) == lists


def test_hyporadise_form(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"input": ["a b", "a"], "output": "a b", "am_score": [-1, "-2.5"]},
        {"input": "a", "id": 7, "reference": "b", "score": []},
        {"input": [], "id": None},
    ]
    (tmp_path / "lists.json").write_text(json.dumps(rows))
    assert list(read_nbest(tmp_path / "lists.json")) == [
        NBest("1", (Hypothesis("a b", -1.0), Hypothesis("a", -2.5)), "a b"),
        NBest("7", (Hypothesis("a"),), "b"),
        NBest("3", ()),
    ]


BROKEN: list[tuple[Any, str]] = [
    (None, "it is null, not an object"),
    (["a"], "it is an array, not an object"),
    ("a", "it is a string, not an object"),
    ({"text": "a"}, "neither 'hypotheses' nor 'input'"),
    ({"hypotheses": None}, "'hypotheses' is null, not an array"),
    ({"hypotheses": {"text": "a"}}, "'hypotheses' is an object"),
    ({"hypotheses": ["a"]}, "hypothesis 1 is a string, not an object"),
    ({"hypotheses": [{"text": "a"}, {"score": 1}]}, "the text of hypothesis 2 is null, not text"),
    ({"hypotheses": [{"text": ["a"]}]}, "the text of hypothesis 1 is an array"),
    ({"hypotheses": [{"text": "a", "score": float("nan")}]}, "the score of hypothesis 1 is nan"),
    ({"hypotheses": [], "words": [{"text": "a", "start_s": 0}]}, "end_s of word 1 is null, not a number"),
    ({"hypotheses": [], "words": [3]}, "word 1 is a number"),
    ({"hypotheses": [], "reference": 5}, "the reference is a number, not text"),
    ({"hypotheses": [], "id": ["a"]}, "the id is an array, not text"),
    ({"input": None}, "'input' is null, not an array"),
    ({"input": ["a", None]}, "hypothesis 2 is null, not text"),
    ({"input": ["a", 2]}, "hypothesis 2 is a number, not text"),
    ({"input": ["\ud800"]}, "hypothesis 1 is not valid Unicode"),
    ({"input": ["a", "b"], "score": [1]}, "2 hypotheses but 1 scores"),
    ({"input": ["a"], "am_score": 1}, "'am_score' or 'score' is a number, not an array"),
    ({"input": ["a"], "score": ["high"]}, "the score of hypothesis 1 is a string, not a number"),
    ({"input": ["a"], "score": [True]}, "the score of hypothesis 1 is true, not a number"),
    ({"input": ["a"], "score": [float("-inf")]}, "the score of hypothesis 1 is -inf"),
    ({"input": ["a"], "output": ["a"]}, "the reference is an array, not text"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_value_that_is_no_list_says_why(row: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        nbest_from_dict(row, "lists", 4)
    assert str(caught.value).startswith("lists: entry 4 is not an N-best list: ")
    assert message in str(caught.value)
    assert "give objects with 'hypotheses'" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "line 3 is not valid JSON"),
        (b'{"input": ["a"', "line 3 is not valid JSON"),
        (b"[" * 100_000, "line 3 is not valid JSON"),
        (b'{"input": ["a"], "score": [' + b"1" * 5_000 + b"]}", "line 3 is not valid JSON"),
        (b'{"input": ["\xff"]}', "line 3 is not UTF-8 text"),
        (b'{"input": [1]}', "line 3 is not an N-best list: hypothesis 1 is a number"),
        (b'{"input": ["a"], "score": [NaN]}', "line 3 is not an N-best list: the score of hypothesis 1 is nan"),
    ],
)
def test_broken_line_is_raised_or_handed_over(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_bytes(b'{"input": ["a"]}\n\n' + line + b'\n{"input": ["b"]}\n')
    errors: list[DataError] = []
    found = list(read_nbest(path, errors.append))
    assert [(nbest.id, nbest.best) for nbest in found] == [("1", "a"), ("4", "b")]
    (error,) = errors
    assert error.path == path
    assert error.message.startswith(message)
    reader = read_nbest(path)
    assert next(reader).id == "1"
    with pytest.raises(DataError, match=message):
        next(reader)


@pytest.mark.parametrize("first", ["[1]", '["a", "b"]', "[[]]"])
def test_first_line_that_is_an_array_spoils_only_itself(tmp_path: Path, first: str) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text(f'{first}\n{{"input": ["b"]}}\n')
    errors: list[DataError] = []
    assert [nbest.id for nbest in read_nbest(path, errors.append)] == ["2"]
    assert [error.message for error in errors] == ["line 1 is not an N-best list: it is an array, not an object"]


def test_broken_array_ends_the_reading_and_a_broken_entry_does_not(tmp_path: Path) -> None:
    path = tmp_path / "lists.json"
    path.write_text('[\nnull,\n{"input": ["b"]}\n]')
    errors: list[DataError] = []
    assert [nbest.id for nbest in read_nbest(path, errors.append)] == ["2"]
    assert [error.message for error in errors] == ["entry 1 is not an N-best list: it is null, not an object"]
    for text in ('[{"input": ["b"]}, {"inp', "[", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(DataError, match="the file may be cut off"):
            list(read_nbest(path, errors.append))
    assert len(errors) == 1


def test_broken_beam_is_left_out_whole_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "beams.tsv"
    path.write_text("a b\t-1\na\t-2\n\nc\t-1\nd\tnan\ne\n\nf\t-3\n")
    errors: list[DataError] = []
    assert list(read_nbest(path, errors.append)) == [
        NBest("1", (Hypothesis("a b", -1.0), Hypothesis("a", -2.0))),
        NBest("3", (Hypothesis("f", -3.0),)),
    ]
    assert [error.message for error in errors] == [
        "line 5 is no hypothesis: what is behind the tab is nan, not a finite number"
    ]
    with pytest.raises(DataError, match="line 5"):
        list(read_nbest(path))


def test_files_that_are_not_there_or_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[DataError] = []
    for path, message in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "not a text file")):
        with pytest.raises(DataError, match=message):
            list(read_nbest(path, errors.append))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"input": ["\xff"]}\n'), encoding="utf-8"))
    with pytest.raises(DataError, match="not a text file"):
        list(read_nbest("-", errors.append))
    assert errors == []
