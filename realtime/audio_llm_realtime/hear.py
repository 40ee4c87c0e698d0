"""Hear one person: put contract, engine, enrolment and loop together, for a file or for devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.clock import Clock, MeasuredClock, RealClock
from audio_llm_realtime.contract import EARS, Contract
from audio_llm_realtime.device import DeviceLoop, choose_devices
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrol import Enroller
from audio_llm_realtime.errors import ContractError, EnrolmentError, HearingError, UsageError
from audio_llm_realtime.guard import Cleaner
from audio_llm_realtime.keys import Requests, listening, read_keys
from audio_llm_realtime.ledger import Count
from audio_llm_realtime.live import LiveEnrolment
from audio_llm_realtime.loop import FileLoop
from audio_llm_realtime.report import Report, check_report, make_report, write_json
from audio_llm_realtime.resample import resample
from audio_llm_realtime.schedule import Wishes, scheduled
from audio_llm_realtime.sound import check_writable, read_sound, write_sound
from audio_llm_realtime.worker import Worker

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
_SHOWN_CHUNKS = 125  # between two signs of progress, one second of sound


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
        overwrite: Replace an output file that is there already.
    """

    look: Path | None
    live_s: float
    live_first: bool
    wet: float = 1.0
    spare: int = 0
    wishes: Wishes = field(default_factory=Wishes)
    report: Path | None = None
    overwrite: bool = False


def hear_file(
    contract: Contract,
    settings: HearSettings,
    source: Path,
    target: Path,
    realtime: bool,
    say: Say,
    progress: Progress | None = None,
) -> Report:
    """Extract the person from a file.

    Args:
        contract: Of the model.
        settings: What the listener wants.
        source: A recording of one or two channels at any rate.
        target: Gets two channels, as long as the source and aligned to it.
        realtime: Take 8 ms a chunk, so that late chunks are missed as on a device.
        say: Takes a line for the listener.
        progress: Takes the chunks that are done and all there are.

    Raises:
        UsageError: A file would be replaced that is read, or that is there already.
        HearingError: A file, the look or the model cannot be used.
    """
    check_writable(target)
    _check_files(settings, source, target)
    sound = read_sound(source)
    worker, enroller = _prepare(contract, settings, contract.sample_rate, say)
    waveform = sound.waveform
    if waveform.shape[0] == 1:
        say(f"warning: {source}: one channel; both ears get the same, and where people are is lost")
        waveform = np.repeat(waveform, EARS, axis=0)
    Cleaner(EARS, waveform.shape[1], worker.ledger).clean(waveform)
    at_rate = resample(waveform, sound.sample_rate, contract.sample_rate)
    refused: list[str] = []
    with _thread_beside(realtime) as beside:
        live = _live(worker, enroller, settings, say, beside)
        with scheduled(settings.wishes, refused):
            for line in refused:
                say(f"warning: {line}")
            extracted = _run_aligned(worker, RealClock() if realtime else MeasuredClock(True), live, at_rate, progress)
        if live is not None:
            live.poll(wait=True)
    if live is not None and not worker.ledger[Count.ENROLMENTS]:
        raise _nobody_enrolled(live, source)
    back = resample(extracted, contract.sample_rate, sound.sample_rate)
    clipped = write_sound(target, back[:, : waveform.shape[1]], sound.sample_rate, sound.subtype)
    if clipped:
        say(f"warning: {target}: {clipped} samples were beyond full scale and are clipped")
    return _finish(make_report(worker, refused=tuple(refused)), settings)


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
    _check_files(settings)
    pair = choose_devices(input_number, output_number, contract.sample_rate)
    worker, enroller = _prepare(contract, settings, pair.sample_rate, say)
    if pair.input.inputs < EARS:
        say(f"warning: {pair.input.name!r} has one channel; both ears get the same, and where people are is lost")
    live = _live(worker, enroller, settings, say)
    loop = DeviceLoop(worker, pair, settings.wishes, say)
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
    except BaseException:
        try:
            _finish(make_report(worker, loop.device_ms, tuple(loop.refused)), settings)
        except HearingError as error:  # what ended the session matters more
            say(f"warning: {error}")
        raise
    return _finish(make_report(worker, loop.device_ms, tuple(loop.refused)), settings)


def _check_files(settings: HearSettings, source: Path | None = None, target: Path | None = None) -> None:
    """Refuse what would replace a file that is read, or that is there already; check the report's name."""
    report, read = settings.report, {"input": source, "look": settings.look}
    for path, others in ((target, read), (report, {**read, "output": target})):
        for what, other in others.items():
            if path is not None and other is not None and _same(path, other):
                raise UsageError(f"is the {what} itself", path=path, remedy="give another name")
    if target is not None and target.exists() and not settings.overwrite:
        raise UsageError("is there already", path=target, remedy="add --overwrite to replace it")
    if report is not None:
        check_report(report)


def _same(path: Path, other: Path) -> bool:
    there = path.exists() and other.exists()
    return path.samefile(other) if there else path.resolve() == other.resolve()


def _prepare(contract: Contract, settings: HearSettings, sample_rate: int, say: Say) -> tuple[Worker, Enroller | None]:
    """Return a worker whose engine knows the person, and what enrols others."""
    named = settings.look is not None or settings.live_first
    if contract.stream.conditions and not named:
        raise UsageError("nobody is enrolled", remedy="give --enroll LOOK.wav or --enroll-live SECONDS")
    if contract.stream.conditions and contract.enrolment is None:
        raise ContractError("this model cannot enrol", path=contract.folder, remedy="export one with an enrolment")
    if not contract.stream.conditions and named:
        remedy = "leave out --enroll and --enroll-live, or give another model"
        raise UsageError("this model takes nobody's look", path=contract.folder, remedy=remedy)
    engine = Engine(contract)
    worker = Worker(engine, sample_rate, settings.wet, spare=settings.spare)
    if not contract.stream.conditions:
        return worker, None
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


def _live(
    worker: Worker, enroller: Enroller | None, settings: HearSettings, say: Say, beside: Executor | None = None
) -> LiveEnrolment | None:
    if enroller is None:
        return None
    live = LiveEnrolment(worker, enroller, settings.live_s, say, beside)
    if settings.live_first:
        live.ask()
    return live


def _enrol_anew(live: LiveEnrolment | None, say: Say) -> None:
    if live is None:
        say("this model takes nobody's look")
    else:
        live.ask()


@contextlib.contextmanager
def _thread_beside(wanted: bool) -> Iterator[Executor | None]:
    """Yield a thread that exists before the calling one is scheduled: a later one would inherit its class and core."""
    if not wanted:
        yield None
        return
    with ThreadPoolExecutor(1, "enrolment") as pool:
        pool.submit(int).result()
        yield pool


def _run_aligned(
    worker: Worker, clock: Clock, live: LiveEnrolment | None, waveform: NDArray[np.float32], progress: Progress | None
) -> NDArray[np.float32]:
    """Return (2, T) float32 of (2, T), without the loop's delay."""
    length, delay, unit = waveform.shape[1], worker.bridge.delay, worker.bridge.unit
    padded = np.pad(waveform, ((0, 0), (0, delay + -(length + delay) % unit)))
    chunks = padded.shape[1] // unit

    def after_chunk() -> None:
        if live is not None:
            live.poll()
        if progress is not None and worker.number < chunks and worker.number % _SHOWN_CHUNKS == 0:
            progress(worker.number, chunks)

    out = FileLoop(worker, clock, after_chunk).run(padded)
    if progress is not None:
        progress(chunks, chunks)
    return out[:, delay : delay + length]


def _nobody_enrolled(live: LiveEnrolment, source: Path) -> EnrolmentError:
    if live.failure is not None:
        return EnrolmentError(live.failure.message, path=source, remedy=live.failure.remedy)
    message = f"{live.seconds:g} s of look are more than the file has"
    return EnrolmentError(message, path=source, remedy="give --enroll LOOK.wav, or fewer seconds to --enroll-live")


def _finish(report: Report, settings: HearSettings) -> Report:
    if settings.report is not None:
        write_json(settings.report, report.to_json())
    return report
