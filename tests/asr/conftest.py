"""Tiny Whisper models in the CTranslate2 form, and sound made of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from audio_llm.audio import read

SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
RATE = 16_000

Talk = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random multilingual Whisper."""
    from asr.tiny_whisper import make_ctranslate2_whisper

    return make_ctranslate2_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="session")
def tiny_whisper_en(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random English-only Whisper."""
    from asr.tiny_whisper import make_ctranslate2_whisper

    return make_ctranslate2_whisper(tmp_path_factory.mktemp("whisper") / "tiny.en", multilingual=False)


@pytest.fixture(scope="session")
def talk() -> Talk:
    """Return a function: numbers of samples, pauses in seconds -> speech with pauses before, between and after."""
    sounds = [read(path) for path in sorted(SAMPLES.glob("librispeech-*.flac"))]

    def make(numbers: Sequence[int] = (0, 1), pauses_s: Sequence[float] = (1.0,)) -> np.ndarray:
        parts = [np.zeros(round(pauses_s[0] * RATE), np.float32)]
        for index, number in enumerate(numbers):
            pause_s = pauses_s[(index + 1) % len(pauses_s)]
            parts += [sounds[number % len(sounds)], np.zeros(round(pause_s * RATE), np.float32)]
        return np.concatenate(parts)

    return make


@pytest.fixture(scope="session")
def hiss() -> Callable[..., np.ndarray]:
    """Return a function: seconds, seed, level -> white noise (T,) float32."""

    def make(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
        return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)

    return make
