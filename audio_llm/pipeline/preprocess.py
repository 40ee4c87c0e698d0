"""What a recording goes through before it is recognized: an enhancer, or the hearing of one person."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from audio_llm.audio import SAMPLE_RATE


class Preprocessor(Protocol):
    """Changes sound on its way to a recognizer.

    Attributes:
        mono: Whether it takes one channel, (T, 1), or all of a recording.
        warnings: What is amiss with what it was made of, one line each.
    """

    mono: bool
    warnings: tuple[str, ...]

    def process(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Return (T,) float32 blocks of (T, C) float32 blocks, both at 16 kHz, as many samples in all."""
        ...


class EnhancePreprocessor:
    """Takes the noise out first. Recognizers often hear more in the recording as it was: measure before you rely on it.

    Args:
        model: A mask network, or GenSE's language models.
        device: `cpu`, `cuda` or `auto`.
    """

    mono = True
    warnings: tuple[str, ...] = ()

    def __init__(self, model: str | os.PathLike[str], device: str = "cpu") -> None:
        from audio_llm.gense.enhance import Enhancer

        self._enhancer = Enhancer.load(model, device=device)

    def process(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the enhanced sound."""
        return (block[:, 0] for block in self._enhancer.stream(blocks, SAMPLE_RATE))


class ExtractPreprocessor:
    """Keeps one person only, known from a look; the mean of both ears is recognized.

    Args:
        look: Sound file of 1 to 10 s, facing that person.
        model: A model of target-speech hearing.
        device: `cpu`, `cuda` or `auto`.
    """

    mono = False

    def __init__(
        self, enrollment: str | os.PathLike[str], model: str | os.PathLike[str] = "tse-small", device: str = "cpu"
    ) -> None:
        from audio_llm.tse.extract import Person

        self._speaker = Person.from_look(enrollment, model, device)
        self.warnings = tuple(f"{os.fspath(enrollment)}: {line}" for line in self._speaker.warnings)

    def process(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the person's sound."""
        return (block.mean(axis=1) for block in self._speaker.hear(blocks, SAMPLE_RATE))
