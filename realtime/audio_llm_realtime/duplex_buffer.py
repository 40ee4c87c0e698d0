"""The device side of the loop: blocks of any size in and out, and the playback part of the late-chunk policy.

The device's callback calls `write_input` and `read_output`. Both only copy and mix frames; neither waits. Frames are
counted from 0, and wet frames have the positions of the input frames they were computed from, so that a late chunk
never shifts the signal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.output_mixer import OutputMixer
from audio_llm_realtime.ring import Ring
from audio_llm_realtime.sanitize import Sanitizer

_BLOCK_CHUNKS = 4  # chunks that `write_input` copies at once


class DuplexBuffer:
    """Passes frames between a device, or a file, and the worker.

    Args:
        chunk_frames: Frames of a chunk at the device's rate.
        wet_delay: Delay of the wet signal relative to the input it was computed from, in frames.
        history_chunks: Chunks of input that are stored for a worker that is late.
        counters: Counters for replaced samples and chunks played dry.
        wet: Gain of the wet signal, 0 to 1.
        extra_chunks: Chunks of additional output delay, which give each chunk that much more time.

    Attributes:
        chunk_frames: As given.
        input_ring: Input frames, read by the worker.
        wet_ring: Wet frames, written by the worker.
        mixer: Mixes the output; holds the wet gain and the bypass.
        delay: Delay from the input to the output, in frames.
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
        self._next = -chunk_frames * (1 + extra_chunks)  # position of the next chunk to be mixed, in wet frames
        self._dry_ranges: tuple[tuple[int, int], ...] = ()  # ascending ranges of positions that are played dry

    @property
    def next_position(self) -> int:
        """Position of the wet chunk that is played next; a chunk at an earlier position is late."""
        return self._next

    def mark_dry(self, begin: int, end: int) -> None:
        """Play the frames from `begin` to `end` dry; the worker calls this before it writes beyond `begin`."""
        ranges = [frames for frames in self._dry_ranges if frames[1] > self._next]
        if ranges and ranges[-1][1] >= begin:
            before = ranges.pop()
            begin, end = min(begin, before[0]), max(end, before[1])
        self._dry_ranges = (*ranges, (begin, end))  # replaced as a whole: the callback reads it concurrently

    def write_input(self, block: NDArray[np.float32]) -> None:
        """Write input frames (2, T) float32 from the device; NaN, infinity and denormals are replaced by zero."""
        for start in range(0, block.shape[1], self._input.shape[1]):
            length = min(self._input.shape[1], block.shape[1] - start)
            piece = self._input[:, :length]
            piece[:] = block[:, start : start + length]
            self._sanitizer.sanitize(piece)
            self.input_ring.write(piece)

    def read_output(self, out: NDArray[np.float32]) -> None:
        """Fill (2, T) float32 with output frames for the device, as many as were written as input."""
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
        if position < 0:  # before the first input
            self._ready[:] = 0.0
            return
        marked = any(begin <= position < end for begin, end in self._dry_ranges)
        available = not marked and self.wet_ring.read(position, self._wet)
        if not available and self.mixer.target_wet:
            self._counters.add(Count.DRY)
        if not self.input_ring.read(position - self._wet_delay, self._dry):  # a block exceeded the stored history
            self._dry[:] = 0.0
        self.mixer.mix(self._wet if available else None, self._dry, self._ready)
