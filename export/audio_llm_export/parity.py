"""Compare an exported graph with the trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from audio_llm.errors import ParityError
from audio_llm.tse.enrollment import EnrollmentEncoder
from audio_llm.tse.frames import CHUNK
from audio_llm_export.enrollment import FRONTAL_LEVEL, LEAST_SAMPLES, RECORDING, VECTOR
from audio_llm_export.extractor_step import EARS
from audio_llm_export.graph import open_session
from audio_llm_export.stream import INPUT, NEXT, SOUND, Stream

TOLERANCE = 1e-4  # largest difference of audio samples and vectors, whose full scale is 1
CHUNKS = 300
_LENGTHS = (LEAST_SAMPLES, LEAST_SAMPLES + 4321, 3 * LEAST_SAMPLES)  # samples


@dataclass(frozen=True)
class Parity:
    """Deviation of a graph from its network.

    Attributes:
        sound: Largest absolute difference of audio samples or vector elements.
        states: Largest difference of a state after the last chunk, relative to its largest magnitude or 1.
        compared: Number of chunks or recordings compared.
    """

    sound: float
    states: float
    compared: int

    def require(self, path: Path, tolerance: float = TOLERANCE) -> None:
        """Raise if a difference exceeds the tolerance.

        Raises:
            ParityError: Names the file and the difference.
        """
        if not max(self.sound, self.states) <= tolerance:  # also true for NaN
            raise ParityError(
                f"differs from the trained network by {self.sound:.2g} (its states by {self.states:.2g}), "
                f"more than {tolerance:g}; nothing was written",
                path=path.name,
                remedy="report it with the versions of torch and onnxruntime that `audio-llm doctor` names",
            )


@torch.inference_mode()
def compare_stream(stream: Stream, path: Path, chunks: int = CHUNKS, seed: int = 0) -> Parity:
    """Feed random chunks of varying level to the network and to its graph, each with separate states."""
    session = open_session(path)
    random = torch.Generator().manual_seed(seed)
    vector = functional.normalize(torch.rand(1, stream.width, generator=random), dim=-1)
    state, states = stream.model.initial_state(), {name: part.numpy() for name, part in stream.initial().items()}
    worst = 0.0
    for number in range(chunks):
        level = 0.1 * (1.0 + np.sin(number / 10.0)) + 1e-4
        chunk = level * torch.randn(1, EARS, CHUNK, generator=random)
        sound, state = stream.model.step(chunk, vector, state)
        outputs = run_step(session, {INPUT: chunk.numpy(), stream.condition: vector.numpy(), **states})
        states = {name: outputs[f"{NEXT}{name}"] for name in states}
        worst = max(worst, _largest(sound.numpy().reshape(1, EARS, CHUNK) - outputs[SOUND]))
    pairs = [(part.numpy(), states[name]) for name, part in stream.states(state).items()]
    return Parity(worst, max(_largest(a - b) / max(1.0, _largest(a)) for a, b in pairs), chunks)


@torch.inference_mode()
def compare_enrollment(
    encoder: EnrollmentEncoder, path: Path, lengths: Sequence[int] = _LENGTHS, seed: int = 0
) -> Parity:
    """Feed random recordings of several lengths to the encoder and to its graph."""
    session = open_session(path)
    random = torch.Generator().manual_seed(seed)
    worst = 0.0
    for length in lengths:
        recording = 0.1 * torch.randn(1, EARS, length, generator=random)
        expected = encoder.encode(recording[..., : length // CHUNK * CHUNK])
        vector, level_db = session.run([VECTOR, FRONTAL_LEVEL], {RECORDING: recording.numpy()})
        worst = max(
            worst, _largest(expected.vector.numpy() - vector), _largest(expected.frontal_level_db.numpy() - level_db)
        )
    return Parity(worst, 0.0, len(lengths))


def run_step(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())
