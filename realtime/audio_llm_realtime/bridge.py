"""The listener's end: frames go in and out in blocks of any size, and the late-chunk policy is kept.

The device's callback calls `hear` and `play`. Both only copy frames; neither waits. Frames are counted from 0, and wet
frames carry the positions of the frames they were made from, so that a late chunk never shifts the sound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS
from audio_llm_realtime.guard import Cleaner
from audio_llm_realtime.ledger import Count, Ledger
from audio_llm_realtime.playout import Playout
from audio_llm_realtime.ring import Ring

_PIECE = 4  # units that `hear` takes at once


class Bridge:
    """Carries frames between a device, or a file, and the worker.

    Args:
        unit: Frames of a chunk at the device's rate.
        wet_delay: Frames that the wet signal lags behind the frames it was made from.
        kept_units: Units of input that are kept for a worker that is behind.
        ledger: Counts what was replaced and what was played dry.
        wet: Share of the wet signal, 0 to 1.
        spare: Units that the output waits longer than it must, so that a chunk has as much more time.

    Attributes:
        unit: As given.
        heard: What came in, read by the worker.
        made: What the worker gave.
        playout: Holds the share and the bypass.
        delay: Frames from the input to the same sound in the output.
    """

    def __init__(
        self, unit: int, wet_delay: int, kept_units: int, ledger: Ledger, wet: float = 1.0, spare: int = 0
    ) -> None:
        self.unit = unit
        self.delay = unit * (1 + spare) + wet_delay
        self.heard = Ring(EARS, unit * (kept_units + _PIECE + spare) + wet_delay)
        self.made = Ring(EARS, unit * (kept_units + _PIECE + spare))
        self.playout = Playout(unit, wet)
        self._wet_delay = wet_delay
        self._ledger = ledger
        self._input = np.zeros((EARS, _PIECE * unit), np.float32)
        self._cleaner = Cleaner(EARS, _PIECE * unit, ledger)
        self._wet = np.zeros((EARS, unit), np.float32)
        self._dry = np.zeros((EARS, unit), np.float32)
        self._ready = np.zeros((EARS, unit), np.float32)
        self._left = 0  # frames of `_ready` that are not played yet
        self._next = -unit * (1 + spare)  # position among the wet frames of the next unit to be made ready
        self._gaps: tuple[tuple[int, int], ...] = ()  # positions that must not be played wet, those ahead, in order

    @property
    def next_position(self) -> int:
        """Position of the wet unit that is played next; what comes for an earlier one comes late."""
        return self._next

    def withhold(self, begin: int, end: int) -> None:
        """Have the frames from `begin` to `end` played dry; the worker calls this before it writes beyond `begin`."""
        gaps = [gap for gap in self._gaps if gap[1] > self._next]
        if gaps and gaps[-1][1] >= begin:
            before = gaps.pop()
            begin, end = min(begin, before[0]), max(end, before[1])
        self._gaps = (*gaps, (begin, end))  # replaced whole: the device's callback reads it meanwhile

    def hear(self, block: NDArray[np.float32]) -> None:
        """Take frames from the device: (2, T) float32. What is no number in them counts as zero."""
        for start in range(0, block.shape[1], self._input.shape[1]):
            length = min(self._input.shape[1], block.shape[1] - start)
            piece = self._input[:, :length]
            piece[:] = block[:, start : start + length]
            self._cleaner.clean(piece)
            self.heard.write(piece)

    def play(self, out: NDArray[np.float32]) -> None:
        """Give frames to the device: fill (2, T) float32, as many as were heard."""
        done = 0
        while done < out.shape[1]:
            if not self._left:
                self._make_ready()
            length = min(self._left, out.shape[1] - done)
            start = self.unit - self._left
            out[:, done : done + length] = self._ready[:, start : start + length]
            self._left -= length
            done += length

    def _make_ready(self) -> None:
        position, self._next = self._next, self._next + self.unit
        self._left = self.unit
        if position < 0:  # nothing was heard so long ago
            self._ready[:] = 0.0
            return
        withheld = any(begin <= position < end for begin, end in self._gaps)
        there = not withheld and self.made.read(position, self._wet)
        if not there and self.playout.wanted:
            self._ledger.add(Count.DRY)
        if not self.heard.read(position - self._wet_delay, self._dry):  # more was heard at once than is kept
            self._dry[:] = 0.0
        self.playout.play(self._wet if there else None, self._dry, self._ready)
