"""Preprocessing before recognition: speech enhancement or target speaker extraction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from audio_llm.audio import SAMPLE_RATE


class Preprocessor(Protocol):
    """Changes the sound before it is recognized.

    Attributes:
        mono: Whether its input has one channel, (T, 1), or all channels of the recording.
        warnings: Problems of its inputs, one line each.
    """

    mono: bool
    warnings: tuple[str, ...]

    def process(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Convert (T, C) float32 blocks to (T,) float32 blocks, both at 16 kHz, with the same total length."""
        ...


class EnhancePreprocessor:
    """Speech enhancement. It often raises the word error rate: measure before relying on it.

    Args:
        model: Mask network or GenSE model.
        device: `cpu`, `cuda` or `auto`.
    """

    mono = True
    warnings: tuple[str, ...] = ()

    def __init__(self, model: str | os.PathLike[str], device: str = "cpu") -> None:
        from audio_llm.gense.enhance import Enhancer

        self._enhancer = Enhancer.load(model, device=device)

    def process(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the enhanced waveform."""
        return (block[:, 0] for block in self._enhancer.stream(blocks, SAMPLE_RATE))


class ExtractPreprocessor:
    """Target speaker extraction; the mean of both ears is recognized.

    Args:
        enrollment: Binaural sound file of 1 to 10 s, recorded while facing the speaker.
        model: Target speaker extraction model.
        device: `cpu`, `cuda` or `auto`.
    """

    mono = False

    def __init__(
        self, enrollment: str | os.PathLike[str], model: str | os.PathLike[str] = "tse-small", device: str = "cpu"
    ) -> None:
        from audio_llm.tse.extract import TargetSpeaker

        self._speaker = TargetSpeaker.enroll(enrollment, model=model, device=device)
        self.warnings = tuple(f"{os.fspath(enrollment)}: {line}" for line in self._speaker.warnings)

    def process(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the waveform of the speaker."""
        return (block.mean(axis=1) for block in self._speaker.stream(blocks, SAMPLE_RATE))
