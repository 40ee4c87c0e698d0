"""What goes in is made finite, what comes out is not louder than it may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.counters import Count, Counters

LIMIT_DB = 6.0  # how much louder than the input of the last second the output may be
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_SMALLEST_NORMAL = np.uint32(0x00800000)
_ONE = np.uint32(1)


class Sanitizer:
    """Replaces NaN, infinity and denormal numbers by zero and counts them.

    It looks at bits, because a processor told to take denormals as zero does not show them otherwise.

    Args:
        channels: Of a block.
        most: Samples in the longest block.
        ledger: Counts what was replaced.
    """

    def __init__(self, channels: int, most: int, counters: Counters) -> None:
        self._bits = np.zeros((channels, most), np.uint32)
        self._lowered = np.zeros((channels, most), np.uint32)
        self._counters = counters

    def sanitize(self, block: NDArray[np.float32]) -> float:
        """Clean a block in place and return its peak.

        Few passes, because in a loop with pauses each costs more than its arithmetic.

        Args:
            block: (C, T) float32, its last axis contiguous.

        Returns:
            The largest magnitude of what remains; 0 of an empty block.
        """
        if not block.shape[1]:
            return 0.0
        bits, lowered = self._bits[:, : block.shape[1]], self._lowered[:, : block.shape[1]]
        np.bitwise_and(block.view(np.uint32), _MAGNITUDE, out=bits)
        np.subtract(bits, _ONE, out=lowered)  # zero wraps around to the largest number and is no denormal
        if lowered.min() < _SMALLEST_NORMAL - _ONE:
            self._replace(block, lowered < _SMALLEST_NORMAL - _ONE, Count.DENORMAL_IN)
        peak = bits.max()
        if peak >= _INFINITY:
            self._replace(block, bits >= _INFINITY, Count.NOT_FINITE_IN)
            return float(np.abs(block).max())
        return float(peak.view(np.float32)) if peak >= _SMALLEST_NORMAL else 0.0

    def _replace(self, block: NDArray[np.float32], mask: NDArray[np.bool_], kind: Count) -> None:
        block[mask] = 0.0
        self._counters.add(kind, int(np.count_nonzero(mask)))


class Limiter:
    """Keeps the output within a limit of the input's peak over the last second.

    Args:
        chunks: Chunks in a second.
        limit_db: How far the output may exceed that peak.
        ledger: Counts the chunks that would have.
    """

    def __init__(self, chunks: int, limit_db: float, counters: Counters) -> None:
        self._peaks = np.zeros(chunks, np.float32)
        self._index = 0
        self._factor = np.float32(10.0 ** (limit_db / 20.0))
        self._counters = counters

    def reset(self) -> None:
        """Forget what was heard."""
        self._peaks[:] = 0.0
        self._index = 0

    def update(self, peak: float) -> None:
        """Note the peak of an input chunk."""
        self._peaks[self._index] = peak
        self._index = (self._index + 1) % len(self._peaks)

    def within(self, sound: NDArray[np.float32]) -> bool:
        """True where an output chunk is finite and not too loud."""
        most = self._peaks.max() * self._factor
        return bool(sound.max() <= most and sound.min() >= -most)  # NaN compares as false

    def limit(self, sound: NDArray[np.float32]) -> None:
        """Clip an output chunk in place."""
        most = self._peaks.max() * self._factor
        np.clip(sound, -most, most, out=sound)
        self._counters.add(Count.LIMITED)
