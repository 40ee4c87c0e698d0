"""Whether a written graph computes what the trained network does."""

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
from audio_llm_export.enrolment import FRONT, LEAST_SAMPLES, LOOK, VECTOR
from audio_llm_export.extractor_step import EARS
from audio_llm_export.graph import open_session
from audio_llm_export.stream import INPUT, NEXT, SOUND, Stream

TOLERANCE = 1e-4  # of sound and vectors, whose full scale is 1
CHUNKS = 300
_LOOKS = (LEAST_SAMPLES, LEAST_SAMPLES + 4321, 3 * LEAST_SAMPLES)  # samples


@dataclass(frozen=True)
class Parity:
    """How far a graph was from its network.

    Attributes:
        sound: Largest difference of samples or of the numbers of a vector.
        states: Largest difference of the states behind the last chunk, against their largest number or 1.
        compared: Chunks or looks.
    """

    sound: float
    states: float
    compared: int

    def require(self, path: Path, tolerance: float = TOLERANCE) -> None:
        """Raise where a difference is too large.

        Raises:
            ParityError: Naming the file and the difference.
        """
        if not max(self.sound, self.states) <= tolerance:  # NaN is too large as well
            raise ParityError(
                f"differs from the trained network by {self.sound:.2g} (its states by {self.states:.2g}), "
                f"more than {tolerance:g}; nothing was written",
                path=path.name,
                remedy="report it with the versions of torch and onnxruntime that `audio-llm doctor` names",
            )


@torch.inference_mode()
def compare_stream(stream: Stream, path: Path, chunks: int = CHUNKS, seed: int = 0) -> Parity:
    """Feed random chunks, now loud, now faint, to the network and to its graph, each with its own states."""
    session = open_session(path)
    random = torch.Generator().manual_seed(seed)
    vector = functional.normalize(torch.rand(1, stream.width, generator=random), dim=-1)
    state, states = stream.model.initial_state(), {name: part.numpy() for name, part in stream.initial().items()}
    worst = 0.0
    for number in range(chunks):
        level = 0.1 * (1.0 + np.sin(number / 10.0)) + 1e-4
        chunk = level * torch.randn(1, EARS, CHUNK, generator=random)
        sound, state = stream.model.step(chunk, vector, state)
        found = run_step(session, {INPUT: chunk.numpy(), stream.condition: vector.numpy(), **states})
        states = {name: found[f"{NEXT}{name}"] for name in states}
        worst = max(worst, _largest(sound.numpy().reshape(1, EARS, CHUNK) - found[SOUND]))
    kept = [(part.numpy(), states[name]) for name, part in stream.states(state).items()]
    return Parity(worst, max(_largest(a - b) / max(1.0, _largest(a)) for a, b in kept), chunks)


@torch.inference_mode()
def compare_enrolment(encoder: EnrollmentEncoder, path: Path, lengths: Sequence[int] = _LOOKS, seed: int = 0) -> Parity:
    """Feed random looks of several lengths to the encoder and to its graph."""
    session = open_session(path)
    random = torch.Generator().manual_seed(seed)
    worst = 0.0
    for length in lengths:
        look = 0.1 * torch.randn(1, EARS, length, generator=random)
        expected = encoder.encode(look[..., : length // CHUNK * CHUNK])
        vector, front_db = session.run([VECTOR, FRONT], {LOOK: look.numpy()})
        worst = max(
            worst, _largest(expected.vector.numpy() - vector), _largest(expected.frontal_level_db.numpy() - front_db)
        )
    return Parity(worst, 0.0, len(lengths))


def run_step(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())
