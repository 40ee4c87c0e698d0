"""A ring of frames between one writer and one reader, without a lock and without allocation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Ring:
    """Keeps the last frames of an endless signal, each at its position; the first has position 0.

    The writer never waits and never fails: it overwrites the oldest frames. Positions belong to the reader, who may
    read any frames that are still there, and who learns when they are not. Frames before position 0 are zeros.

    Args:
        channels: Of a frame.
        capacity: Frames that are kept.

    Attributes:
        written: Position behind the last frame; grows only.
    """

    def __init__(self, channels: int, capacity: int) -> None:
        self._frames = np.zeros((channels, capacity), np.float32)
        self._capacity = capacity
        self._begun = 0  # raised before frames are overwritten, `written` after they are complete
        self.written = 0

    def write(self, block: NDArray[np.float32]) -> None:
        """Append a block (C, T) float32, T at most the capacity."""
        length = block.shape[1]
        self._begun = self.written + length
        start = self.written % self._capacity
        first = min(length, self._capacity - start)
        self._frames[:, start : start + first] = block[:, :first]
        self._frames[:, : length - first] = block[:, first:]
        self.written += length

    def jump(self, position: int) -> None:
        """Go on writing at a later position; what lies between is not to be read."""
        self._begun = max(self._begun, position)
        self.written = max(self.written, position)

    def read(self, position: int, out: NDArray[np.float32]) -> bool:
        """Copy frames.

        Args:
            position: Of the first frame.
            out: (C, T) float32 to copy to.

        Returns:
            False where the frames are not written yet, or are written over; `out` is then of no use.
        """
        length = out.shape[1]
        if position + length > self.written:
            return False
        start = position % self._capacity
        first = min(length, self._capacity - start)
        out[:, :first] = self._frames[:, start : start + first]
        out[:, first:] = self._frames[:, : length - first]
        return self._begun - position <= self._capacity  # checked last: the writer may have come around meanwhile
