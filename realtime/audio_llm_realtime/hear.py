"""Hear one person: put contract, engine, enrolment and loop together, for a file or for devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.clock import Clock, MeasuredClock, RealClock
from audio_llm_realtime.contract import EARS, Contract
from audio_llm_realtime.device import DeviceLoop, choose_devices
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrol import Enroller
from audio_llm_realtime.errors import ContractError, EnrolmentError, UsageError
from audio_llm_realtime.guard import Cleaner
from audio_llm_realtime.keys import Requests, listening, read_keys
from audio_llm_realtime.ledger import Count
from audio_llm_realtime.live import LiveEnrolment
from audio_llm_realtime.loop import FileLoop
from audio_llm_realtime.report import Report, make_report, write_json
from audio_llm_realtime.resample import resample
from audio_llm_realtime.schedule import Wishes, scheduled
from audio_llm_realtime.sound import check_writable, read_sound, write_sound
from audio_llm_realtime.worker import Worker

Say = Callable[[str], None]


@dataclass(frozen=True)
class HearSettings:
    """What the listener wants.

    Attributes:
        look: A binaural file recorded while facing the person, or None.
        live_s: Seconds of a look that is recorded while the loop runs.
        live_first: Record such a look at the start.
        wet: Share of the person in what is heard, 0 to 1.
        spare: Chunks that the output waits longer, so that a slow machine is in time.
        wishes: For the thread that runs the chunks.
        report: Where to write the report, or None.
    """

    look: Path | None
    live_s: float
    live_first: bool
    wet: float = 1.0
    spare: int = 0
    wishes: Wishes = field(default_factory=Wishes)
    report: Path | None = None


def hear_file(
    contract: Contract, settings: HearSettings, source: Path, target: Path, realtime: bool, say: Say
) -> Report:
    """Extract the person from a file.

    Args:
        contract: Of the model.
        settings: What the listener wants.
        source: A recording of one or two channels at any rate.
        target: Gets two channels, as long as the source and aligned to it.
        realtime: Take 8 ms a chunk, so that late chunks are missed as on a device.
        say: Takes a line for the listener.

    Raises:
        HearingError: A file, the look or the model cannot be used.
    """
    check_writable(target)
    sound = read_sound(source)
    worker, enroller = _prepare(contract, settings, contract.sample_rate, say)
    waveform = sound.waveform
    if waveform.shape[0] == 1:
        say(f"warning: {source}: one channel; both ears get the same, and where people are is lost")
        waveform = np.repeat(waveform, EARS, axis=0)
    Cleaner(EARS, waveform.shape[1], worker.ledger).clean(waveform)
    at_rate = resample(waveform, sound.sample_rate, contract.sample_rate)
    live = _live(worker, enroller, settings, say)
    refused: list[str] = []
    clock: Clock = RealClock() if realtime else MeasuredClock(instant=True)
    with scheduled(settings.wishes, refused):
        extracted = _run_aligned(FileLoop(worker, clock, live.poll if live else None), worker, at_rate)
    if not worker.bridge.playout.enrolled:
        raise (live and live.failure) or EnrolmentError(f"{settings.live_s:g} s of look are more than the file has")
    back = resample(extracted, contract.sample_rate, sound.sample_rate)
    write_sound(target, back[:, : waveform.shape[1]], sound.sample_rate, sound.subtype)
    return _finish(make_report(worker, refused=tuple(refused)), settings, say)


def hear_devices(
    contract: Contract, settings: HearSettings, input_number: int | None, output_number: int | None, say: Say
) -> Report:
    """Hear the person through headphones until told to end.

    Args:
        contract: Of the model.
        settings: What the listener wants.
        input_number: Device of the microphones; None: the system's default.
        output_number: Device of the headphones; None: the system's default.
        say: Takes a line for the listener.

    Raises:
        HearingError: A device, the look or the model cannot be used. Of a device that went away, the report is written
            first.
    """
    pair = choose_devices(input_number, output_number, contract.sample_rate)
    worker, enroller = _prepare(contract, settings, pair.sample_rate, say)
    if pair.input.inputs < EARS:
        say(f"warning: {pair.input.name!r} has one channel; both ears get the same, and where people are is lost")
    live = _live(worker, enroller, settings, say)
    loop = DeviceLoop(worker, pair, settings.wishes)
    requests = Requests()
    say(f"{pair.input.name!r} to {pair.output.name!r} at {pair.sample_rate} Hz; e enrols anew, b bypasses, q ends")

    def control() -> bool:
        read_keys(requests)
        if requests.bypass:
            requests.bypass = False
            worker.bridge.playout.bypass = not worker.bridge.playout.bypass
            say("bypassed" if worker.bridge.playout.bypass else "no longer bypassed")
        if requests.enrol:
            requests.enrol = False
            _enrol_anew(live, say)
        if live is not None:
            live.poll()
        return not requests.quit

    try:
        with listening(requests):
            loop.run(control)
    finally:
        report = make_report(worker, loop.device_ms, tuple(loop.refused))
        _finish(report, settings, say)
    return report


def _prepare(contract: Contract, settings: HearSettings, sample_rate: int, say: Say) -> tuple[Worker, Enroller | None]:
    """Return a worker whose engine knows the person, and what enrols others."""
    engine = Engine(contract)
    worker = Worker(engine, sample_rate, settings.wet, spare=settings.spare)
    if not contract.stream.conditions:  # a network that needs nobody named
        return worker, None
    if settings.look is None and not settings.live_first:
        raise UsageError("nobody is enrolled", remedy="give --enroll LOOK.wav or --enroll-live SECONDS")
    if contract.enrolment is None:
        raise ContractError("this model cannot enrol", path=contract.folder, remedy="export one with an enrolment")
    enroller = Enroller(contract)
    if settings.look is None:
        worker.bridge.playout.enrolled = False
        return worker, enroller
    look = read_sound(settings.look)
    try:
        found = enroller.enrol(resample(look.waveform, look.sample_rate, contract.sample_rate), contract.sample_rate)
    except EnrolmentError as error:
        raise EnrolmentError(error.message, path=settings.look, remedy=error.remedy) from None
    for warning in found.warnings:
        say(f"warning: {settings.look}: {warning}")
    engine.set_conditions(found.vector)
    worker.ledger.add(Count.ENROLMENTS)
    return worker, enroller


def _live(worker: Worker, enroller: Enroller | None, settings: HearSettings, say: Say) -> LiveEnrolment | None:
    if enroller is None:
        return None
    live = LiveEnrolment(worker, enroller, settings.live_s, say)
    if settings.live_first:
        live.ask()
    return live


def _enrol_anew(live: LiveEnrolment | None, say: Say) -> None:
    if live is None:
        say("this model takes nobody's look")
    else:
        live.ask()


def _run_aligned(loop: FileLoop, worker: Worker, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (2, T) float32 of (2, T), without the loop's delay."""
    length, delay, unit = waveform.shape[1], worker.bridge.delay, worker.bridge.unit
    padded = np.pad(waveform, ((0, 0), (0, delay + -(length + delay) % unit)))
    return loop.run(padded)[:, delay : delay + length]


def _finish(report: Report, settings: HearSettings, say: Say) -> Report:
    for line in report.refused:
        say(f"warning: {line}")
    if settings.report is not None:
        write_json(settings.report, report.to_json())
    return report
