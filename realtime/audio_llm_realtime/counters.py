"""Count what happens to chunks, in arrays that are allocated once."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

STALL_CPU_NS = 4_000_000
DEFAULT_CAPACITY = 75_000  # chunks whose times are kept: ten minutes


class Count(IntEnum):
    """What is counted; `Ledger.counts` has one number for each."""

    CHUNKS = 0  # that were run
    MISSES = 1  # that were not ready when their turn came; the listener got the dry signal
    STALLS = 2  # of the misses, those that needed less than 4 ms of CPU time
    SKIPPED = 3  # of the misses, those that were never run
    RESETS = 4  # of the state, after chunks were skipped or the network gave no numbers
    SETTLING = 5  # chunks after a reset that were played dry
    DRY = 6  # played dry although the wet signal was wanted
    NOT_FINITE_IN = 7  # samples that were NaN or infinite
    DENORMAL_IN = 8  # samples too small to be computed with quickly
    NOT_FINITE_OUT = 9  # chunks for which the network gave NaN or infinity
    LIMITED = 10  # chunks that were louder than the limit
    ENROLMENTS = 11  # looks that replaced the person who is heard
    INPUT_OVERFLOWS = 12  # that the device reported
    INPUT_UNDERFLOWS = 13
    OUTPUT_OVERFLOWS = 14
    OUTPUT_UNDERFLOWS = 15


class Counters:
    """Counts and times of one run.

    Args:
        kept: Chunks whose times are kept; of a longer run, the last so many.

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
        """Count so many more."""
        self.counts[kind] += number

    def record_chunk(self, wall_ns: int, cpu_ns: int, late: bool) -> None:
        """Note a chunk that was run.

        Args:
            wall_ns: Time it took.
            cpu_ns: CPU time of the thread that ran it.
            late: It was not ready when its turn came.
        """
        index = self.counts[Count.CHUNKS] % len(self._wall_ns)
        self._wall_ns[index] = wall_ns
        self._cpu_ns[index] = cpu_ns
        self._last_cpu_ns = cpu_ns
        self.counts[Count.CHUNKS] += 1
        if late:
            self._record_misses(1)

    def record_skipped(self, number: int) -> None:
        """Note chunks that were never run; they were stalls if the chunk that held them up was one."""
        self.counts[Count.SKIPPED] += number
        self._record_misses(number)

    def clear(self) -> None:
        """Begin anew."""
        self.counts[:] = 0
        self._wall_ns[:] = -1
        self._cpu_ns[:] = -1

    @property
    def wall_ms(self) -> NDArray[np.float64]:
        """(N,) times of the kept chunks."""
        return self._wall_ns[: self[Count.CHUNKS]] / 1e6

    @property
    def cpu_ms(self) -> NDArray[np.float64]:
        """(N,) CPU times of the kept chunks."""
        return self._cpu_ns[: self[Count.CHUNKS]] / 1e6

    def _record_misses(self, number: int) -> None:
        self.counts[Count.MISSES] += number
        if self._last_cpu_ns < STALL_CPU_NS:
            self.counts[Count.STALLS] += number
