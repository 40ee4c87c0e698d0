"""A recognizer and a corrector that need no model, for the command line's own behavior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_llm import audio
from audio_llm.asr import engines
from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.engines import ResolvedRecognizer, resolve_recognizer
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.correction import Correction
from audio_llm.nbest import Hypothesis, NBest, Word
from audio_llm.pipeline import correct, load


@pytest.fixture(autouse=True)
def _no_installed_models(no_installed_models: None) -> None:
    """No command of these tests sees the user's models."""


@dataclass
class Fakes(SegmentRecognizer):
    """What the fake recognizer returns, what the fake corrector changes, and how they were asked for."""

    text: str = "the cat sad on the mat"
    changes: dict[str, str] = field(default_factory=lambda: {"sad": "sat"})
    recognizer_asked: list[tuple[Any, ...]] = field(default_factory=list)
    corrector_asked: list[dict[str, Any]] = field(default_factory=list)
    preferred: list[str] = field(default_factory=list)

    name = "fake"
    version = "1"
    hypotheses = 1
    capabilities = Capabilities(scores=True, word_times=True, text_scores=False, word_preference=True)

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        words = self.text.split()
        step_s = len(waveform) / SAMPLE_RATE / max(1, len(words))
        times = tuple(Word(word, i * step_s, (i + 1) * step_s) for i, word in enumerate(words))
        return NBest(id, (Hypothesis(self.text, -1.0), Hypothesis("other words", -2.0))[:nbest], words=times)

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        return [None] * len(texts)

    def prefer(self, words: Sequence[str]) -> list[str]:
        self.preferred.extend(words)
        return [word for word in words if word.startswith("x")]

    def correct(self, lists: Sequence[NBest], waveforms: object = None) -> list[Correction]:
        made = []
        for nbest in lists:
            text = " ".join(self.changes.get(word, word) for word in nbest.best.split())
            made.append(Correction(nbest.id, text, nbest.best, text == nbest.best, "by the table", (), 0.5))
        return made


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Put fakes in place of every recognizer and corrector; `auto` is pocketsphinx, and models need not exist."""
    both = Fakes()

    def resolve(name: str, model: str | None = None, options: Any = None) -> ResolvedRecognizer:
        if name == engines.AUTO or name in engines.ENGINES:
            return ResolvedRecognizer("sphinx" if name == engines.AUTO else name, model)
        return resolve_recognizer(name, model, options)

    def load_recognizer(*arguments: Any) -> Fakes:
        both.recognizer_asked.append(arguments)
        return both

    def load_corrector(
        name: str = "dlm",
        model: str | None = None,
        recognizer: Any = None,
        decode: str | None = None,
        device: str = "cpu",
        llm: str | None = None,
    ) -> Fakes:
        both.corrector_asked.append({"name": name, "model": model, "decode": decode, "device": device})
        return both

    monkeypatch.setattr(engines, "load_recognizer", load_recognizer)
    monkeypatch.setattr(engines, "resolve_recognizer", resolve)
    for module in (correct, load):
        monkeypatch.setattr(module, "load_corrector", load_corrector)
    monkeypatch.setattr(load, "list_length", lambda *arguments: 1)
    monkeypatch.setattr(
        load,
        "load_in_process",
        lambda asr, words, name, model, decode, device, hypotheses: load_corrector(name, model, None, decode, device),
    )
    return both


@pytest.fixture
def talk(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a sound file with speech-like sound in it."""

    def make(name: str = "talk.wav", seconds: float = 2.0) -> Path:
        time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        buzz = sum(np.exp(-abs(k * 140 - 600) / 500) * np.sin(2 * np.pi * 140 * k * time_s) for k in range(1, 25))
        buzz *= 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time_s)
        pause = np.zeros(SAMPLE_RATE)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, np.concatenate([pause, 0.3 * buzz / np.abs(buzz).max(), pause]), SAMPLE_RATE)
        return path

    return make
