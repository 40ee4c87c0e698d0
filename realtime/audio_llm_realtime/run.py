"""Extract the enrolled speaker from a file or between audio devices: contract, engine, enrollment and loop together."""

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
from audio_llm_realtime.controls import Requests, capture_controls, read_keys
from audio_llm_realtime.counters import Count
from audio_llm_realtime.device import DeviceLoop, choose_devices
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrollment import Enroller
from audio_llm_realtime.errors import ContractError, EnrollmentError, RealtimeError, UsageError
from audio_llm_realtime.live_enrollment import LiveEnrollment
from audio_llm_realtime.loop import FileLoop
from audio_llm_realtime.report import Report, check_report, make_report, write_json
from audio_llm_realtime.resample import resample
from audio_llm_realtime.sanitize import Sanitizer
from audio_llm_realtime.schedule import SchedulingOptions, apply_scheduling
from audio_llm_realtime.soundfile_io import check_writable, read_sound, write_sound
from audio_llm_realtime.worker import Worker

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]
_SHOWN_CHUNKS = 125  # chunks between two progress updates, one second of audio


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        enrollment: Binaural enrollment file, recorded while facing the speaker, or None.
        live_enrollment_s: Duration of an enrollment that is recorded while the loop runs.
        record_first: Whether to record such an enrollment at the start.
        wet: Gain of the extracted speaker in the output, 0 to 1; the dry signal gets the rest.
        extra_chunks: Chunks of additional output delay, for a slow machine.
        scheduling: Options for the thread that processes the chunks.
        report: File for the report, or None.
        overwrite: Whether to replace an existing output file.
    """

    enrollment: Path | None
    live_enrollment_s: float
    record_first: bool
    wet: float = 1.0
    extra_chunks: int = 0
    scheduling: SchedulingOptions = field(default_factory=SchedulingOptions)
    report: Path | None = None
    overwrite: bool = False


def run_file(
    contract: Contract,
    settings: RunSettings,
    source: Path,
    target: Path,
    realtime: bool,
    notify: Notify,
    progress: Progress | None = None,
) -> Report:
    """Extract the enrolled speaker from a file.

    Args:
        contract: Contract of the model.
        settings: Settings of the run.
        source: A recording of one or two channels at any rate.
        target: Output file of two channels, as long as the source and aligned to it.
        realtime: Whether to process one chunk every 8 ms, with deadline misses as on a device.
        notify: Receives messages for the user.
        progress: Receives the number of finished chunks and of all chunks.

    Raises:
        UsageError: An input file or an existing file would be overwritten.
        RealtimeError: A file, the enrollment or the model cannot be used.
    """
    check_writable(target)
    _check_files(settings, source, target)
    sound = read_sound(source)
    worker, enroller = _prepare(contract, settings, contract.sample_rate, notify)
    waveform = sound.waveform
    if waveform.shape[0] == 1:
        notify(f"warning: {source}: one channel, copied to both ears; spatial cues are lost")
        waveform = np.repeat(waveform, EARS, axis=0)
    Sanitizer(EARS, waveform.shape[1], worker.counters).sanitize(waveform)
    at_rate = resample(waveform, sound.sample_rate, contract.sample_rate)
    refused: list[str] = []
    with _enrollment_thread(realtime) as executor:
        live = _live_enrollment(worker, enroller, settings, notify, executor)
        with apply_scheduling(settings.scheduling, refused):
            for line in refused:
                notify(f"warning: {line}")
            extracted = _run_aligned(worker, RealClock() if realtime else MeasuredClock(True), live, at_rate, progress)
        if live is not None:
            live.poll(wait=True)
    if live is not None and not worker.counters[Count.ENROLMENTS]:
        raise _no_speaker_error(live, source)
    output = resample(extracted, contract.sample_rate, sound.sample_rate)
    clipped = write_sound(target, output[:, : waveform.shape[1]], sound.sample_rate, sound.subtype)
    if clipped:
        notify(f"warning: {target}: {clipped} samples exceeded full scale and were clipped")
    return _finish(make_report(worker, refused=tuple(refused)), settings)


def run_devices(
    contract: Contract, settings: RunSettings, input_number: int | None, output_number: int | None, notify: Notify
) -> Report:
    """Play the enrolled speaker through headphones until the user quits.

    Args:
        contract: Contract of the model.
        settings: Settings of the run.
        input_number: Index of the input device; None: the system's default.
        output_number: Index of the output device; None: the system's default.
        notify: Receives messages for the user.

    Raises:
        RealtimeError: A device, the enrollment or the model cannot be used. If a device is disconnected, the report is
            written first.
    """
    _check_files(settings)
    pair = choose_devices(input_number, output_number, contract.sample_rate)
    worker, enroller = _prepare(contract, settings, pair.sample_rate, notify)
    if pair.input.inputs < EARS:
        notify(f"warning: {pair.input.name!r} has one channel, copied to both ears; spatial cues are lost")
    live = _live_enrollment(worker, enroller, settings, notify)
    loop = DeviceLoop(worker, pair, settings.scheduling, notify)
    requests = Requests()
    notify(f"{pair.input.name!r} to {pair.output.name!r} at {pair.sample_rate} Hz; e: enroll, b: bypass, q: quit")

    def control() -> bool:
        read_keys(requests)
        if requests.bypass:
            requests.bypass = False
            worker.buffer.mixer.bypass = not worker.buffer.mixer.bypass
            notify("bypassed" if worker.buffer.mixer.bypass else "no longer bypassed")
        if requests.enroll:
            requests.enroll = False
            _request_enrollment(live, notify)
        if live is not None:
            live.poll()
        return not requests.quit

    try:
        with capture_controls(requests):
            loop.run(control)
    except BaseException:
        try:
            _finish(make_report(worker, loop.device_ms, tuple(loop.refused)), settings)
        except RealtimeError as error:  # the error that ended the session matters more
            notify(f"warning: {error}")
        raise
    return _finish(make_report(worker, loop.device_ms, tuple(loop.refused)), settings)


def _check_files(settings: RunSettings, source: Path | None = None, target: Path | None = None) -> None:
    """Reject an output that would overwrite an input or an existing file; check the report's path."""
    report, read = settings.report, {"input": source, "enrollment": settings.enrollment}
    for path, protected in ((target, read), (report, {**read, "output": target})):
        for what, other in protected.items():
            if path is not None and other is not None and _same(path, other):
                raise UsageError(f"is the {what} itself", path=path, remedy="give another name")
    if target is not None and target.exists() and not settings.overwrite:
        raise UsageError("already exists", path=target, remedy="add --overwrite to replace it")
    if report is not None:
        check_report(report)


def _same(path: Path, other: Path) -> bool:
    there = path.exists() and other.exists()
    return path.samefile(other) if there else path.resolve() == other.resolve()


def _prepare(
    contract: Contract, settings: RunSettings, sample_rate: int, notify: Notify
) -> tuple[Worker, Enroller | None]:
    """Return a worker, with the speaker of the settings enrolled, and the enroller for later speakers."""
    named = settings.enrollment is not None or settings.record_first
    if contract.stream.conditions and not named:
        raise UsageError("no speaker enrolled", remedy="give --enroll FILE or --enroll-live SECONDS")
    if contract.stream.conditions and contract.enrollment is None:
        raise ContractError(
            "this model cannot enroll", path=contract.folder, remedy="export one with an enrollment network"
        )
    if not contract.stream.conditions and named:
        remedy = "leave out --enroll and --enroll-live, or give another model"
        raise UsageError("this model does not support enrollment", path=contract.folder, remedy=remedy)
    engine = Engine(contract)
    worker = Worker(engine, sample_rate, settings.wet, extra_chunks=settings.extra_chunks)
    if not contract.stream.conditions:
        return worker, None
    enroller = Enroller(contract)
    if settings.enrollment is None:
        worker.buffer.mixer.enrolled = False
        return worker, enroller
    recording = read_sound(settings.enrollment)
    try:
        enrollment = enroller.enroll(
            resample(recording.waveform, recording.sample_rate, contract.sample_rate), contract.sample_rate
        )
    except EnrollmentError as error:
        raise EnrollmentError(error.message, path=settings.enrollment, remedy=error.remedy) from None
    for warning in enrollment.warnings:
        notify(f"warning: {settings.enrollment}: {warning}")
    engine.set_conditions(enrollment.vector)
    worker.counters.add(Count.ENROLMENTS)
    return worker, enroller


def _live_enrollment(
    worker: Worker, enroller: Enroller | None, settings: RunSettings, notify: Notify, executor: Executor | None = None
) -> LiveEnrollment | None:
    if enroller is None:
        return None
    live = LiveEnrollment(worker, enroller, settings.live_enrollment_s, notify, executor)
    if settings.record_first:
        live.request()
    return live


def _request_enrollment(live: LiveEnrollment | None, notify: Notify) -> None:
    if live is None:
        notify("this model does not support enrollment")
    else:
        live.request()


@contextlib.contextmanager
def _enrollment_thread(enabled: bool) -> Iterator[Executor | None]:
    """Yield a thread, started before the caller's scheduling is set: a later one would inherit class and core."""
    if not enabled:
        yield None
        return
    with ThreadPoolExecutor(1, "enrolment") as pool:
        pool.submit(int).result()
        yield pool


def _run_aligned(
    worker: Worker, clock: Clock, live: LiveEnrollment | None, waveform: NDArray[np.float32], progress: Progress | None
) -> NDArray[np.float32]:
    """Process (2, T) float32; return (2, T) float32 with the loop's delay removed."""
    length, delay, chunk_frames = waveform.shape[1], worker.buffer.delay, worker.buffer.chunk_frames
    padded = np.pad(waveform, ((0, 0), (0, delay + -(length + delay) % chunk_frames)))
    chunks = padded.shape[1] // chunk_frames

    def after_chunk() -> None:
        if live is not None:
            live.poll()
        if progress is not None and worker.chunk_index < chunks and worker.chunk_index % _SHOWN_CHUNKS == 0:
            progress(worker.chunk_index, chunks)

    out = FileLoop(worker, clock, after_chunk).run(padded)
    if progress is not None:
        progress(chunks, chunks)
    return out[:, delay : delay + length]


def _no_speaker_error(live: LiveEnrollment, source: Path) -> EnrollmentError:
    if live.failure is not None:
        return EnrollmentError(live.failure.message, path=source, remedy=live.failure.remedy)
    message = f"the file is shorter than the enrollment of {live.seconds:g} s"
    return EnrollmentError(message, path=source, remedy="give --enroll FILE, or fewer seconds to --enroll-live")


def _finish(report: Report, settings: RunSettings) -> Report:
    if settings.report is not None:
        write_json(settings.report, report.to_json())
    return report
