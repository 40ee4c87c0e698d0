"""Devices, with a PortAudio that is made up: callbacks, keys, a device that goes away, and its last report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime import hear, keys
from audio_llm_realtime.cli import main
from audio_llm_realtime.device import choose_devices, count_status, list_devices
from audio_llm_realtime.errors import DeviceError
from audio_llm_realtime.ledger import Count, Ledger

CHUNK = 128


class PortAudioError(Exception):
    """What sounddevice raises."""


class FakeStream:
    """Calls back at once for a fixed number of blocks, and waits for the worker; then it is gone."""

    blocks = 150
    latency = (0.010, 0.020)

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.active = True

    def __enter__(self) -> FakeStream:
        frames, channels = self.options["blocksize"], self.options["channels"]
        noise = np.random.default_rng(0).standard_normal((self.blocks * frames, channels[0])).astype(np.float32)
        worker = self.options["callback"].__self__._worker
        status = SimpleNamespace(
            input_overflow=True, input_underflow=False, output_overflow=False, output_underflow=True
        )
        self.played = np.full((self.blocks * frames, channels[1]), np.nan, np.float32)
        for block in range(self.blocks):
            part = slice(block * frames, (block + 1) * frames)
            self.options["callback"](0.1 * noise[part], self.played[part], frames, None, status if block == 3 else None)
            until = time.monotonic() + 5.0
            while worker.ready and time.monotonic() < until:
                time.sleep(0.0002)
        assert np.isfinite(self.played).all()
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put a made-up sounddevice in place: 0 is mono in, 1 is stereo in and out, 2 runs at 44100 Hz only."""

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
    soundfile.write(tmp_path / "look.wav", sound.T, 16_000)
    report = ["--report", str(tmp_path / "report.json")]
    return ["--model", str(make_model()), "--enroll", str(tmp_path / "look.wav"), *report]


def test_devices_are_listed(portaudio: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "2", "in", "2", "out", "48000", "Hz", "ears"]
    assert [device.name for device in list_devices()] == ["lapel", "ears", "old"]


def test_rate_of_the_devices_is_a_multiple_of_the_models(portaudio: SimpleNamespace) -> None:
    assert choose_devices(None, None, 16_000).sample_rate == 48_000
    for numbers, said in (
        ((2, 2), "share none of the rates 48000, 16000"),
        ((0, 0), "0 output channels"),
        ((9, 1), "no device 9 for input"),
    ):
        with pytest.raises(DeviceError, match=said):
            choose_devices(*numbers, 16_000)


def test_machine_without_portaudio_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["devices"]) == 1
    assert "sounddevice is not installed" in capsys.readouterr().err


def test_device_that_goes_away_is_an_error_behind_the_report(
    portaudio: SimpleNamespace, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(FakeStream):
        def __enter__(self) -> FakeStream:
            super().__enter__()
            self.active = False
            return self

    portaudio.Stream = Gone
    assert main(words) == 1
    assert "'ears' or 'ears' went away" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chunks"] == 150
    assert (report["input_overflows"], report["output_underflows"], report["input_underflows"]) == (1, 1, 0)
    latency = report["latency"]
    assert (latency["resampling_ms"], latency["device_input_ms"], latency["device_output_ms"]) == (2.0, 10.0, 20.0)


def test_keys_bypass_enrol_and_quit(
    portaudio: SimpleNamespace, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = iter(["b", "b", "e", "x", "q"])
    monkeypatch.setattr(hear, "read_keys", lambda requests: requests.press(next(pressed)))
    assert main([*words, "--input-device", "0", "--enroll-live", "1", "--cpu", "100000"]) == 0
    said = capsys.readouterr().err
    for line in ("'lapel' has one channel", "hear: bypassed", "no longer bypassed", "face the person for 1 s"):
        assert line in said
    assert "running on core 100000 only was not granted" in said


def test_stream_that_cannot_be_opened(
    portaudio: SimpleNamespace, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise PortAudioError("Device unavailable")

    portaudio.Stream = refuse
    assert main(words) == 1
    assert "the devices cannot be opened: Device unavailable" in capsys.readouterr().err


def test_error_in_the_callback_reaches_the_listener(
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


def test_signals_are_requests() -> None:
    import os
    import signal

    requests = keys.Requests()
    before = signal.getsignal(signal.SIGUSR1)
    with keys.listening(requests):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.01)
    assert (requests.enrol, requests.bypass, requests.quit) == (True, True, False)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_status_is_counted() -> None:
    ledger = Ledger()
    names = ("input_overflow", "input_underflow", "output_overflow", "output_underflow")
    count_status(ledger, SimpleNamespace(**{name: name == "output_overflow" for name in names}))
    assert [ledger[what] for what in Count].count(1) == ledger[Count.OUTPUT_OVERFLOWS] == 1
