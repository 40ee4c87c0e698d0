"""`prepare` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_llm import audio, cli
from audio_llm.asr import engines
from audio_llm.touchtts.prepare_filters import CER

RATE = 16_000
TEXT = "the cat sad on the mat today"


def record(path: Path) -> None:
    """Write something like speech: 2.5 s of syllables of changing loudness, with pauses around them."""
    time_s = np.arange(5 * RATE // 2) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 20 * np.sin(2 * np.pi * 0.7 * time_s)) / RATE
    voice = sum(np.exp(-abs(k * 130 - 600) / 500) * np.sin(k * phase) for k in range(1, 25))
    voice *= 0.55 - 0.45 * np.cos(2 * np.pi * 4 * time_s)
    voice *= np.random.default_rng(0).uniform(0.4, 1.0, 10)[(4 * time_s).astype(int)]
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, np.pad(0.3 * voice / np.abs(voice).max(), RATE), RATE)


class FakeRecognizers:
    """What stands for each recognizer: which were loaded, and what they hear."""

    def __init__(self, fakes: Any) -> None:
        self.fakes = fakes
        self.loaded: list[tuple[Any, ...]] = []

    def load(self, *arguments: Any) -> Any:
        self.loaded.append(arguments)
        return self.fakes


@pytest.fixture
def fake_recognizers(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> FakeRecognizers:
    found = FakeRecognizers(fakes)
    fakes.text = TEXT
    monkeypatch.setattr(engines, "load_recognizer", found.load)
    return found


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a folder with two recordings, one of them with its text."""
    record(tmp_path / "raw" / "a.wav")
    record(tmp_path / "raw" / "deep" / "a.wav")
    (tmp_path / "raw" / "deep" / "a.txt").write_text(f"{TEXT.capitalize()}.\n", encoding="utf-8")
    return tmp_path / "raw"


def prepare(tmp_path: Path, *words: str | Path) -> int:
    return cli.main(["prepare", *map(str, words), "-o", str(tmp_path / "out")])


def rows(tmp_path: Path, name: str = "manifest") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_becomes_clips(
    raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, raw, "--second-asr", "whisper", "--second-model", "w") == 0
    shown = capsys.readouterr()
    assert [row["audio_filepath"] for row in rows(tmp_path)] == ["clips/a-0001.flac", "clips/deep__a-0001.flac"]
    assert [row["text"] for row in rows(tmp_path)] == [TEXT, f"{TEXT.capitalize()}."]
    assert [row["measure"] for row in rows(tmp_path)] == [CER, CER]
    assert {arguments[:2] for arguments in fake_recognizers.loaded} == {("ctc", None), ("whisper", "w")}
    assert len(fake_recognizers.loaded) == 2  # whisper is loaded once for both of its tasks
    assert any(line.startswith("kept ") and " 2 " in line for line in shown.out.splitlines())
    assert "[2/2]" in shown.err
    assert "2 done" in shown.err


def test_the_same_command_resumes(
    raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, raw, "--second-asr", "sphinx") == 0
    first = capsys.readouterr().out
    fake_recognizers.loaded.clear()
    assert prepare(tmp_path, raw, "--second-asr", "sphinx") == 0
    shown = capsys.readouterr()
    assert fake_recognizers.loaded == []
    assert shown.out == first
    assert "2 done by an earlier run" in shown.err
    assert prepare(tmp_path, raw, "--second-asr", "sphinx", "--min-s", "1.5", "-q") == 0
    assert fake_recognizers.loaded


def test_clips_of_the_output_folder_are_not_inputs(
    raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers
) -> None:
    for _ in range(2):
        assert cli.main(["prepare", str(raw), "-o", str(raw / "out"), "--second-asr", "sphinx", "-q"]) == 0
    assert len((raw / "out" / "manifest.jsonl").read_text().splitlines()) == 2


def test_a_manifest_gives_texts_and_speakers(tmp_path: Path, fake_recognizers: FakeRecognizers) -> None:
    record(tmp_path / "sounds" / "one.wav")
    lines = [{"audio_filepath": "../sounds/one.wav", "text": TEXT, "speaker": "ann", "duration": 4.5}]
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "all.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prepare(tmp_path, manifest, "--second-asr", "sphinx", "-q") == 0
    (row,) = rows(tmp_path)
    assert (row["text"], row["speaker"], row["audio_filepath"]) == (TEXT, "ann", "clips/sounds__one-0001.flac")
    assert audio.probe(tmp_path / "out" / row["audio_filepath"]).duration_s == row["duration"]


def test_offsets_in_a_manifest_are_refused(
    tmp_path: Path, fake_recognizers: FakeRecognizers, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "all.jsonl").write_text('{"audio_filepath": "one.wav", "text": "x", "offset": 2.5}\n')
    assert prepare(tmp_path, tmp_path / "all.jsonl") == 1
    assert "offset" in error_line(capsys)


def test_bad_files_do_not_stop_the_rest(
    raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "b.wav").write_bytes(b"this is no sound")
    (raw / "c.wav").write_bytes((raw / "a.wav").read_bytes())
    (raw / "c.txt").write_bytes(b"\xff\xfe\xfd")
    assert prepare(tmp_path, raw, "-q", "--second-asr", "sphinx") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"audio-llm: error: {raw / 'b.wav'}: cannot be read as sound")
    assert "c.txt: cannot be read as text" in lines[1]
    assert len(rows(tmp_path)) == 2
    assert [row["reason"] for row in rows(tmp_path, "dropped")] == ["unreadable", "unreadable"]


@pytest.mark.parametrize("suffix", ["json", "html"])
def test_the_report_is_written(raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers, suffix: str) -> None:
    report = tmp_path / "reports" / f"report.{suffix}"
    assert prepare(tmp_path, raw, "--report", report, "-q", "--second-asr", "sphinx", "--max-disagreement", "0.2") == 0
    text = report.read_text(encoding="utf-8")
    if suffix == "html":
        assert text.startswith("<!DOCTYPE html>")
        assert "max_disagreement 0.2" in text
        return
    document = json.loads(text)
    assert document["settings"] == {
        "judge": "sphinx",
        "first": document["settings"]["first"],
        "second": "sphinx",
        "min_s": 2.0,
        "max_s": 30.0,
        "max_disagreement": 0.2,
    }
    assert document["settings"]["first"].startswith("ctc ctc-small:")
    assert document["kept"]["clips"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "report.txt"], "no report of that kind"),
        (["--asr", "siri"], "no recognizer is named 'siri'"),
        (["--second-asr", "ctc"], "ctc cannot verify its own transcripts"),
        (["--second-model", "x"], "needs a recognizer"),
        (["--max-disagreement", "0.5"], "would limit two different measures"),
        (["--min-s", "9", "--max-s", "8"], "no clip has 9 to 8 s"),
    ],
)
def test_invalid_options_are_reported_before_any_work(
    raw: Path,
    tmp_path: Path,
    fake_recognizers: FakeRecognizers,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert prepare(tmp_path, raw, *options) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_option_without_effect_is_refused(
    raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, raw / "deep", "--asr", "ctc") == 2
    assert "every recording has its text" in error_line(capsys)


def test_the_second_recognizer_is_never_the_first(raw: Path, tmp_path: Path, fake_recognizers: FakeRecognizers) -> None:
    assert prepare(tmp_path, raw / "a.wav", "--asr", "sphinx", "-q") == 0
    assert [arguments[0] for arguments in fake_recognizers.loaded] == ["sphinx", "ctc"]


def test_input_without_sound_files_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert prepare(tmp_path, tmp_path / "none") == 4
    assert "no sound file" in error_line(capsys)
