"""The engine: one binaural chunk in, the enrolled speaker's chunk out, with the network's state carried over.

Nothing here waits or does I/O: the output depends only on the chunks processed so far. Two sets of states are allocated
once; the network reads one and writes the other, and they are swapped after every chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS, Contract, Port
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.errors import RealtimeError
from audio_llm_realtime.onnx_session import open_session
from audio_llm_realtime.sanitize import LIMIT_DB, Limiter, Sanitizer

WARM_UP_CHUNKS = 60


class Engine:
    """Runs the streaming network of a contract.

    Before `set_conditions` is called, the conditions are zeros.

    Args:
        contract: The model's contract.
        counters: Counters for replaced samples, limited chunks and resets; new ones by default.
        limit_db: How far the output may exceed the input peak of the last second, in dB.
        warm_up: Number of noise chunks that are processed first, before the state is reset.

    Raises:
        ModelNotFoundError: The ONNX file is missing.
        ContractError: The ONNX file does not match the contract.

    Attributes:
        contract: As given.
        counters: As given.
        dry: (2, chunk) float32, the input with the same delay as the output of the last chunk.
        failed: Whether the network returned NaN or infinity for the last chunk; its state was reset and `dry` returned.
    """

    def __init__(
        self,
        contract: Contract,
        counters: Counters | None = None,
        limit_db: float = LIMIT_DB,
        warm_up: int = WARM_UP_CHUNKS,
    ) -> None:
        stream = contract.stream
        self.contract = contract
        self.counters = counters or Counters()
        self.failed = False
        self._session = open_session(stream.path, stream.sha256, stream.inputs, stream.outputs)
        self._chunk = _zeros(stream.chunk)
        self._sound = _zeros(stream.sound)
        self._before = np.zeros_like(self._sound)
        self._conditions = [_zeros(port) for port in stream.conditions]
        self._target_conditions: list[NDArray[np.float32]] | None = None
        self._current_conditions: list[NDArray[np.float32]] | None = None
        self._states = tuple([_zeros(state.input) for state in stream.states] for _ in "ab")
        self._bindings = (self._bind(0), self._bind(1))
        self._turn = 0
        self._delayed = np.zeros((EARS, contract.lookahead_samples + contract.chunk_samples), np.float32)
        self.dry = self._delayed[:, : contract.chunk_samples]
        self._fade = (np.arange(1, contract.chunk_samples + 1) / contract.chunk_samples).astype(np.float32)
        self._sanitizer = Sanitizer(EARS, contract.chunk_samples, self.counters)
        self._limiter = Limiter(round(1000.0 / contract.chunk_ms), limit_db, self.counters)
        self._warm_up(warm_up)

    def reset(self) -> None:
        """Reset the network's state and the limiter; the conditions stay."""
        for states in self._states:
            for state in states:
                state[:] = 0.0
        self._turn = 0
        self._delayed[:] = 0.0
        self._limiter.reset()
        self.failed = False

    def set_conditions(self, *vectors: NDArray[np.float32]) -> None:
        """Set the target speaker from the next chunk on.

        The state is not reset. The next chunk is computed for both speakers and cross-faded, which takes twice the time
        for that chunk; there is no fade to the first speaker. Another thread may call this.

        Args:
            vectors: One float32 vector per condition of the contract, of its shape with or without the leading 1.

        Raises:
            RealtimeError: The number or the shape of the vectors is wrong, or they are not finite.
        """
        ports = self.contract.stream.conditions
        if len(vectors) != len(ports):
            raise RealtimeError(f"the network takes {len(ports)} conditions, not {len(vectors)}")
        taken = []
        for port, vector in zip(ports, vectors, strict=True):
            given = np.array(vector, np.float32)
            if given.shape not in (port.sizes, port.sizes[1:]):
                raise RealtimeError(f"condition {port.name!r} has the shape {given.shape}, not {port.sizes}")
            if not np.isfinite(given).all():
                raise RealtimeError(f"condition {port.name!r} has values that are not finite")
            taken.append(given.reshape(port.sizes))
        self._target_conditions = taken

    def process(self, chunk: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Process one chunk.

        Args:
            chunk: (2, chunk) float32 at the contract's rate. NaN, infinity and denormals are replaced by zero.
            out: (2, chunk) float32, written to; a new array by default.

        Returns:
            (2, chunk) float32, delayed by the contract's lookahead, always finite and within the limit.

        Raises:
            HearingError: The chunk has another shape.
        """
        if chunk.shape != self._chunk.shape[1:]:
            raise RealtimeError(f"a chunk has the shape {self._chunk.shape[1:]}, not {chunk.shape}")
        self._chunk[0] = chunk
        self._limiter.update(self._sanitizer.sanitize(self._chunk[0]))
        self._delay_dry()
        if out is None:
            out = np.empty_like(self._chunk[0])
        self._run()
        self.failed = False
        if not self._limiter.within(self._sound):
            self._limit_or_reset()
        out[:] = self.dry if self.failed else self._sound[0]
        return out

    def _limit_or_reset(self) -> None:
        """Limit an output that is too loud; reset the state after one that is not finite."""
        if np.isfinite(self._sound).all():
            self._limiter.limit(self._sound)
            return
        self.failed = True
        self.counters.add(Count.NOT_FINITE_OUT)
        for states in self._states:
            for state in states:
                state[:] = 0.0

    def _run(self) -> None:
        """Run the network on the chunk; if the conditions changed, with the old and the new ones, and cross-fade."""
        binding = self._bindings[self._turn]
        conditions = self._target_conditions  # read once: another thread may replace it
        fade = conditions is not self._current_conditions and self._current_conditions is not None
        if fade:
            self._session.run_with_iobinding(binding)
            self._before[:] = self._sound
        if conditions is not None and conditions is not self._current_conditions:
            for bound, new in zip(self._conditions, conditions, strict=True):
                bound[:] = new
            self._current_conditions = conditions
        self._session.run_with_iobinding(binding)  # from the same state; overwrites the other set
        if fade:
            self._sound += (1.0 - self._fade) * (self._before - self._sound)
        self._turn = 1 - self._turn

    def _delay_dry(self) -> None:
        lookahead = self.contract.lookahead_samples
        self._delayed[:, :lookahead] = self._delayed[:, self.contract.chunk_samples :].copy()
        self._delayed[:, lookahead:] = self._chunk[0]

    def _bind(self, turn: int) -> Any:
        """Return the binding that reads states[turn] and writes the other set."""
        stream = self.contract.stream
        binding = self._session.io_binding()
        inputs = [self._chunk, *self._conditions, *self._states[turn]]
        outputs = [self._sound, *self._states[1 - turn]]
        for port, array in zip(stream.inputs, inputs, strict=True):
            binding.bind_input(port.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for port, array in zip(stream.outputs, outputs, strict=True):
            binding.bind_output(port.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return binding

    def _warm_up(self, chunks: int) -> None:
        noise = np.random.default_rng(0).standard_normal(self._chunk.shape).astype(np.float32)
        for _ in range(chunks):
            self._chunk[:] = 0.01 * noise
            self._run()
        self.reset()


def _zeros(port: Port) -> NDArray[np.float32]:
    return np.zeros(port.sizes, np.float32)
