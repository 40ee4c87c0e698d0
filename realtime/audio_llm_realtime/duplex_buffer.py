"""The listener's end: frames go in and out in blocks of any size, and the late-chunk policy is kept.

The device's callback calls `hear` and `play`. Both only copy frames; neither waits. Frames are counted from 0, and wet
frames carry the positions of the frames they were made from, so that a late chunk never shifts the sound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.output_mixer import OutputMixer
from audio_llm_realtime.ring import Ring
from audio_llm_realtime.sanitize import Sanitizer

_BLOCK_CHUNKS = 4  # units that `hear` takes at once


class DuplexBuffer:
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
        self,
        chunk_frames: int,
        wet_delay: int,
        history_chunks: int,
        counters: Counters,
        wet: float = 1.0,
        extra_chunks: int = 0,
    ) -> None:
        self.chunk_frames = chunk_frames
        self.delay = chunk_frames * (1 + extra_chunks) + wet_delay
        self.input_ring = Ring(EARS, chunk_frames * (history_chunks + _BLOCK_CHUNKS + extra_chunks) + wet_delay)
        self.wet_ring = Ring(EARS, chunk_frames * (history_chunks + _BLOCK_CHUNKS + extra_chunks))
        self.mixer = OutputMixer(chunk_frames, wet)
        self._wet_delay = wet_delay
        self._counters = counters
        self._input = np.zeros((EARS, _BLOCK_CHUNKS * chunk_frames), np.float32)
        self._sanitizer = Sanitizer(EARS, _BLOCK_CHUNKS * chunk_frames, counters)
        self._wet = np.zeros((EARS, chunk_frames), np.float32)
        self._dry = np.zeros((EARS, chunk_frames), np.float32)
        self._ready = np.zeros((EARS, chunk_frames), np.float32)
        self._left = 0  # frames of `_ready` that are not played yet
        self._next = -chunk_frames * (
            1 + extra_chunks
        )  # position among the wet frames of the next unit to be made ready
        self._dry_ranges: tuple[
            tuple[int, int], ...
        ] = ()  # positions that must not be played wet, those ahead, in order

    @property
    def next_position(self) -> int:
        """Position of the wet unit that is played next; what comes for an earlier one comes late."""
        return self._next

    def mark_dry(self, begin: int, end: int) -> None:
        """Have the frames from `begin` to `end` played dry; the worker calls this before it writes beyond `begin`."""
        ranges = [frames for frames in self._dry_ranges if frames[1] > self._next]
        if ranges and ranges[-1][1] >= begin:
            before = ranges.pop()
            begin, end = min(begin, before[0]), max(end, before[1])
        self._dry_ranges = (*ranges, (begin, end))  # replaced whole: the device's callback reads it meanwhile

    def write_input(self, block: NDArray[np.float32]) -> None:
        """Take frames from the device: (2, T) float32. What is no number in them counts as zero."""
        for start in range(0, block.shape[1], self._input.shape[1]):
            length = min(self._input.shape[1], block.shape[1] - start)
            piece = self._input[:, :length]
            piece[:] = block[:, start : start + length]
            self._sanitizer.sanitize(piece)
            self.input_ring.write(piece)

    def read_output(self, out: NDArray[np.float32]) -> None:
        """Give frames to the device: fill (2, T) float32, as many as were heard."""
        done = 0
        while done < out.shape[1]:
            if not self._left:
                self._mix_next_chunk()
            length = min(self._left, out.shape[1] - done)
            start = self.chunk_frames - self._left
            out[:, done : done + length] = self._ready[:, start : start + length]
            self._left -= length
            done += length

    def _mix_next_chunk(self) -> None:
        position, self._next = self._next, self._next + self.chunk_frames
        self._left = self.chunk_frames
        if position < 0:  # nothing was heard so long ago
            self._ready[:] = 0.0
            return
        marked = any(begin <= position < end for begin, end in self._dry_ranges)
        available = not marked and self.wet_ring.read(position, self._wet)
        if not available and self.mixer.target_wet:
            self._counters.add(Count.DRY)
        if not self.input_ring.read(position - self._wet_delay, self._dry):  # more was heard at once than is kept
            self._dry[:] = 0.0
        self.mixer.mix(self._wet if available else None, self._dry, self._ready)
