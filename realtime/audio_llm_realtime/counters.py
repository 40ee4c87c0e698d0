"""Event counters and computation times of chunks, in arrays that are allocated once."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

STALL_CPU_NS = 4_000_000
DEFAULT_CAPACITY = 75_000  # chunks whose times are stored: ten minutes


class Count(IntEnum):
    """Counted events; `Counters.counts` has one number for each. The names in lower case are keys of the report."""

    CHUNKS = 0  # chunks that were processed
    MISSES = 1  # chunks that missed their deadline; the dry signal was played instead
    STALLS = 2  # misses that used less than 4 ms of CPU time: the thread was not scheduled
    SKIPPED = 3  # misses that were never processed
    RESETS = 4  # state resets, after skipped chunks or non-finite output
    SETTLING = 5  # chunks after a reset that were played dry
    DRY = 6  # chunks played dry although the wet signal was requested
    NOT_FINITE_IN = 7  # input samples that were NaN or infinite
    DENORMAL_IN = 8  # input samples that were denormal, which slows computation down
    NOT_FINITE_OUT = 9  # chunks for which the network returned NaN or infinity
    LIMITED = 10  # chunks that exceeded the output limit
    ENROLMENTS = 11  # enrollments that set the target speaker
    INPUT_OVERFLOWS = 12  # reported by the device, as the three below
    INPUT_UNDERFLOWS = 13
    OUTPUT_OVERFLOWS = 14
    OUTPUT_UNDERFLOWS = 15


class Counters:
    """Event counts and computation times of one run.

    Args:
        capacity: Number of chunks whose times are stored; a longer run overwrites the oldest.

    Attributes:
        counts: (len(Count),) int64.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self.counts = np.zeros(len(Count), np.int64)
        self._wall_ns = np.full(capacity, -1, np.int64)  # written now, so that no page is mapped later
        self._cpu_ns = np.full(capacity, -1, np.int64)
        self._last_cpu_ns = 0

    def __getitem__(self, kind: Count) -> int:
        return int(self.counts[kind])

    def add(self, kind: Count, number: int = 1) -> None:
        """Add a number to a count."""
        self.counts[kind] += number

    def record_chunk(self, wall_ns: int, cpu_ns: int, late: bool) -> None:
        """Record a processed chunk.

        Args:
            wall_ns: Computation time of the chunk.
            cpu_ns: CPU time of the thread that processed it.
            late: Whether it missed its deadline.
        """
        index = self.counts[Count.CHUNKS] % len(self._wall_ns)
        self._wall_ns[index] = wall_ns
        self._cpu_ns[index] = cpu_ns
        self._last_cpu_ns = cpu_ns
        self.counts[Count.CHUNKS] += 1
        if late:
            self._record_misses(1)

    def record_skipped(self, number: int) -> None:
        """Record chunks that were never processed; they count as stalls if the chunk that delayed them was one."""
        self.counts[Count.SKIPPED] += number
        self._record_misses(number)

    def clear(self) -> None:
        """Reset all counts and times."""
        self.counts[:] = 0
        self._wall_ns[:] = -1
        self._cpu_ns[:] = -1

    @property
    def wall_ms(self) -> NDArray[np.float64]:
        """(N,) computation times of the stored chunks, in ms."""
        return self._wall_ns[: self[Count.CHUNKS]] / 1e6

    @property
    def cpu_ms(self) -> NDArray[np.float64]:
        """(N,) CPU times of the stored chunks, in ms."""
        return self._cpu_ns[: self[Count.CHUNKS]] / 1e6

    def _record_misses(self, number: int) -> None:
        self.counts[Count.MISSES] += number
        if self._last_cpu_ns < STALL_CPU_NS:
            self.counts[Count.STALLS] += number
