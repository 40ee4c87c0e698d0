"""The worker: runs the engine on the buffered input, at the device's rate, and catches up when it is late.

A late chunk is still processed, so that the network's state skips no input. When more than `max_backlog` chunks wait
beyond the extra chunks, all but the newest are dropped, the state is reset, the newest chunk is processed but played
dry, and the wet signal fades in after it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS
from audio_llm_realtime.counters import Count
from audio_llm_realtime.duplex_buffer import DuplexBuffer
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrollment import EnrollmentRecorder
from audio_llm_realtime.errors import UsageError
from audio_llm_realtime.resample import Decimator, Interpolator, delay_frames

MAX_BACKLOG = 16  # chunks that may wait, 128 ms


class Worker:
    """Reads chunks from a duplex buffer, processes them, and writes the output back.

    Args:
        engine: Runs the network.
        sample_rate: Rate of the device in Hz, an integer multiple of the model's; by default the model's.
        wet: Gain of the wet signal, 0 to 1.
        max_backlog: Chunks that may wait, beyond the extra chunks, before all but the newest are dropped.
        extra_chunks: Chunks of additional output delay; each gives every chunk 8 ms more time.

    Raises:
        UsageError: The device's rate is not an integer multiple of the model's.

    Attributes:
        buffer: The device side of the loop.
        counters: The engine's counters, which count all events.
        resampling_ms: Delay of the resampling filters, down and up.
        extra_chunks_ms: Delay of the extra chunks.
        recorder: Receives every chunk, for enrollment while the loop runs.
    """

    def __init__(
        self,
        engine: Engine,
        sample_rate: int | None = None,
        wet: float = 1.0,
        max_backlog: int = MAX_BACKLOG,
        extra_chunks: int = 0,
    ) -> None:
        contract = engine.contract
        rate = contract.sample_rate if sample_rate is None else sample_rate
        ratio, rest = divmod(rate, contract.sample_rate)
        if rest or ratio < 1:
            raise UsageError(
                f"a device at {rate} Hz does not fit a model at {contract.sample_rate} Hz",
                remedy=f"set the device to an integer multiple, such as {3 * contract.sample_rate} Hz",
            )
        self.engine = engine
        self.counters = engine.counters
        self.resampling_ms = 1000.0 * delay_frames(ratio) / rate
        self.extra_chunks_ms = extra_chunks * contract.chunk_ms
        chunk = contract.chunk_samples
        wet_delay = contract.lookahead_samples * ratio + delay_frames(ratio)
        self.buffer = DuplexBuffer(chunk * ratio, wet_delay, 4 * max_backlog + 8, self.counters, wet, extra_chunks)
        self.recorder = EnrollmentRecorder(contract)
        self._max_backlog = max_backlog + extra_chunks
        self._decimator = Decimator(ratio, EARS, chunk) if ratio > 1 else None
        self._interpolator = Interpolator(ratio, EARS, chunk) if ratio > 1 else None
        self._input = np.zeros((EARS, chunk * ratio), np.float32)
        self._chunk = np.zeros((EARS, chunk), np.float32)
        self._sound = np.zeros((EARS, chunk), np.float32)
        self._output = np.zeros((EARS, chunk * ratio), np.float32)
        self._position = 0  # frames
        self._dry_until = 0  # frames before this one are played dry or were played

    @property
    def ready(self) -> bool:
        """Whether a complete chunk waits."""
        return self.buffer.input_ring.written - self._position >= self.buffer.chunk_frames

    @property
    def chunk_index(self) -> int:
        """Index of the chunk that is processed next, or that was computed and not committed."""
        return self._position // self.buffer.chunk_frames

    def catch_up(self) -> None:
        """Drop all chunks but the newest if too many wait."""
        waiting = (self.buffer.input_ring.written - self._position) // self.buffer.chunk_frames
        if waiting > self._max_backlog + 1:
            self._skip(waiting - 1)

    def compute(self) -> None:
        """Process the next chunk; `commit` publishes the output."""
        while not self.buffer.input_ring.read(self._position, self._input):  # overwritten: far behind
            self._skip((self.buffer.input_ring.written - self._position) // self.buffer.chunk_frames - 1)
        chunk = self._to_model(self._input)
        self.recorder.write(chunk)
        self.engine.process(chunk, self._sound)
        if self.engine.failed:
            self.counters.add(Count.RESETS)
            self._play_dry(self._position, 2)  # this one, and the first from an empty state
        self._to_device(self._sound)

    def commit(self, wall_ns: int, cpu_ns: int) -> None:
        """Publish the computed output and record the computation time."""
        self.buffer.wet_ring.write(self._output)
        late = self.buffer.next_position > self._position
        self._position += self.buffer.chunk_frames
        self.counters.record_chunk(wall_ns, cpu_ns, late)

    def _skip(self, chunks: int) -> None:
        chunk_frames = self.buffer.chunk_frames
        self.counters.record_skipped(chunks)
        self.counters.add(Count.RESETS)
        self.engine.reset()
        for filter_ in (self._decimator, self._interpolator):
            if filter_ is not None:
                filter_.reset()
        self.buffer.mark_dry(self._position, self._position + chunks * chunk_frames)
        self._position += chunks * chunk_frames
        self._play_dry(self._position, 1)
        self.buffer.wet_ring.jump(self._position)

    def _play_dry(self, begin: int, chunks: int) -> None:
        """Play chunks dry after a reset; a chunk that was already marked is not counted twice."""
        end = begin + chunks * self.buffer.chunk_frames
        self.counters.add(Count.SETTLING, (end - max(begin, self._dry_until)) // self.buffer.chunk_frames)
        self.buffer.mark_dry(begin, end)
        self._dry_until = end

    def _to_model(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._decimator is None:
            return block
        self._decimator.process(block, self._chunk)
        return self._chunk

    def _to_device(self, sound: NDArray[np.float32]) -> None:
        if self._interpolator is None:
            self._output[:] = sound
        else:
            self._interpolator.process(sound, self._output)
