"""Replace non-finite input samples, and limit the output level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.counters import Count, Counters

LIMIT_DB = 6.0  # largest output peak, relative to the input peak of the last second
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_SMALLEST_NORMAL = np.uint32(0x00800000)
_ONE = np.uint32(1)


class Sanitizer:
    """Replaces NaN, infinity and denormal numbers by zero and counts them.

    It tests the bits, because a processor that treats denormals as zero does not reveal them otherwise.

    Args:
        channels: Number of channels of a block.
        most: Number of samples of the longest block.
        counters: Counters for the replaced samples.
    """

    def __init__(self, channels: int, most: int, counters: Counters) -> None:
        self._bits = np.zeros((channels, most), np.uint32)
        self._lowered = np.zeros((channels, most), np.uint32)
        self._counters = counters

    def sanitize(self, block: NDArray[np.float32]) -> float:
        """Sanitize a block in place and return its peak.

        The number of passes is small, because in a paced loop each pass costs more than its arithmetic.

        Args:
            block: (C, T) float32, its last axis contiguous.

        Returns:
            The largest remaining magnitude; 0 for an empty block.
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
    """Limits the output relative to the input peak of the last second.

    Args:
        chunks: Number of chunks per second.
        limit_db: How far the output may exceed that peak, in dB.
        counters: Counters for the limited chunks.
    """

    def __init__(self, chunks: int, limit_db: float, counters: Counters) -> None:
        self._peaks = np.zeros(chunks, np.float32)
        self._index = 0
        self._factor = np.float32(10.0 ** (limit_db / 20.0))
        self._counters = counters

    def reset(self) -> None:
        """Forget the input peaks."""
        self._peaks[:] = 0.0
        self._index = 0

    def update(self, peak: float) -> None:
        """Store the peak of an input chunk."""
        self._peaks[self._index] = peak
        self._index = (self._index + 1) % len(self._peaks)

    def within(self, sound: NDArray[np.float32]) -> bool:
        """Return whether an output chunk is finite and within the limit."""
        most = self._peaks.max() * self._factor
        return bool(sound.max() <= most and sound.min() >= -most)  # NaN compares as false

    def limit(self, sound: NDArray[np.float32]) -> None:
        """Clip an output chunk in place."""
        most = self._peaks.max() * self._factor
        np.clip(sound, -most, most, out=sound)
        self._counters.add(Count.LIMITED)
