"""Bad input through the command line: a typed error of one line or a sensible result, and the other files go on."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_llm import cli, hub

RATE = 16_000
PROJECT = Path(cli.__file__).parents[2]
SAMPLES = PROJECT / "samples" / "speech"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(hearer: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command and gives its status, stdout and stderr, and checks its manners."""

    def command(*words: str | Path) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return command


def assert_one_error(error: str, path: Path, *parts: str) -> None:
    """Check for one line that names the file, what is wrong and what to do."""
    lines = [line for line in error.splitlines() if line.startswith("audio-llm: error: ")]
    assert len(lines) == 1, error
    assert lines[0].count(str(path)) >= 1
    assert lines[0].endswith(")")  # the remedy
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("samples", [0, 1, 2, 100])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_hardly_any_sound_is_an_empty_transcript(run: Run, tmp_path: Path, samples: int, kind: str) -> None:
    path = tmp_path / f"short.{kind}"
    soundfile.write(path, np.full(samples, 0.1, np.float32), RATE)
    status, out, error = run("transcribe", path)
    assert (status, out) == (0, "\n")
    assert "error" not in error


def test_file_of_no_bytes_is_an_empty_transcript(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").write_bytes(b"")
    out = tmp_path / "out"
    assert run("transcribe", tmp_path / "nothing.wav", "-o", out, "-f", "txt,srt,vtt,tsv,json,nbest")[0] == 0
    assert (out / "nothing.txt").read_text().strip() == ""
    document = json.loads((out / "nothing.json").read_text())
    assert document["text"] == ""


@pytest.mark.parametrize("level", [0.0, 0.001, 0.1])
def test_silence_and_noise_are_an_empty_transcript(run: Run, tmp_path: Path, level: float) -> None:
    noise = level * np.random.default_rng(0).standard_normal(4 * RATE)
    soundfile.write(tmp_path / "noise.wav", noise, RATE)
    assert run("transcribe", tmp_path / "noise.wav")[:2] == (0, "\n")


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_rate(run: Run, tmp_path: Path, speech: np.ndarray, rate: int) -> None:
    from audio_llm.audio import resample

    soundfile.write(tmp_path / "talk.wav", resample(speech, RATE, rate), rate)
    assert run("transcribe", tmp_path / "talk.wav")[:2] == (0, "speech\n")


def test_64_channels(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    soundfile.write(tmp_path / "many.wav", np.repeat(speech[:, None], 64, axis=1), RATE)
    assert run("transcribe", tmp_path / "many.wav")[:2] == (0, "speech\n")


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_cut_off_file_gives_what_is_there_and_a_warning(
    run: Run, tmp_path: Path, speech: np.ndarray, kind: str
) -> None:
    path = tmp_path / f"cut.{kind}"
    sound = np.concatenate([speech, 0.1 * np.random.default_rng(0).standard_normal(RATE), speech])
    soundfile.write(path, sound.astype(np.float32), RATE)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    status, _, error = run("transcribe", path, "-o", tmp_path / "out")
    assert status == 0
    assert "speech" in (tmp_path / "out/cut.txt").read_text()
    (warning,) = [line for line in error.splitlines() if line.startswith("audio-llm: warning: ")]
    assert str(path) in warning
    assert "s lost" in warning or "could be read" in warning


def test_not_finite_samples(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        sound = speech.copy()
        sound[RATE] = value
        soundfile.write(tmp_path / name, sound, RATE, subtype="FLOAT")
        status, out, error = run("transcribe", tmp_path / name)
        assert (status, out) == (1, "")
        assert_one_error(error, tmp_path / name, "NaN or infinite sample at 1.00 s")


def zero_hertz() -> bytes:
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 8, b"WAVE", b"fmt ", 16, 1, 1, 0, 0, 2, 16, b"data", 8)
    return header + b"\0" * 8


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "zero_hz.wav": (zero_hertz(), "rate"),
    "text.wav": (b"this is a letter, not a sound\n" * 50, "cannot be read as sound"),
    "header_only.flac": (b"fLaC", "cannot be read as sound"),
    "random.mp3": (bytes(range(256)) * 40, "cannot be read as sound"),
    "page.ogg": (b"<!doctype html><html></html>" * 20, "cannot be read as sound"),
    "phone.m4a": (b"\0\0\0\x20ftypM4A \0\0\0\0" + b"\0" * 500, "without its index (moov)"),
    "renamed.wav": (b"\0\0\0\x20ftypmp42\0\0\0\0" + b"\0" * 500, "without its index (moov)"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_file_that_is_no_sound(run: Run, tmp_path: Path, name: str) -> None:
    data, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    status, out, error = run("transcribe", tmp_path / name)
    assert (status, out) == (1, "")
    assert_one_error(error, tmp_path / name, message)


def test_bad_files_do_not_stop_a_batch(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (data, _) in BAD_FILES.items():
        (folder / name).write_bytes(data)
    for name in ("a.wav", "n.wav", "z.wav"):
        soundfile.write(folder / name, speech, RATE)
    status, _, error = run("transcribe", folder, "-o", tmp_path / "out")
    assert status == 1
    errors = [line for line in error.splitlines() if line.startswith("audio-llm: error: ")]
    for name in BAD_FILES:
        assert sum(str(folder / name) in line for line in errors) == 1, name
    assert {path.name for path in (tmp_path / "out").glob("*.txt")} == {"a.txt", "n.txt", "z.txt"}
    status, _, error = run("transcribe", folder, "-o", tmp_path / "out")
    assert status == 1  # the bad ones are tried again, the good ones are not
    assert "3 done by an earlier run" in error


def test_missing_file_does_not_stop_the_others(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    soundfile.write(tmp_path / "there.wav", speech, RATE)
    status, out, error = run("transcribe", tmp_path / "not_there.wav", tmp_path / "there.wav", "-f", "txt")
    assert (status, out.strip()) == (1, "speech")
    assert_one_error(error, tmp_path / "not_there.wav")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    soundfile.write(tmp_path / "secret.wav", speech, RATE)
    (tmp_path / "secret.wav").chmod(0)
    status, _, error = run("transcribe", tmp_path / "secret.wav")
    assert status == 1
    assert_one_error(error, tmp_path / "secret.wav", "chmod")


def test_broken_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    status, _, error = run("transcribe", tmp_path / "link.wav")
    assert status == 1
    assert_one_error(error, tmp_path / "link.wav")


def test_pipe_in_a_folder_does_not_hang(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    os.mkfifo(tmp_path / "pipe.wav")
    result: list[tuple[int, str, str]] = []
    thread = threading.Thread(target=lambda: result.append(run("transcribe", tmp_path, "-f", "txt")), daemon=True)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        (tmp_path / "pipe.wav").write_bytes(b"")  # lets the reader go
        thread.join(20)
        pytest.fail("the folder's pipe was opened")
    assert "speech" in result[0][1]


def test_standard_input(run: Run, tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", speech, RATE)
    with (tmp_path / "a.flac").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("transcribe", "-")[:2] == (0, "speech\n")


def test_output_folder_that_is_a_file(run: Run, tmp_path: Path, speech: np.ndarray) -> None:
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    (tmp_path / "out").write_text("")
    status, _, error = run("transcribe", tmp_path / "a.wav", "-o", tmp_path / "out")
    assert status == 2
    assert_one_error(error, tmp_path / "out")


def test_full_disk_is_each_files_failure(
    run: Run, tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    soundfile.write(tmp_path / "b.wav", speech, RATE)
    real = os.replace

    def replace(source: str, target: str) -> None:
        if Path(target).name == "a.txt":
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    status, _, error = run("transcribe", tmp_path / "a.wav", tmp_path / "b.wav", "-o", tmp_path / "out")
    assert status == 1
    assert "No space left on device" in error
    assert [path.name for path in (tmp_path / "out").glob("*.txt")] == ["b.txt"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return hub.save_model(tmp_path / "model", {}, {"w": torch.zeros(4)}, "dlm", "# card\n")


def wrong_hash(model: Path) -> Path:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-1] + b"\1")
    return model / "model.safetensors"


def wrong_version(model: Path) -> Path:
    document = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**document, "format_version": 99}))
    return model / "config.json"


def pickled_weights(model: Path) -> Path:
    (model / "model.safetensors").write_bytes(pickle.dumps({"w": [0.0]}))
    return model / "model.safetensors"


def pickle_beside(model: Path) -> Path:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"w": [0.0]}))
    return model / "pytorch_model.bin"


def no_config(model: Path) -> Path:
    (model / "config.json").unlink()
    return model


def wrong_kind(model: Path) -> Path:
    return hub.save_model(model, {}, {"w": torch.zeros(4)}, "lm", "# card\n")


DAMAGES = [wrong_hash, wrong_version, pickled_weights, pickle_beside, no_config, wrong_kind]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model(
    run: Run, tmp_path: Path, speech: np.ndarray, model: Path, damage: Callable[[Path], Path]
) -> None:
    pytest.importorskip("audio_llm.dlm.corrector")
    soundfile.write(tmp_path / "a.wav", speech, RATE)
    culprit = damage(model)
    status, out, error = run("transcribe", tmp_path / "a.wav", "--correct", "dlm", "--correct-model", model)
    assert (status, out) == (3, "")
    assert_one_error(error, culprit)


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_damaged_model_does_not_verify(run: Run, model: Path, damage: Callable[[Path], Path]) -> None:
    culprit = damage(model)
    status, out, error = run("models", "verify", model)
    assert (status, out) == (3, "")
    assert_one_error(error, culprit)


def test_default_recogniser_bears_odd_sound(
    tmp_path: Path, speech: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real recogniser: whatever it makes of these, it ends, and says nothing but words."""
    sounds = {
        "buzz": speech[: 2 * RATE],
        "clipped": np.sign(speech[:RATE]),
        "clicks": np.where(np.arange(RATE) % 4_000 == 0, 1.0, 0.0),
    }
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound.astype(np.float32), RATE)
    assert cli.main(["transcribe", str(tmp_path), "-o", str(tmp_path / "out"), "-f", "txt,json", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert len(list((tmp_path / "out").glob("*.json"))) == len(sounds)
    for path in (tmp_path / "out").glob("*.txt"):
        assert not set("<>[]()") & set(path.read_text())


@pytest.mark.slow
def test_samples_are_transcribed(tmp_path: Path) -> None:
    if not SAMPLES.is_dir() or not any(SAMPLES.iterdir()):
        pytest.skip("no samples in this tree")
    command = [sys.executable, "-m", "audio_llm", "transcribe", str(SAMPLES), "-o", str(tmp_path), "-f", "txt,srt"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    texts = [path.read_text().split() for path in tmp_path.rglob("*.txt")]
    assert texts
    assert all(texts)


_LONG = """
import resource, sys
from audio_llm.asr import engines
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.cli import main
from audio_llm.nbest import Hypothesis, NBest

class Hearer(SegmentRecognizer):
    version = "1"

    def recognize(self, waveform, nbest=5, id=""):
        return NBest(id, (Hypothesis("speech", -1.0),))

engines.load_recognizer = lambda *arguments: Hearer()
engines.resolve_recognizer = lambda *arguments: engines.ResolvedRecognizer("sphinx", None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = main(["transcribe", sys.argv[1]])
print("grown_kb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_hours(tmp_path: Path, speech: np.ndarray) -> None:
    path = tmp_path / "long.flac"
    ten_minutes = np.zeros(600 * RATE, np.float32)
    ten_minutes[: len(speech)] = speech
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(60):
            file.write(ten_minutes)
    done = subprocess.run(
        [sys.executable, "-c", _LONG, str(path)], cwd=PROJECT, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["speech"] * 60
    grown_kb = int(done.stderr.split("grown_kb")[1])
    assert grown_kb < 200_000  # as float32 at 16 kHz the sound alone would be 2.3 GB
