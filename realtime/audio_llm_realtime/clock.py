"""Clocks of a loop that reads a file: virtual time, that a test decides, or real time, a chunk every 8 ms."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Spent:
    """What one chunk took.

    Attributes:
        finish_ns: When it was ready.
        wall_ns: How long it took.
        cpu_ns: CPU time of the thread.
    """

    finish_ns: int
    wall_ns: int
    cpu_ns: int


class Clock(Protocol):
    """Says when a chunk is ready; the first one is there at 0."""

    def resume(self, now_ns: int) -> None:
        """Let time go on from `now_ns`, after a pause between two parts of the sound."""

    def begin(self, earliest_ns: int) -> None:
        """Begin a chunk, not before that time."""

    def end(self, chunk: int) -> Spent:
        """Say what the chunk that was begun took, by its index."""


class Stopwatch:
    """Measures the calling thread."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._cpu_ns = time.thread_time_ns()
        self._wall_ns = time.perf_counter_ns()

    def stop(self) -> tuple[int, int]:
        """Return wall and CPU nanoseconds since `start`."""
        wall_ns = time.perf_counter_ns() - self._wall_ns
        return wall_ns, time.thread_time_ns() - self._cpu_ns


class MeasuredClock:
    """Virtual time, as fast as the machine goes.

    Args:
        instant: Computing takes no virtual time, so that every chunk is in time; what it took is noted all the same.
    """

    def __init__(self, instant: bool = False) -> None:
        self._instant = instant
        self._watch = Stopwatch()
        self._begin_ns = 0

    def resume(self, now_ns: int) -> None:
        """See `Clock`; virtual time stands still anyway."""

    def begin(self, earliest_ns: int) -> None:
        """See `Clock`."""
        self._begin_ns = earliest_ns
        self._watch.start()

    def end(self, chunk: int) -> Spent:
        """See `Clock`."""
        wall_ns, cpu_ns = self._watch.stop()
        return Spent(self._begin_ns + (0 if self._instant else wall_ns), wall_ns, cpu_ns)


class TraceClock:
    """Virtual time in which every chunk takes what a trace says.

    Args:
        compute_ms: Of every chunk, by its index; from its beginning again behind its end.
        cpu_ms: CPU time of every chunk; like `compute_ms` by default. A late chunk with less than 4 ms is a stall.
    """

    def __init__(self, compute_ms: Sequence[float], cpu_ms: Sequence[float] | None = None) -> None:
        self._wall_ns = [round(1e6 * ms) for ms in compute_ms]
        self._cpu_ns = self._wall_ns if cpu_ms is None else [round(1e6 * ms) for ms in cpu_ms]
        self._begin_ns = 0

    def resume(self, now_ns: int) -> None:
        """See `Clock`; virtual time stands still anyway."""

    def begin(self, earliest_ns: int) -> None:
        """See `Clock`."""
        self._begin_ns = earliest_ns

    def end(self, chunk: int) -> Spent:
        """See `Clock`."""
        wall_ns = self._wall_ns[chunk % len(self._wall_ns)]
        return Spent(self._begin_ns + wall_ns, wall_ns, self._cpu_ns[chunk % len(self._cpu_ns)])


class RealClock:
    """Real time: a chunk begins when a device would have sent it, or later if the process is kept waiting."""

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self._origin_ns = time.perf_counter_ns()

    def resume(self, now_ns: int) -> None:
        """See `Clock`."""
        self._origin_ns = time.perf_counter_ns() - now_ns

    def begin(self, earliest_ns: int) -> None:
        """See `Clock`; sleeps until then."""
        wait_ns = self._origin_ns + earliest_ns - time.perf_counter_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        self._watch.start()

    def end(self, chunk: int) -> Spent:
        """See `Clock`."""
        wall_ns, cpu_ns = self._watch.stop()
        return Spent(time.perf_counter_ns() - self._origin_ns, wall_ns, cpu_ns)
