"""Clocks for a loop that reads a file: virtual time, measured or from a trace, or real time with a chunk every 8 ms."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Spent:
    """Computation time of one chunk.

    Attributes:
        finish_ns: Time on the clock at which the chunk was ready.
        wall_ns: Wall time of the computation.
        cpu_ns: CPU time of the thread.
    """

    finish_ns: int
    wall_ns: int
    cpu_ns: int


class Clock(Protocol):
    """Determines when a chunk is ready; the first chunk arrives at 0."""

    def resume(self, now_ns: int) -> None:
        """Resume at `now_ns`, after a pause between two parts of the audio."""

    def begin(self, earliest_ns: int) -> None:
        """Begin a chunk, not before `earliest_ns`."""

    def end(self, chunk: int) -> Spent:
        """End the current chunk, given its index, and return its computation time."""


class Stopwatch:
    """Measures the calling thread."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start measuring."""
        self._cpu_ns = time.thread_time_ns()
        self._wall_ns = time.perf_counter_ns()

    def stop(self) -> tuple[int, int]:
        """Return wall and CPU nanoseconds since `start`."""
        wall_ns = time.perf_counter_ns() - self._wall_ns
        return wall_ns, time.thread_time_ns() - self._cpu_ns


class MeasuredClock:
    """Virtual time that advances by the measured computation time, without waiting.

    Args:
        instant: Computation takes no virtual time, so that every chunk is in time; its real time is still measured.
    """

    def __init__(self, instant: bool = False) -> None:
        self._instant = instant
        self._watch = Stopwatch()
        self._begin_ns = 0

    def resume(self, now_ns: int) -> None:
        """See `Clock`; virtual time does not advance in between."""

    def begin(self, earliest_ns: int) -> None:
        """See `Clock`."""
        self._begin_ns = earliest_ns
        self._watch.start()

    def end(self, chunk: int) -> Spent:
        """See `Clock`."""
        wall_ns, cpu_ns = self._watch.stop()
        return Spent(self._begin_ns + (0 if self._instant else wall_ns), wall_ns, cpu_ns)


class TraceClock:
    """Virtual time in which the computation times of chunks come from a trace.

    Args:
        compute_ms: Computation time of each chunk, by its index; the trace repeats after its end.
        cpu_ms: CPU time of each chunk; `compute_ms` by default. A late chunk with less than 4 ms is a stall.
    """

    def __init__(self, compute_ms: Sequence[float], cpu_ms: Sequence[float] | None = None) -> None:
        self._wall_ns = [round(1e6 * ms) for ms in compute_ms]
        self._cpu_ns = self._wall_ns if cpu_ms is None else [round(1e6 * ms) for ms in cpu_ms]
        self._begin_ns = 0

    def resume(self, now_ns: int) -> None:
        """See `Clock`; virtual time does not advance in between."""

    def begin(self, earliest_ns: int) -> None:
        """See `Clock`."""
        self._begin_ns = earliest_ns

    def end(self, chunk: int) -> Spent:
        """See `Clock`."""
        wall_ns = self._wall_ns[chunk % len(self._wall_ns)]
        return Spent(self._begin_ns + wall_ns, wall_ns, self._cpu_ns[chunk % len(self._cpu_ns)])


class RealClock:
    """Real time: a chunk begins when a device would have sent it, or later if the process is not scheduled."""

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self._origin_ns = time.perf_counter_ns()

    def resume(self, now_ns: int) -> None:
        """See `Clock`."""
        self._origin_ns = time.perf_counter_ns() - now_ns

    def begin(self, earliest_ns: int) -> None:
        """See `Clock`; sleeps until `earliest_ns`."""
        wait_ns = self._origin_ns + earliest_ns - time.perf_counter_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        self._watch.start()

    def end(self, chunk: int) -> Spent:
        """See `Clock`."""
        wall_ns, cpu_ns = self._watch.stop()
        return Spent(time.perf_counter_ns() - self._origin_ns, wall_ns, cpu_ns)
