"""Measure a model on this machine, alone or alternating with another: times of chunks, deadline misses, memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.clock import Clock, MeasuredClock, RealClock
from audio_llm_realtime.contract import EARS, Contract
from audio_llm_realtime.counters import DEFAULT_CAPACITY, Counters
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrollment import Enroller
from audio_llm_realtime.errors import UsageError
from audio_llm_realtime.loop import FileLoop
from audio_llm_realtime.report import Report, machine, make_report, versions
from audio_llm_realtime.schedule import SchedulingOptions, apply_scheduling
from audio_llm_realtime.worker import Worker

BLOCK_CHUNKS = 250  # chunks of one model before the other one takes its turn
CORE_FRACTIONS = (1.0, 0.5, 0.25)
_ENROLLMENT_S = 5.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a measurement.

    Attributes:
        chunks: Number of chunks per model.
        paced: Whether to process one chunk every 8 ms of real time; otherwise back to back, in virtual time.
        core_fraction: Fraction of a core that is available: 1, 0.5 or 0.25; a competing load takes the rest.
        extra_chunks: Chunks of additional output delay; each gives every chunk 8 ms more time.
        scheduling: Options for the thread that processes the chunks.
    """

    chunks: int = 5000
    paced: bool = False
    core_fraction: float = 1.0
    extra_chunks: int = 0
    scheduling: SchedulingOptions = field(default_factory=SchedulingOptions)

    def __post_init__(self) -> None:
        if self.scheduling.fifo and not self.paced:
            raise UsageError("SCHED_FIFO without pauses is stopped by the kernel", remedy="add --paced")
        if self.core_fraction != 1.0 and not self.paced:
            raise UsageError("a fraction of a core requires a paced run", remedy="add --paced")


@dataclass(frozen=True)
class BenchResult:
    """Result of a measurement.

    Attributes:
        report: Report of the model.
        other: Report of the model it was compared with, or None.
        settings: As given.
        core: Index of the only core used, or None.
        core_sharing: How the core was shared: "whole" (not at all), "fifo" (with a load of higher priority) or "equal"
            (with a load of equal priority, which leaves a sleeping process more than its fraction).
        memory_growth_bytes: Resident memory at the end minus that after the warm-up.
        load_before: Load average of the machine before the measurement.
        enrollment_cpu_s: CPU time of an enrollment of 5 s, or None if the model cannot enroll.
    """

    report: Report
    other: Report | None
    settings: BenchSettings
    core: int | None
    core_sharing: str
    memory_growth_bytes: int
    load_before: float
    enrollment_cpu_s: float | None

    @property
    def cpu_ratio(self) -> float | None:
        """Median CPU time of the other model over this one's."""
        if self.other is None or not self.report.cpu_ms.p50:
            return None
        return round(self.other.cpu_ms.p50 / self.report.cpu_ms.p50, 3)

    def to_json(self) -> dict[str, Any]:
        """Return the result for a JSON file, with everything that the figures depend on."""
        return {
            **self.report.to_json(),
            "paced": self.settings.paced,
            "fifo": self.settings.scheduling.fifo and not any("FIFO" in line for line in self.report.refused),
            "core": self.core,
            "share": self.settings.core_fraction,
            "share_by": self.core_sharing,
            "memory_growth_bytes": self.memory_growth_bytes,
            "compare": None if self.other is None else self.other.to_json(),
            "cpu_ratio": self.cpu_ratio,
            "enrolment_cpu_s": self.enrollment_cpu_s,
            "machine": {**machine(), "load_before": self.load_before},
            "versions": versions(),
        }


def bench(
    contract: Contract,
    other: Contract | None,
    settings: BenchSettings,
    progress: Callable[[int], None] | None = None,
) -> BenchResult:
    """Measure one model, or two alternating models.

    Args:
        contract: Contract of the model.
        other: Contract of the model to compare with; both run in blocks of 250 chunks, so that both see the same load.
        settings: Settings of the measurement.
        progress: Receives the number of finished chunks per model.
    """
    load_before = machine()["load"]
    core = settings.scheduling.cpu
    if core is None and settings.core_fraction < 1.0:
        core = max(os.sched_getaffinity(0))
    scheduling = SchedulingOptions(
        settings.scheduling.fifo, core, settings.scheduling.lock_memory, settings.scheduling.no_gc
    )
    refused: list[str] = []
    runners = [_Runner(model, settings) for model in (contract, other) if model is not None]
    for runner in runners:
        runner.warm_up()
    with _competing_load(core, settings.core_fraction) as core_sharing, apply_scheduling(scheduling, refused):
        before = _resident_bytes()
        done = 0
        while done < settings.chunks:
            chunks = min(BLOCK_CHUNKS, settings.chunks - done)
            for runner in runners:
                runner.run(chunks)
            done += chunks
            if progress is not None:
                progress(done)
        growth = _resident_bytes() - before
    enrollment_cpu_s = _enrollment_cpu_s(contract)
    reports = [make_report(r.worker, refused=tuple(refused)) for r in runners]
    second = reports[1] if other is not None else None
    return BenchResult(reports[0], second, settings, core, core_sharing, growth, load_before, enrollment_cpu_s)


class _Runner:
    """One model with its loop."""

    def __init__(self, contract: Contract, settings: BenchSettings) -> None:
        engine = Engine(contract, Counters(min(max(settings.chunks, BLOCK_CHUNKS), DEFAULT_CAPACITY)))
        generator = np.random.default_rng(7)
        vectors = [generator.standard_normal(port.sizes).astype(np.float32) for port in contract.stream.conditions]
        engine.set_conditions(*(vector / np.linalg.norm(vector) for vector in vectors))
        clock: Clock = RealClock() if settings.paced else MeasuredClock()
        self.worker = Worker(engine, extra_chunks=settings.extra_chunks)
        self._loop = FileLoop(self.worker, clock)
        self._sound = _speech_like_noise(contract)

    def warm_up(self) -> None:
        """Run one block that is not counted."""
        self.run(BLOCK_CHUNKS)
        self.worker.counters.clear()

    def run(self, chunks: int) -> None:
        """Process a number of chunks of the same audio."""
        self._loop.run(self._sound[:, : chunks * self.worker.buffer.chunk_frames])


def _enrollment_cpu_s(contract: Contract) -> float | None:
    """Return the CPU time of an enrollment: the second one, as the first includes one-time initialization."""
    if contract.enrollment is None:
        return None
    enroller = Enroller(contract)
    samples = min(round(_ENROLLMENT_S * contract.sample_rate), contract.enrollment.most_samples)
    recording = np.tile(_speech_like_noise(contract), 3)[:, :samples]
    enroller.enroll(recording, contract.sample_rate)
    begin = time.process_time()
    enroller.enroll(recording, contract.sample_rate)
    return round(time.process_time() - begin, 4)


def _speech_like_noise(contract: Contract) -> NDArray[np.float32]:
    """Return (2, 250 chunks) float32: noise with the modulation and the pauses of speech."""
    samples = BLOCK_CHUNKS * contract.chunk_samples
    noise = np.random.default_rng(7).standard_normal((EARS, samples))
    time_s = np.arange(samples) / contract.sample_rate
    envelope = np.maximum(0.0, np.sin(2 * np.pi * 3.0 * time_s)) ** 2
    return (0.1 * envelope * noise).astype(np.float32)


@contextlib.contextmanager
def _competing_load(core: int | None, core_fraction: float) -> Iterator[str]:
    """Load the rest of the core; yield how the core is shared."""
    if core_fraction >= 1.0 or core is None:
        yield "whole"
        return
    command = [sys.executable, str(Path(__file__).with_name("bench_load.py")), str(core), str(1.0 - core_fraction)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as load:
        try:
            assert load.stdout is not None
            scheduling_class = load.stdout.readline().strip()
            if not scheduling_class:
                raise UsageError(f"the competing load on core {core} does not run", remedy="give another --cpu")
            yield scheduling_class
        finally:
            load.terminate()


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except OSError:  # not Linux
        return 0
