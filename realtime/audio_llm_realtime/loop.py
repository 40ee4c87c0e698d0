"""The loop over recorded audio: blocks pass through buffer and worker as a device would send them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.clock import Clock, Spent
from audio_llm_realtime.contract import EARS
from audio_llm_realtime.worker import Worker


class FileLoop:
    """Feeds chunk i at i x 8 ms of a clock, and plays what is ready by then.

    Chunk i is played while chunk i + 1 is recorded, so that it must be ready 8 ms after it arrived.

    Args:
        worker: Processes the chunks.
        clock: Determines the computation time of each chunk.
        after_chunk: Called after every processed chunk; may enroll a speaker.
    """

    def __init__(self, worker: Worker, clock: Clock, after_chunk: Callable[[], None] | None = None) -> None:
        self._worker = worker
        self._clock = clock
        self._after_chunk = after_chunk
        self._period_ns = round(1e6 * worker.engine.contract.chunk_ms)
        self._tick = 0
        self._held: Spent | None = None  # computed, but not ready before this time
        self._free_ns = 0

    def run(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Process a waveform chunk by chunk; a later call continues where this one ended.

        Args:
            waveform: (2, T) float32 at the worker's rate; T is a multiple of its chunk length.

        Returns:
            (2, T) float32, delayed by `worker.buffer.delay` frames.
        """
        chunk_frames = self._worker.buffer.chunk_frames
        out = np.zeros((EARS, waveform.shape[1]), np.float32)
        self._clock.resume(self._tick * self._period_ns)
        for start in range(0, waveform.shape[1], chunk_frames):
            self._advance(self._tick * self._period_ns)
            self._worker.buffer.write_input(waveform[:, start : start + chunk_frames])
            self._worker.buffer.read_output(out[:, start : start + chunk_frames])
            self._tick += 1
        self._advance(self._tick * self._period_ns)
        return out

    def _advance(self, until_ns: int) -> None:
        """Let the worker process what it can have finished by `until_ns`."""
        worker = self._worker
        while True:
            if self._held is not None:
                if self._held.finish_ns > until_ns:
                    return
                worker.commit(self._held.wall_ns, self._held.cpu_ns)
                self._free_ns, self._held = self._held.finish_ns, None
                if self._after_chunk is not None:
                    self._after_chunk()
            if not worker.ready:
                return
            worker.catch_up()
            self._clock.begin(max(self._free_ns, worker.chunk_index * self._period_ns))
            worker.compute()
            self._held = self._clock.end(worker.chunk_index)


def run_blocks(worker: Worker, waveform: NDArray[np.float32], sizes: list[int]) -> NDArray[np.float32]:
    """Process a waveform in blocks of any size, with every chunk ready immediately.

    Args:
        worker: Processes the chunks.
        waveform: (2, T) float32 at the worker's rate.
        sizes: Sizes of successive blocks in frames, repeated until the waveform ends.

    Returns:
        (2, T) float32, delayed by `worker.buffer.delay` frames.
    """
    out = np.zeros((EARS, waveform.shape[1]), np.float32)
    start = turn = 0
    while start < waveform.shape[1]:
        end = min(start + sizes[turn % len(sizes)], waveform.shape[1])
        worker.buffer.write_input(waveform[:, start:end])
        while worker.ready:
            worker.compute()
            worker.commit(0, 0)
        worker.buffer.read_output(out[:, start:end])
        start, turn = end, turn + 1
    return out
