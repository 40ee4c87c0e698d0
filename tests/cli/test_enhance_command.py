"""`enhance` as a user types it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_llm import audio, cli, hub
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork

torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Return a mask network that halves everything."""
    torch.manual_seed(0)
    network = MaskNetwork(MaskConfig(width=4, blocks=1, expansion=1, taps=2))
    with torch.no_grad():
        for layer in network.leave:
            layer.bias.mul_(0.5)
    return str(hub.save_model(tmp_path / "tiny", asdict(network.config), network.state_dict(), "mask", "Tiny.\n"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of recordings of different kinds."""
    random = np.random.default_rng(0)
    for name, samples, rate, channels in (("a.wav", 8000, 16_000, 1), ("deep/b.flac", 9000, 44_100, 2)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, 0.1 * random.standard_normal((samples, channels)), rate)
    return tmp_path / "in"


@pytest.fixture
def broken(folder: Path) -> Path:
    (folder / "broken.wav").write_bytes(b"this is no sound, whatever its name says")
    return folder


def run(model: str, folder: Path, *more: str) -> int:
    return cli.main(["enhance", str(folder), "-o", str(folder.parent / "out"), "--model", model, *more])


def test_a_tree_is_enhanced_with_results_on_stdout_and_progress_on_stderr(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, folder) == 0
    shown, out = capsys.readouterr(), folder.parent / "out"
    assert shown.out.splitlines() == [str(out / "a.wav"), str(out / "deep/b.flac")]
    assert "[1/2]" in shown.err
    assert "2 done" in shown.err
    assert "the enhanced sound holds nothing above 8000 Hz" in shown.err
    for name in ("a.wav", "deep/b.flac"):
        one, other = soundfile.info(str(folder / name)), soundfile.info(str(out / name))
        assert (one.frames, one.samplerate, one.channels) == (other.frames, other.samplerate, other.channels)
        assert one.format == other.format
    before, after = audio.read(folder / "a.wav"), audio.read(out / "a.wav")
    assert np.dot(before, after) / np.dot(before, before) == pytest.approx(0.5, abs=0.02)


def test_a_failed_file_does_not_stop_the_others(model: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, broken, "-q") == 1
    shown, out = capsys.readouterr(), broken.parent / "out"
    assert len(shown.out.splitlines()) == 2
    (line,) = shown.err.splitlines()
    assert line.startswith(f"audio-llm: error: {broken / 'broken.wav'}: cannot be read as sound")
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert found == [".audio-llm-journal.jsonl", "a.wav", "deep/b.flac"]


def test_a_second_run_skips_what_is_done(model: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, broken) == 1
    out = broken.parent / "out"
    stamps = {path: path.stat().st_mtime_ns for path in (out / "a.wav", out / "deep/b.flac")}
    audio.write(broken / "broken.wav", np.full(4000, 0.1), 16_000)
    capsys.readouterr()
    assert run(model, broken) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(out / "broken.wav")]
    assert "1 done, 2 done by an earlier run" in shown.err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert run(model, broken, "--overwrite") == 0
    assert "3 done;" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in stamps.items())


def test_other_settings_are_done_again(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, folder) == 0
    first = (folder.parent / "out/a.wav").read_bytes()
    capsys.readouterr()
    assert run(model, folder, "--mix", "1") == 0
    assert "2 done;" in capsys.readouterr().err
    assert (folder.parent / "out/a.wav").read_bytes() != first
    np.testing.assert_allclose(audio.read(folder.parent / "out/a.wav"), audio.read(folder / "a.wav"), atol=1.01 / 32768)


def test_the_report_tells_of_every_stretch(model: str, broken: Path) -> None:
    report = broken.parent / "report.jsonl"
    assert run(model, broken, "--report", str(report)) == 1
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(Path(row["input"]).name, row["channel"]) for row in rows] == [("a.wav", 0), ("b.flac", 0), ("b.flac", 1)]
    for row in rows:
        assert Path(row["output"]).is_file()
        assert row["start_s"] == 0.0
        assert row["end_s"] == pytest.approx(soundfile.info(row["input"]).duration, abs=1e-3)
        assert row["action"] == "mask"
    assert rows[0]["input_db"] == pytest.approx(-20.0, abs=0.5)
    assert all(row["input_db"] - row["output_db"] == pytest.approx(6.0, abs=0.3) for row in rows)  # half the amplitude


def test_the_report_outlives_a_stop_and_is_whole_after_all_runs(model: str, broken: Path) -> None:
    report = broken.parent / "report.jsonl"
    assert run(model, broken, "--report", str(report)) == 1
    audio.write(broken / "broken.wav", np.full(4000, 0.1), 16_000)
    assert run(model, broken, "--report", str(report)) == 0
    names = [Path(json.loads(line)["input"]).name for line in report.read_text().splitlines()]
    assert names == ["a.wav", "b.flac", "b.flac", "broken.wav"]
    assert run(model, broken, "--report", str(report)) == 0  # nothing is done, nothing is lost
    assert run(model, broken, "--report", str(report), "--mix", "1") == 0  # all rows are replaced
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [Path(row["input"]).name for row in rows] == names


def test_another_file_is_not_taken_for_a_report(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letter = folder.parent / "letter.txt"
    letter.write_text("Dear reader\n")
    assert run(model, folder, "--report", str(letter)) == 2
    assert "is no report of this command" in capsys.readouterr().err
    assert letter.read_text() == "Dear reader\n"


def test_inputs_are_never_overwritten(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "a.wav").read_bytes()
    command = ["enhance", str(folder / "a.wav"), "-o", str(folder), "--model", model, "-q"]
    assert cli.main(command) == 1
    assert "--overwrite, or another folder" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 1
    assert "name another output" in capsys.readouterr().err
    assert (folder / "a.wav").read_bytes() == before


def test_formats_that_cannot_be_written_become_wav(model: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/x.aiff", 0.1 * np.ones(4000), 16_000)
    status = cli.main(["enhance", str(tmp_path / "in/x.aiff"), "-o", str(tmp_path / "out"), "--model", model, "-q"])
    assert status == 0
    assert soundfile.info(str(tmp_path / "out/x.wav")).frames == 4000


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["--mix", "2"], 2, "0 to 1"),
        (["--mode", "loud"], 2, "loud"),
        (["--mode", "generative"], 2, "needs language models"),
        (["--seed", "-1"], 2, "0 or more"),
        (["--model", "no-such-model"], 3, "no-such-model"),
    ],
)
def test_what_cannot_be_is_one_line(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, line: str
) -> None:
    assert run(model, folder, "-q", *words) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert line in shown.err


def test_input_without_sound_files_is_an_error(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert run(model, tmp_path / "in", "-q") == 4
    assert "no sound file" in capsys.readouterr().err
