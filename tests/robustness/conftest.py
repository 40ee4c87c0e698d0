"""A recognizer that needs no model, for tests in which only the input matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from audio_llm.asr import engines
from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.engines import ResolvedRecognizer
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.nbest import Hypothesis, NBest, Word


@pytest.fixture(autouse=True)
def _no_installed_models(no_installed_models: None) -> None:
    """No command of these tests sees the user's models."""


class Hearer(SegmentRecognizer):
    """Recognizes the word `speech` in every stretch of speech."""

    name = "fake"
    version = "1"
    capabilities = Capabilities(scores=True, word_times=True, text_scores=False, word_preference=False)

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        word = Word("speech", 0.0, len(waveform) / SAMPLE_RATE)
        return NBest(id, (Hypothesis("speech", -1.0),), words=(word,))

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        return [None] * len(texts)

    def prefer(self, words: Sequence[str]) -> list[str]:
        return list(words)


@pytest.fixture
def hearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "load_recognizer", lambda *arguments: Hearer())
    monkeypatch.setattr(engines, "resolve_recognizer", lambda *arguments: ResolvedRecognizer("sphinx", None))


def make_speech(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Return a vowel-like sound, (T,) float32, with half a second of silence at both ends."""
    time_s = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.exp(-abs(k * 140 - 600) / 500) * np.sin(2 * np.pi * 140 * k * time_s) for k in range(1, 25))
    buzz *= 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time_s)
    pause = np.zeros(rate // 2)
    return np.concatenate([pause, 0.3 * buzz / np.abs(buzz).max(), pause]).astype(np.float32)


@pytest.fixture
def speech() -> np.ndarray:
    """Return 3 s of sound, 2 s of it like speech: (48000,) float32 at 16 kHz."""
    return make_speech(2.0)
