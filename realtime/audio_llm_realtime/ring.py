"""A ring buffer between one writer and one reader, without a lock and without allocation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Ring:
    """Stores the last frames of a stream, each at its position; the first frame has position 0.

    The writer never waits and never fails: it overwrites the oldest frames. The reader may read any position that is
    still stored; `read` returns False when it is not. Frames before position 0 are zeros.

    Args:
        channels: Number of channels of a frame.
        capacity: Number of stored frames.

    Attributes:
        written: Position after the last frame; it only grows.
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
        """Continue writing at a later position; the positions in between must not be read."""
        self._begun = max(self._begun, position)
        self.written = max(self.written, position)

    def read(self, position: int, out: NDArray[np.float32]) -> bool:
        """Copy frames.

        Args:
            position: Position of the first frame.
            out: (C, T) float32, written to.

        Returns:
            False if frames are not written yet or were overwritten; the content of `out` is then undefined.
        """
        length = out.shape[1]
        if position + length > self.written:
            return False
        start = position % self._capacity
        first = min(length, self._capacity - start)
        out[:, :first] = self._frames[:, start : start + first]
        out[:, first:] = self._frames[:, : length - first]
        return self._begun - position <= self._capacity  # checked last: the writer may have overtaken
