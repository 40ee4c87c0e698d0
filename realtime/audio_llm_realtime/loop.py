"""The loop over sound that is already there: blocks go through bridge and worker as a device would send them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.clock import Clock, Spent
from audio_llm_realtime.contract import EARS
from audio_llm_realtime.worker import Worker


class FileLoop:
    """Feeds chunk i at i x 8 ms of a clock, and plays what is ready by then.

    Chunk i is played while chunk i + 1 is heard, so that it must be ready 8 ms after it came.

    Args:
        worker: Runs the chunks.
        clock: Says how long they take.
        after_chunk: Called after every chunk that was run; may enrol anew.
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
        """Run a sound through, chunk by chunk; a later call goes on where this one ended.

        Args:
            waveform: (2, T) float32 at the rate of the worker; T a multiple of a chunk there.

        Returns:
            (2, T) float32, `worker.bridge.delay` frames late.
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
        """Let the worker do what it can have done by then."""
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
    """Run a sound through in blocks of any sizes, every chunk ready at once.

    Args:
        worker: Runs the chunks.
        waveform: (2, T) float32 at the rate of the worker.
        sizes: Of the blocks, in turn, until the sound ends.

    Returns:
        (2, T) float32, `worker.bridge.delay` frames late.
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
