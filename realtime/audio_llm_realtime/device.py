"""Audio devices: list them, and run the loop between a binaural microphone and headphones.

PortAudio's callback only copies frames to and from the buffer; a separate thread runs the worker. PortAudio is loaded
when a device is first used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from audio_llm_realtime.clock import Stopwatch
from audio_llm_realtime.contract import EARS
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.errors import DeviceError, DeviceLostError
from audio_llm_realtime.schedule import SchedulingOptions, apply_scheduling
from audio_llm_realtime.worker import Worker

_POLL_S = 0.0005  # polling interval of the worker's thread; a lock would make the callback wait
_CONTROL_S = 0.05  # polling interval of the main thread for keys and a lost device
_SILENCE_S = 2.0  # without a callback for this long, the device counts as lost
_MULTIPLES = (3, 1, 2, 6)  # rates to try after the device's default, over the model's rate


@dataclass(frozen=True)
class Device:
    """An audio device.

    Attributes:
        number: Index for `--input-device` and `--output-device`.
        name: Name that the system reports.
        inputs: Number of input channels.
        outputs: Number of output channels.
        sample_rate: Default rate in Hz.
    """

    number: int
    name: str
    inputs: int
    outputs: int
    sample_rate: int


@dataclass(frozen=True)
class DevicePair:
    """Input and output device.

    Attributes:
        input: The microphones.
        output: The headphones.
        sample_rate: Common rate in Hz, an integer multiple of the model's.
    """

    input: Device
    output: Device
    sample_rate: int


def list_devices() -> list[Device]:
    """Return the devices that PortAudio lists.

    Raises:
        DeviceError: PortAudio is missing or fails.
    """
    sounddevice = _portaudio()
    try:
        entries = list(sounddevice.query_devices())
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"PortAudio fails: {error}") from None
    return [
        Device(n, d["name"], d["max_input_channels"], d["max_output_channels"], round(d["default_samplerate"]))
        for n, d in enumerate(entries)
    ]


def choose_devices(input_number: int | None, output_number: int | None, model_rate: int) -> DevicePair:
    """Choose two devices and a rate that both support and that fits the model.

    Args:
        input_number: Index of the input device in `list_devices`; None: the system's default.
        output_number: Index of the output device in `list_devices`; None: the system's default.
        model_rate: Rate of the model in Hz.

    Raises:
        DeviceError: A device does not exist or has too few channels, or no common rate fits.
    """
    sounddevice = _portaudio()
    devices = list_devices()
    defaults = sounddevice.default.device
    source = _pick(devices, input_number, defaults[0], "input")
    target = _pick(devices, output_number, defaults[1], "output")
    native = [source.sample_rate] if source.sample_rate % model_rate == 0 else []
    rates = list(dict.fromkeys([*native, *(model_rate * multiple for multiple in _MULTIPLES)]))
    for rate in rates:
        try:
            sounddevice.check_input_settings(
                device=source.number, channels=min(EARS, source.inputs), dtype="float32", samplerate=rate
            )
            sounddevice.check_output_settings(device=target.number, channels=EARS, dtype="float32", samplerate=rate)
        except (sounddevice.PortAudioError, ValueError):
            continue
        return DevicePair(source, target, rate)
    tried = ", ".join(str(rate) for rate in rates)
    raise DeviceError(
        f"{source.name!r} and {target.name!r} have none of the rates {tried} Hz in common",
        remedy="choose other devices; `audio-llm-hear devices` lists them",
    )


class DeviceLoop:
    """Runs a worker between two devices.

    Args:
        worker: Processes the chunks at the rate of the devices.
        pair: The devices.
        scheduling: Options for the worker's thread.
        notify: Receives messages for the user, such as scheduling options that the system does not grant.

    Attributes:
        device_ms: Input and output latency that the device reports, in ms.
        refused: Messages for scheduling options that the system did not grant.
    """

    def __init__(
        self, worker: Worker, pair: DevicePair, scheduling: SchedulingOptions, notify: Callable[[str], None]
    ) -> None:
        self._worker = worker
        self._pair = pair
        self._scheduling = scheduling
        self._notify = notify
        self._stop = threading.Event()
        self._errors: list[Exception] = []
        self._last_block_s = 0.0
        self.device_ms = (0.0, 0.0)
        self.refused: list[str] = []

    def run(self, control: Callable[[], bool]) -> None:
        """Run until `control` returns False.

        Args:
            control: Called about 20 times a second; returns False to stop.

        Raises:
            DeviceError: The devices cannot be opened.
            DeviceLostError: A device was disconnected.
        """
        sounddevice = _portaudio()
        thread = threading.Thread(target=self._work, name="worker", daemon=True)
        try:
            stream = sounddevice.Stream(
                samplerate=self._pair.sample_rate,
                blocksize=self._worker.buffer.chunk_frames,
                device=(self._pair.input.number, self._pair.output.number),
                channels=(min(EARS, self._pair.input.inputs), EARS),
                dtype="float32",
                latency="low",
                callback=self._exchange,
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise DeviceError(f"the devices cannot be opened: {error}", remedy="choose other devices") from None
        self._last_block_s = time.monotonic()
        thread.start()
        try:
            with stream:
                self.device_ms = (1000.0 * stream.latency[0], 1000.0 * stream.latency[1])
                while control():
                    if self._errors:
                        raise self._errors[0]
                    if not stream.active or time.monotonic() - self._last_block_s > _SILENCE_S:
                        raise DeviceLostError(
                            f"{self._pair.input.name!r} or {self._pair.output.name!r} was disconnected",
                            remedy="connect it and start again",
                        )
                    time.sleep(_CONTROL_S)
        except sounddevice.PortAudioError as error:
            raise DeviceLostError(f"the device failed: {error}", remedy="connect it and start again") from None
        finally:
            self._stop.set()
            thread.join()

    def _exchange(self, indata: Any, outdata: Any, frames: int, when: Any, status: Any) -> None:
        """The callback. PortAudio drops its exceptions, so they are stored for the main thread."""
        try:
            self._last_block_s = time.monotonic()
            if status:
                count_status(self._worker.counters, status)
            self._worker.buffer.write_input(indata.T)
            self._worker.buffer.read_output(outdata.T)
        except Exception as error:
            outdata[:] = 0.0
            self._errors.append(error)

    def _work(self) -> None:
        watch = Stopwatch()
        worker = self._worker
        try:
            with apply_scheduling(self._scheduling, self.refused):
                for line in self.refused:
                    self._notify(f"warning: {line}")
                while not self._stop.is_set():
                    if not worker.ready:
                        time.sleep(_POLL_S)
                        continue
                    watch.start()
                    worker.catch_up()
                    worker.compute()
                    worker.commit(*watch.stop())
        except Exception as error:
            self._errors.append(error)


def count_status(counters: Counters, status: Any) -> None:
    """Count the overflows and underflows that PortAudio reports for a block."""
    for what in (Count.INPUT_OVERFLOWS, Count.INPUT_UNDERFLOWS, Count.OUTPUT_OVERFLOWS, Count.OUTPUT_UNDERFLOWS):
        if getattr(status, what.name.lower().removesuffix("s")):
            counters.add(what)


def _pick(devices: list[Device], number: int | None, default: int, kind: str) -> Device:
    chosen = default if number is None else number
    if not 0 <= chosen < len(devices):
        named = "no default" if number is None else f"no device {number} for"
        raise DeviceError(f"{named} {kind}", remedy="`audio-llm-hear devices` lists them")
    device = devices[chosen]
    channels, least = (device.inputs, 1) if kind == "input" else (device.outputs, EARS)
    if channels < least:
        raise DeviceError(
            f"device {chosen} ({device.name!r}) has {channels} {kind} channels, fewer than {least}",
            remedy="choose another; `audio-llm-hear devices` lists them",
        )
    return device


def _portaudio() -> Any:
    try:
        import sounddevice
    except OSError:
        raise DeviceError(
            "PortAudio is not installed",
            remedy="install it, on Debian: apt install libportaudio2; files work without it",
        ) from None
    except ImportError:
        raise DeviceError("sounddevice is not installed", remedy="pip install sounddevice") from None
    return sounddevice
