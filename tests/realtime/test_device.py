"""Devices, with a fake PortAudio: callbacks, keys, a device that goes away, and its last report."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime import controls, run
from audio_llm_realtime.cli import main
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.device import choose_devices, count_status, list_devices
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.errors import DeviceError

CHUNK = 128
LEVEL = 0.1  # mean of the microphone signals


class PortAudioError(Exception):
    """What sounddevice raises."""


class FakeStream:
    """Calls back at once for a fixed number of blocks, and waits for the worker.

    The output must be the delayed input: the tiny model's gain is 1.
    """

    blocks = 150
    latency = (0.010, 0.020)

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.active = True
        self.recorded: list[np.ndarray] = []
        self.played: list[np.ndarray] = []

    def __enter__(self) -> FakeStream:
        for block in range(self.blocks):
            self.exchange(block)
        return self

    def exchange(self, block: int) -> None:
        frames, channels = self.options["blocksize"], self.options["channels"]
        time_s = np.arange(block * frames, (block + 1) * frames)[:, None] / self.options["samplerate"]
        tones = 0.3 * np.sin(2 * np.pi * np.array([500.0, 900.0]) * time_s) + LEVEL  # different at both ears
        self.recorded.append(tones[:, : channels[0]].astype(np.float32))
        self.played.append(np.full((frames, channels[1]), np.nan, np.float32))
        status = SimpleNamespace(
            input_overflow=True, input_underflow=False, output_overflow=False, output_underflow=True
        )
        self.options["callback"](self.recorded[-1], self.played[-1], frames, None, status if block == 3 else None)
        worker, until = self.options["callback"].__self__._worker, time.monotonic() + 5.0
        while worker.ready and time.monotonic() < until:
            time.sleep(0.0002)

    def __exit__(self, *_: object) -> None:
        self.active = False
        if not self.played:
            return
        recorded, played = np.concatenate(self.recorded), np.concatenate(self.played)
        delay, begun = 3 * (CHUNK + 64) + 96, 3000  # frames; at the beginning the filters ring
        expected = np.broadcast_to(recorded, played.shape)[begun - delay : -delay]
        np.testing.assert_allclose(played[begun:], expected, atol=3e-3)


class LastingStream(FakeStream):
    """Sends blocks in a thread of its own until it is closed."""

    def __enter__(self) -> LastingStream:
        self.thread = threading.Thread(target=self.go_on)
        self.thread.start()
        return self

    def go_on(self) -> None:
        for block in itertools.count():
            if not self.active:
                return
            self.exchange(block)

    def __exit__(self, *_: object) -> None:
        self.active = False
        self.thread.join()
        super().__exit__()


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace sounddevice by a fake: 0 is mono in, 1 is stereo in and out, 2 runs at 44100 Hz only."""

    def device(name: str, inputs: int, outputs: int, rate: float) -> dict[str, Any]:
        return {
            "name": name, "max_input_channels": inputs, "max_output_channels": outputs, "default_samplerate": rate
        }  # fmt: skip

    devices = [device("lapel", 1, 0, 48_000.0), device("ears", 2, 2, 48_000.0), device("old", 2, 2, 44_100.0)]

    def check(device: int, channels: int, dtype: str, samplerate: int) -> None:
        if devices[device]["default_samplerate"] != samplerate:
            raise PortAudioError("Invalid sample rate")

    module = SimpleNamespace(
        PortAudioError=PortAudioError,
        Stream=FakeStream,
        default=SimpleNamespace(device=[1, 1]),
        query_devices=lambda: devices,
        check_input_settings=check,
        check_output_settings=check,
    )
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


@pytest.fixture
def words(make_model: Callable[..., Path], tmp_path: Path, sound: np.ndarray) -> list[str]:
    pytest.importorskip("onnxruntime")
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "enrollment.wav", sound.T, 16_000)
    report = ["--report", str(tmp_path / "report.json")]
    return ["--model", str(make_model()), "--enroll", str(tmp_path / "enrollment.wav"), *report]


def test_devices_are_listed(portaudio: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "2", "in", "2", "out", "48000", "Hz", "ears"]
    assert [device.name for device in list_devices()] == ["lapel", "ears", "old"]


def test_rate_of_the_devices_is_a_multiple_of_the_models(portaudio: SimpleNamespace) -> None:
    assert choose_devices(None, None, 16_000).sample_rate == 48_000
    for numbers, message in (
        ((2, 2), "have none of the rates 48000, 16000"),
        ((0, 0), "0 output channels"),
        ((9, 1), "no device 9 for input"),
    ):
        with pytest.raises(DeviceError, match=message):
            choose_devices(*numbers, 16_000)


def test_machine_without_portaudio_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["devices"]) == 1
    assert "sounddevice is not installed" in capsys.readouterr().err


def test_a_disconnected_device_is_an_error_after_the_report(
    portaudio: SimpleNamespace, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(FakeStream):
        def __enter__(self) -> FakeStream:
            super().__enter__()
            self.active = False
            return self

    portaudio.Stream = Gone
    assert main(words) == 1
    assert "'ears' or 'ears' was disconnected" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["chunks"], report["misses"], report["dry"]) == (150, 0, 0)
    assert (report["input_overflows"], report["output_underflows"], report["input_underflows"]) == (1, 1, 0)
    latency = report["latency"]
    assert (latency["resampling_ms"], latency["device_input_ms"], latency["device_output_ms"]) == (2.0, 10.0, 20.0)


def test_keys_bypass_enroll_and_quit(
    portaudio: SimpleNamespace, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = iter(["b", "b", "e", "x", "q"])
    monkeypatch.setattr(run, "read_keys", lambda requests: requests.press(next(pressed)))
    assert main([*words, "--input-device", "0", "--enroll-live", "1", "--cpu", "100000"]) == 0
    message = capsys.readouterr().err
    for line in ("'lapel' has one channel", "hear: bypassed", "no longer bypassed", "face the speaker for 1 s"):
        assert line in message
    assert message.count("running on core 100000 only was not granted") == 1


def test_refused_scheduling_is_reported_while_it_runs(
    portaudio: SimpleNamespace, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages: list[str] = []

    def read_and_quit(requests: controls.Requests) -> None:
        messages.append(capsys.readouterr().err)
        requests.press("q")

    monkeypatch.setattr(run, "read_keys", read_and_quit)
    assert main([*words, "--cpu", "100000"]) == 0
    assert "running on core 100000 only was not granted" in messages[0]


@pytest.mark.parametrize("first", ["file", "live"])
def test_a_speaker_is_enrolled_while_blocks_continue(
    portaudio: SimpleNamespace,
    words: list[str],
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vectors, set_conditions, until = [], Engine.set_conditions, time.monotonic() + 60.0

    def noted(engine: Engine, vector: np.ndarray) -> None:
        vectors.append(vector[0])
        set_conditions(engine, vector)

    def enroll_then_quit(requests: controls.Requests) -> None:
        if not asked and first == "file":
            requests.press("e")
        asked.append(True)
        if len(vectors) == expected_count or time.monotonic() > until:
            requests.press("q")

    asked, expected_count = [], 2 if first == "file" else 1
    portaudio.Stream = LastingStream
    monkeypatch.setattr(Engine, "set_conditions", noted)
    monkeypatch.setattr(run, "read_keys", enroll_then_quit)
    speaker = words if first == "file" else words[:2] + words[4:]
    assert main([*speaker, "--enroll-live", "1"]) == 0
    message = capsys.readouterr().err
    assert message.index("face the speaker for 1 s") < message.index("enrolled from 1.0 s")
    np.testing.assert_allclose(vectors[-1], [1.0, 0.0, LEVEL, 0.0], atol=2e-3)  # the mean of the input
    if first == "file":
        assert abs(vectors[0][2]) < LEVEL / 2
    assert json.loads((tmp_path / "report.json").read_text())["enrolments"] == expected_count


def test_an_enrollment_of_a_wrong_duration_does_not_end_a_session(
    portaudio: SimpleNamespace, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = iter(["e", "x", "q"])
    monkeypatch.setattr(run, "read_keys", lambda requests: requests.press(next(pressed)))
    assert main([*words, "--enroll-live", "15"]) == 0
    assert "face the speaker for 2 s, the most that the model accepts" in capsys.readouterr().err
    portaudio.Stream = None  # no device is opened
    assert main([*words, "--enroll-live", "0.5"]) == 2
    assert "an enrollment of 0.5 s is too short (give 1 s or more)" in capsys.readouterr().err


def test_report_that_fails_hides_no_lost_device(
    portaudio: SimpleNamespace, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(FakeStream):
        def __enter__(self) -> FakeStream:
            self.active = False
            (tmp_path / "later").rmdir()
            return self

    portaudio.Stream = Gone
    (tmp_path / "later").mkdir()
    assert main([*words, "--report", str(tmp_path / "later" / "report.json")]) == 1
    warning, error = capsys.readouterr().err.splitlines()[-2:]
    assert "warning:" in warning
    assert "report.json: not written" in warning
    assert "was disconnected" in error


def test_sigterm_ends_it_with_the_report(
    portaudio: SimpleNamespace, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "read_keys", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words) == 0
    assert json.loads((tmp_path / "report.json").read_text())["chunks"] == 150


def test_stream_that_cannot_be_opened(
    portaudio: SimpleNamespace, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise PortAudioError("Device unavailable")

    portaudio.Stream = refuse
    assert main(words) == 1
    assert "the devices cannot be opened: Device unavailable" in capsys.readouterr().err


def test_error_in_the_callback_is_reported(
    portaudio: SimpleNamespace, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(FakeStream):
        def __enter__(self) -> FakeStream:
            out = np.ones((CHUNK, 2), np.float32)
            self.options["callback"](np.zeros((CHUNK, 5), np.float32), out, CHUNK, None, None)
            assert not out.any()
            return self

    portaudio.Stream = Wrong
    assert main(words) == 1
    assert "unexpected ValueError: could not broadcast" in capsys.readouterr().err


@pytest.mark.parametrize("name, what", [("SIGUSR1", "enroll"), ("SIGUSR2", "bypass"), ("SIGTERM", "quit")])
def test_signals_are_requests(name: str, what: str) -> None:
    requests, number = controls.Requests(), getattr(signal, name)
    before = signal.getsignal(number)
    with controls.capture_controls(requests):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert vars(requests) == {"enroll": False, "bypass": False, "quit": False, what: True}
    assert signal.getsignal(number) == before


def test_status_is_counted() -> None:
    counters = Counters()
    names = ("input_overflow", "input_underflow", "output_overflow", "output_underflow")
    count_status(counters, SimpleNamespace(**{name: name == "output_overflow" for name in names}))
    assert [counters[what] for what in Count].count(1) == counters[Count.OUTPUT_OVERFLOWS] == 1
