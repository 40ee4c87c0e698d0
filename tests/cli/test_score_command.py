"""`score`: texts, N-best lists, and corrections of such lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audio_llm import cli

LISTS = [
    {"id": "u1", "input": ["he sad it", "he said it"], "output": "he said it"},
    {"input": ["all right"], "output": "all right"},
    {"id": "u3", "hypotheses": [], "reference": "hello"},
]
CORRECTIONS = [
    {"id": "u3", "text": "", "kept": True},
    {"id": "u1", "text": "He said it."},
    {"id": "2", "text": "all right now"},
]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    return write(tmp_path / "lists.jsonl", LISTS)


@pytest.fixture
def corrections(tmp_path: Path) -> Path:
    return write(tmp_path / "corrections.jsonl", CORRECTIONS)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_json(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> dict[str, Any]:
    assert cli.main(["score", *map(str, words), "--json"]) == status
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def fail(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 1) -> str:
    """Run a command that fails; return its one line on stderr."""
    assert cli.main(["score", *map(str, words)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("audio-llm: error: ")
    return line


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ref.txt").write_text("He said: it!\nMr. Brown has 2 dogs\n")
    (tmp_path / "hyp.txt").write_text("he sad it\nmister brown has two dogs barking\n")
    files = [tmp_path / "ref.txt", tmp_path / "hyp.txt"]
    document = run_json(capsys, *files)
    assert list(document) == ["spoken", "letters"]
    text = document["spoken"]["text"]
    assert (text["substitutions"], text["deletions"], text["insertions"], text["words"]) == (1, 0, 1, 8)
    assert text["wer"] == pytest.approx(0.25)
    assert text["low"] <= 0.25 <= text["high"]
    document = run_json(capsys, *files, "--normalizer", "raw")
    assert list(document) == ["raw"]
    assert document["raw"]["text"]["wer"] > 0.5
    assert cli.main(["score", *map(str, files)]) == 0
    spoken, letters = capsys.readouterr().out.splitlines()
    assert spoken.startswith("text    WER 25.00 % (95 % interval ")
    assert spoken.endswith("1 substituted, 0 deleted, 1 inserted; normalizer spoken")
    assert letters.endswith("; normalizer letters")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "message"),
    [("a\nb\n", "a\n", "has 1 lines"), ("", "", "hold no words"), (None, "a\n", "cannot be read")],
)
def test_texts_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: str | None, hypothesis: str, message: str
) -> None:
    if reference is not None:
        (tmp_path / "ref.txt").write_text(reference)
    (tmp_path / "hyp.txt").write_text(hypothesis)
    assert message in fail(capsys, tmp_path / "ref.txt", tmp_path / "hyp.txt")


def test_lists(lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = run_json(capsys, lists)["spoken"]
    assert row["first"]["wer"] == pytest.approx(2 / 6)
    assert row["oracle"]["wer"] == pytest.approx(1 / 6)
    assert row["compositional_oracle"] == {"wer": pytest.approx(1 / 6), "missing_words": 1}
    assert (row["lists"], row["right"], row["right_rate"]) == (3, 1, pytest.approx(1 / 3))
    assert (row["hypotheses"], row["distinct_hypotheses"]) == (3, 3)
    assert "output" not in row


def test_lists_as_a_reader_sees_them(lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", str(lists)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 5
    assert all(line.endswith("; normalizer spoken") for line in lines[:5])
    assert all(line.endswith("; normalizer letters") for line in lines[5:])
    for line, words in zip(
        lines,
        [
            "first   WER 33.33 % (95 % interval ",
            "oracle  WER 16.67 % (95 % interval ",
            "compositional oracle 16.67 %: 1 of 6 words are in no hypothesis of their list;",
            "already correct 33.33 %: 1 of 3 lists;",
            "distinct hypotheses 3 of 3: 1.00 of 1.00 per list;",
        ],
        strict=False,
    ):
        assert line.startswith(words)


def test_corrections_are_matched_by_id(lists: Path, corrections: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = run_json(capsys, lists, corrections)["letters"]
    assert row["first"]["wer"] == pytest.approx(2 / 6)
    assert row["output"]["wer"] == pytest.approx(2 / 6)  # hello is missing, now is too much
    assert (row["relative_change"], row["recovered"]) == (0, 0)
    assert row["changed_rate"] == pytest.approx(2 / 3)
    assert (row["keep_correct_rate"], row["broken_rate"]) == (0, pytest.approx(1 / 3))
    assert (row["fix_wrong_rate"], row["improve_wrong_rate"]) == (0.5, 0.5)
    assert row["harmful_edit_rate"] == 0.5
    assert row["hallucinated_rate"] == pytest.approx(1 / 6)
    assert row["length_ratio"] == pytest.approx(6 / 6)
    assert 0 < row["p_value"] <= 1
    assert row["changes"]["novel_words"] == 1


def test_corrections_as_a_reader_sees_them(lists: Path, corrections: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", str(lists), str(corrections), "--normalizer", "basic", "--normalizer", "raw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["basic"] * 12 + ["raw"] * 12
    assert lines[5].startswith("output  WER 33.33 % (95 % interval ")
    assert lines[6].startswith("change +0.00 % relative (p ")
    assert "fraction of the oracle gap closed (RIR) 0.000;" in lines[6]
    assert lines[7].startswith("lists changed 66.67 %: 2 of 3, 1 better, 1 worse;")
    assert lines[8].startswith("correct kept 0.00 %: 0 of 1; newly wrong 33.33 % of all lists;")
    assert lines[9].startswith("fully corrected 50.00 %, improved 50.00 %: 1 and 1 of 2 wrong lists;")
    assert lines[10].startswith("harmful edit rate (HER) 50.00 %: 1 harmful, 1 helpful, 2 in total;")
    assert lines[11].startswith("hallucinated words 16.67 %: 1 novel, 0 repeated of 6; length ratio 1.000;")


def test_a_rate_without_items_is_a_dash_and_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = write(tmp_path / "lists.jsonl", LISTS[1:2])
    (tmp_path / "same.txt").write_text("all right\n")
    row = run_json(capsys, lists, tmp_path / "same.txt")["spoken"]
    assert (row["harmful_edit_rate"], row["recovered"], row["fix_wrong_rate"]) == (None, None, None)
    assert cli.main(["score", str(lists), str(tmp_path / "same.txt")]) == 0
    assert "harmful edit rate (HER) -: 0 harmful" in capsys.readouterr().out


def test_corrections_as_plain_text_and_lists_as_an_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array, texts = tmp_path / "lists", tmp_path / "texts"
    array.write_text(json.dumps(LISTS, indent=2))  # distinguished from a text by its content
    texts.write_text("he said it\n\nhello\n")
    row = run_json(capsys, array, texts)["spoken"]
    assert row["output"]["wer"] == pytest.approx(2 / 6)
    assert row["output"]["deletions"] == 2
    texts.write_text("he said it\nall right\n")
    assert f"has 2 lines, {array} has 3 lists" in fail(capsys, array, texts)


def test_what_correct_writes_is_scored(
    fakes: Any, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.changes = {"sad": "said\u2028"}  # a separator that is no end of a line in JSON lines
    out = tmp_path / "out.jsonl"
    assert cli.main(["correct", str(lists), "-o", str(out)]) == 0
    row = run_json(capsys, lists, out)["spoken"]
    assert row["output"]["wer"] == pytest.approx(1 / 6)
    assert row["changes"]["fixed"] == 1


def test_lists_of_one_id_are_matched_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = write(tmp_path / "lists.jsonl", [{"id": "x", "input": ["a"], "output": t} for t in ("a", "b")])
    corrections = write(tmp_path / "out.jsonl", [{"id": "x", "text": text} for text in ("a", "b")])
    assert run_json(capsys, lists, corrections)["spoken"]["output"]["wer"] == 0


def test_corrections_that_are_missing_or_of_other_lists(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = write(tmp_path / "fewer.jsonl", CORRECTIONS[:1])
    error = fail(capsys, lists, fewer)
    assert f"{fewer}: 2 lists of {lists} are not in it, first 'u1'" in error
    more = write(tmp_path / "more.jsonl", [*CORRECTIONS, CORRECTIONS[1], {"id": 9, "text": ""}])
    error = fail(capsys, lists, more)
    assert "2 of its lines belong to no list, first 'u1'" in error


@pytest.mark.parametrize("bad", ["nonsense", "[]", '{"id": "u1"}', '{"id": "u1", "text": null}', '{"text": "a"}'])
def test_broken_line_of_corrections(
    lists: Path, corrections: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    corrections.write_text(corrections.read_text() + bad)
    assert f"{corrections}: line 4 is not a correction" in fail(capsys, lists, corrections)


def test_broken_line_of_lists_is_named_and_the_others_are_scored(
    fakes: Any, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists.write_text('{"input": [null], "output": "a"}\n' + lists.read_text())
    out = tmp_path / "out.jsonl"
    assert cli.main(["correct", str(lists), "-o", str(out)]) == 1
    capsys.readouterr()
    assert run_json(capsys, lists, out, status=1)["spoken"]["lists"] == 3
    assert cli.main(["score", str(lists), "-q"]) == 1
    captured = capsys.readouterr()
    assert "in 3 utterances" in captured.out
    assert captured.err.startswith(f"audio-llm: error: {lists}: line 1 is not an N-best list: hypothesis 1 is null")
    assert captured.err.count("\n") == 1
    assert cli.main(["score", str(lists)]) == 1
    assert capsys.readouterr().err.splitlines()[1] == "3 lists scored, 1 skipped"
    lists.write_text("nonsense\nmore of it\n")
    assert "line 1 is not valid JSON" in fail(capsys, lists)


def test_lists_need_references_and_normalizers_known_names(
    tmp_path: Path, lists: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.jsonl").write_text('{"input": ["a"]}\n')
    assert "entry 1 (1) has no reference" in fail(capsys, tmp_path / "bare.jsonl")
    assert "use one of raw, basic" in fail(capsys, lists, "--normalizer", "raw", "--normalizer", "nice", status=2)
    assert "no such file" in fail(capsys, tmp_path / "none.jsonl", lists)
