"""The command line: files in and out, warnings, exit statuses, one JSON object from `bench`."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime import run
from audio_llm_realtime.cli import main
from audio_llm_realtime.enrollment import Enroller

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


@pytest.fixture
def files(make_model: Callable[..., Path], tmp_path: Path, sound: np.ndarray) -> Callable[..., list[str]]:
    """Return a function that writes a recording and gives the words of a command for it."""
    pytest.importorskip("onnxruntime")
    soundfile.write(tmp_path / "enrollment.wav", sound.T, RATE)
    model = make_model()

    def words(waveform: np.ndarray = sound, rate: int = RATE, *more: str, live: str = "") -> list[str]:
        soundfile.write(tmp_path / "in.wav", waveform.T, rate, subtype="FLOAT")
        speaker = ["--enroll-live", live] if live else ["--enroll", str(tmp_path / "enrollment.wav")]
        where = ["--input-file", str(tmp_path / "in.wav"), "--output-file", str(tmp_path / "out.wav")]
        return ["--model", str(model), *speaker, *where, *more]

    return words


def test_file_is_aligned_and_as_long(files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray) -> None:
    waveform = sound[:, :15_001]
    assert main([*files(waveform), "--report", str(tmp_path / "report.json")]) == 0
    out, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert (out.shape, rate) == ((15_001, 2), RATE)
    np.testing.assert_array_equal(out.T, waveform)  # the enrolled vector's gain is 1
    assert soundfile.info(tmp_path / "out.wav").subtype == "FLOAT"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["latency"]["algorithmic_ms"] == 12.0
    assert report["latency"]["total_ms"] == pytest.approx(12.0 + report["compute_ms"]["p99"], abs=1e-3)
    assert (report["misses"], report["enrolments"], report["model"]) == (0, 1, "tiny-model")
    assert report["chunks"] == (15_001 + 192 + 127) // 128
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_file_at_another_rate_comes_back_at_it(files: Callable[..., list[str]], tmp_path: Path, rate: int) -> None:
    time_s = np.arange(rate // 2 + 7) / rate
    tone = 0.3 * np.stack([np.sin(2 * np.pi * 700 * time_s), np.cos(2 * np.pi * 700 * time_s)]).astype(np.float32)
    assert main(files(tone, rate)) == 0
    out, out_rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert (out.shape[0], out_rate) == (tone.shape[1], rate)
    edge = rate // 50
    np.testing.assert_allclose(out.T[:, edge:-edge], tone[:, edge:-edge], atol=3e-3)


def test_one_channel_goes_to_both_ears_with_a_warning(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(sound[:1])) == 0
    assert "one channel, copied to both ears" in capsys.readouterr().err
    out, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    np.testing.assert_array_equal(out.T, np.repeat(sound[:1], 2, axis=0))


def test_non_finite_samples_are_counted_and_reported(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sound.copy()
    broken[1, 77:80] = np.nan
    assert main(files(broken)) == 0
    assert "not finite in: 3" in capsys.readouterr().err
    assert np.isfinite(soundfile.read(tmp_path / "out.wav")[0]).all()


def test_the_first_seconds_of_the_file_enroll_the_speaker(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(np.concatenate([sound, sound], axis=1), live="1")) == 0
    assert "enrolled from 1.0 s" in capsys.readouterr().err
    assert main([*files(sound[:, :8_000], live="1"), "--overwrite"]) == 1
    message = capsys.readouterr().err
    assert "in.wav: the file is shorter than the enrollment of 1 s (give --enroll FILE, or fewer seconds" in message
    assert main([*files(np.concatenate([0 * sound, sound], axis=1), live="1"), "--overwrite"]) == 1
    assert "in.wav: the left channel of the enrollment is silent (check the microphones)" in capsys.readouterr().err


@pytest.mark.parametrize("realtime", [False, True])
def test_only_a_paced_file_is_enrolled_concurrently_with_the_loop(
    files: Callable[..., list[str]],
    sound: np.ndarray,
    realtime: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads, enroll = [], Enroller.enroll

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return enroll(*arguments)

    monkeypatch.setattr(Enroller, "enroll", noted)
    waveform = np.concatenate([sound, sound[:, :2_000]], axis=1)
    assert main([*files(waveform, live="1"), *(["--realtime"] if realtime else [])]) == 0
    assert "enrolled from 1.0 s" in capsys.readouterr().err
    assert [thread is threading.main_thread() for thread in threads] == [not realtime]


def test_paced_file_equals_the_fast_one_where_nothing_is_late(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray
) -> None:
    waveform = sound[:, : RATE // 10]
    report = tmp_path / "report.json"
    assert main([*files(waveform), "--realtime", "--report", str(report)]) == 0
    out, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert out.shape == (RATE // 10, 2)
    if json.loads(report.read_text())["dry"] == 0:  # a busy machine may be late
        np.testing.assert_array_equal(out.T, waveform)


def test_extra_chunks_are_in_the_report_and_not_in_the_file(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray
) -> None:
    report = tmp_path / "report.json"
    assert main([*files(sound), "--spare", "2", "--report", str(report)]) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T, sound)
    assert json.loads(report.read_text())["latency"]["spare_ms"] == 16.0


def test_mix(files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray) -> None:
    assert main([*files(sound), "--mix", "0.25"]) == 0
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0].T, sound, atol=1e-6)


@pytest.mark.parametrize(
    "words, status, message",
    [
        (["--input-file", "x.wav"], 2, "go together"),
        (["--input-file", "x.wav", "--output-file", "y.wav", "--input-device", "0"], 2, "exclude each other"),
        (["--realtime"], 2, "--realtime is for files"),
        (["--overwrite"], 2, "--overwrite is for files"),
        (["--input-file", "x.wav", "--output-file", "y.wav", "--fifo"], 2, "add --realtime"),
        (["--mix", "1.5"], 2, "--mix"),
        (["--mix", "nan"], 2, "--mix"),
        (["--nonsense"], 2, "--nonsense"),
        (["--input-file", "x.wav", "--output-file", "y.wav"], 3, "no tse.json"),
    ],
)
def test_wrong_arguments(
    words: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tmp_path), *words]) == status
    assert message in capsys.readouterr().err


def test_wrong_files(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    words = files()
    cases = [
        (["--input-file", str(tmp_path / "none.wav")], "none.wav: no such file"),
        (["--output-file", str(tmp_path / "out.doc")], "out.doc: no audio format"),
        (["--output-file", str(tmp_path / "no" / "out.wav")], "the folder does not exist"),
        (["--output-file", str(tmp_path / "folder.wav")], "folder.wav: is a folder"),
        (["--enroll", str(tmp_path / "one.wav")], "one.wav: the enrollment has 1 channel, not 2"),
        (["--input-file", str(tmp_path / "text.wav")], "text.wav: not readable as audio"),
        (["--input-file", str(tmp_path / "three.wav")], "three.wav: 3 channels"),
        (["--input-file", str(tmp_path / "empty.wav")], "empty.wav: holds no samples"),
    ]
    soundfile.write(tmp_path / "one.wav", sound[0], RATE)
    soundfile.write(tmp_path / "three.wav", np.zeros((100, 3)), RATE)
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2)), RATE)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "folder.wav").mkdir()
    for more, message in cases:
        assert main([*words, *more]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_a_run_without_an_enrolled_speaker_is_a_usage_error(
    files: Callable[..., list[str]], make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = files()
    del words[2:4]
    assert main(words) == 2
    assert "give --enroll FILE" in capsys.readouterr().err
    assert main(["--model", str(make_model("without", enrolment=None)), *files()[2:]]) == 3
    assert "cannot enroll" in capsys.readouterr().err


def test_network_without_target_speaker_needs_no_enrollment(
    files: Callable[..., list[str]], make_model: Callable[..., Path], tmp_path: Path, sound: np.ndarray
) -> None:
    words = files()[4:]
    model = ["--model", str(make_model("open", conditioned=False))]
    assert main([*model, *words]) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T, sound)


@pytest.mark.parametrize("speaker", [["--enroll", "FILE"], ["--enroll-live", "1"]])
def test_network_without_target_speaker_rejects_an_enrollment(
    files: Callable[..., list[str]],
    make_model: Callable[..., Path],
    speaker: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = files()
    model = make_model("open", conditioned=False)
    speaker = [words[3] if word == "FILE" else word for word in speaker]
    assert main(["--model", str(model), *speaker, *words[4:]]) == 2
    assert f"{model}: this model does not support enrollment (leave out --enroll" in capsys.readouterr().err


def test_no_existing_file_is_overwritten_by_default(
    files: Callable[..., list[str]],
    tmp_path: Path,
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = files()
    (tmp_path / "out.wav").write_bytes(b"mine")
    os.link(tmp_path / "in.wav", tmp_path / "linked.wav")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.wav")}
    with monkeypatch.context() as patch:
        patch.delattr(run, "read_sound")  # nothing is processed
        for more, message in (
            ([], "out.wav: already exists (add --overwrite to replace it)"),
            (["--overwrite", "--output-file", str(tmp_path / "in.wav")], "in.wav: is the input itself"),
            (["--overwrite", "--output-file", str(tmp_path / "linked.wav")], "linked.wav: is the input itself"),
            (
                ["--overwrite", "--output-file", str(tmp_path / "enrollment.wav")],
                "enrollment.wav: is the enrollment itself",
            ),
            (["--overwrite", "--report", str(tmp_path / "in.wav")], "in.wav: is the input itself"),
            (["--overwrite", "--report", str(tmp_path / "x" / ".." / "out.wav")], "out.wav: is the output itself"),
            (["--overwrite", "--report", str(tmp_path)], f"{tmp_path}: is a folder"),
            (["--overwrite", "--report", str(tmp_path / "no" / "r.json")], "r.json: the folder does not exist"),
        ):
            assert main([*words, *more]) == 2
            assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*.wav")} == before
    assert main([*words, "--overwrite"]) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T, sound)


def test_report_that_cannot_be_written_is_named_and_leaves_nothing(
    files: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if path.name == ".report.json.part":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert main([*files(), "--report", str(tmp_path / "report.json")]) == 1
    assert "report.json: not written: No space left on device (" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_samples_beyond_full_scale_are_reported(
    files: Callable[..., list[str]], tmp_path: Path, sound: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = sound.copy()
    loud[:, 5_000:5_003] = 1.5
    words = files(loud)
    assert main(words) == 0
    assert "clipped" not in capsys.readouterr().err  # float samples are not clipped
    assert main([*words, "--output-file", str(tmp_path / "out.flac")]) == 0
    assert "out.flac: 6 samples exceeded full scale and were clipped" in capsys.readouterr().err


def test_progress_is_for_a_terminal(
    files: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = files()
    assert main(words) == 0
    assert "/127" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main([*words, "--overwrite"]) == 0
    message = capsys.readouterr().err
    assert "\r125/127\r127/127\n" in message
    assert "\r\x1b[Kaudio-llm-hear: 127 chunks" in message


def test_refused_scheduling_is_reported_once_and_before_processing(
    files: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    words = [*files(), "--cpu", "100000"]
    assert main(words) == 0
    assert capsys.readouterr().err.count("core 100000 only was not granted") == 1
    monkeypatch.setattr(run, "_run_aligned", stop)
    assert main([*words, "--overwrite"]) == 130
    assert "core 100000 only was not granted" in capsys.readouterr().err


def test_bench_prints_a_summary(make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    models = [str(make_model(name)) for name in ("one", "two")]
    assert main(["bench", "--model", models[0], "--compare", models[1], "--chunks", "50", "--cpu", "100000"]) == 0
    message = capsys.readouterr()
    assert "tiny-two takes" in message.out
    assert "running on core 100000 only was not granted" in message.err
    words = ["--chunks", "5", "--paced", "--share", "0.5", "--cpu", "100000"]
    assert main(["bench", "--model", models[0], *words]) == 2
    assert "the competing load on core 100000 does not run" in capsys.readouterr().err


def test_bench_prints_one_object(make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    models = [str(make_model(name)) for name in ("one", "two")]
    assert main(["bench", "--model", models[0], "--compare", models[1], "--chunks", "600", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    for part in (result, result["compare"]):
        assert set(part["compute_ms"]) == {"p50", "p95", "p99", "p999", "max"}
        assert part["compute_ms"]["p50"] <= part["compute_ms"]["max"]
        assert part["chunks"] == part["times_of"] == 600
        assert part["stalls"] <= part["misses"]
        assert part["cpu_ms_per_chunk"] > 0
    assert result["enrolment_cpu_s"] >= 0.0
    assert result["cpu_ratio"] == pytest.approx(
        result["compare"]["cpu_ms_per_chunk"] / result["cpu_ms_per_chunk"], 0.01
    )
    assert (result["paced"], result["share"], result["share_by"]) == (False, 1.0, "whole")
    assert set(result["machine"]) == {"cpu", "cores", "load", "load_before", "system"}
    assert {"python", "numpy", "onnxruntime", "audio-llm-realtime"} <= set(result["versions"])
    assert isinstance(result["memory_growth_bytes"], int)


def test_paced_bench_with_a_competing_load_reports_the_core_sharing(
    make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    words = ["--model", str(make_model()), "--chunks", "12", "--paced", "--share", "0.5", "--no-gc", "--json"]
    assert main(["bench", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["share_by"] in ("fifo", "equal")
    assert result["paced"] is True
    assert result["chunks"] + result["skipped"] <= 13  # how many are in time depends on the machine


@pytest.mark.parametrize("words", [["--fifo"], ["--share", "0.5"], ["--chunks", "0"], ["--share", "0.7"]])
def test_bench_that_would_mislead_is_refused(
    words: list[str], make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", str(make_model()), *words]) == 2
    assert "audio-llm-hear: error:" in capsys.readouterr().err


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["bench", "--help"], ["devices", "--help"], ["--version"]):
        assert main(words) == 0
        assert "audio-llm-hear" in capsys.readouterr().out
