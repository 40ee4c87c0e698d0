"""A stand-in for `ctranslate2.models.Whisper` that writes given texts and records what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from audio_llm.asr.whisper import WhisperOptions, WhisperRecognizer
from audio_llm.asr.whisper_tokens import WhisperTokens

Write = Callable[[list[int], dict[str, Any]], Sequence[tuple[str, float, float]]]


@dataclass
class FakeWhisper:
    """Writes what `write` returns for a prompt and the options of `generate`: (text, nats a token, no-speech) each.

    Attributes:
        tokens: Its tokenizer.
        write: The texts.
        languages: Probabilities of languages, one table per window in turn.
        prompts: Every prompt of `generate`.
        asked: The options of every call of `generate`.
        frames: Number of feature frames of every window that was aligned.
        starts: What came before the texts that were aligned.
        windows: Number of windows of every call of `encode`.
    """

    tokens: WhisperTokens
    write: Write
    languages: list[dict[str, float]] = field(default_factory=lambda: [{"en": 0.9, "de": 0.1}])
    prompts: list[list[int]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    starts: list[list[int]] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    _detected: int = 0

    is_multilingual = True
    n_mels = 80

    def encode(self, features: Any, to_cpu: bool = False) -> np.ndarray:
        count = np.asarray(features).shape[0]
        self.windows.append(count)
        return np.zeros((count, 1500, 2), np.float32)

    def detect_language(self, encoded: Any) -> list[list[tuple[str, float]]]:
        results = []
        for _ in range(np.asarray(encoded).shape[0]):
            table = self.languages[self._detected % len(self.languages)]
            self._detected += 1
            results.append([(f"<|{code}|>", value) for code, value in table.items()])
        return results

    def generate(self, encoded: Any, prompts: list[list[int]], **options: Any) -> list[Any]:
        assert np.asarray(encoded).shape[0] == len(prompts)
        self.prompts += prompts
        self.asked.append(options)
        return [self._result(self.write(prompt, options)) for prompt in prompts]

    def align(self, encoded: Any, start: list[int], texts: list[list[int]], frames: list[int]) -> list[Any]:
        self.frames += frames
        self.starts.append(start)
        results = []
        for ids, count in zip(texts, frames, strict=True):
            step = count / 2 / (len(ids) + 1)
            alignments = [(token, int(token * step)) for token in range(len(ids) + 1)]
            results.append(SimpleNamespace(alignments=alignments, text_token_probs=[0.5] * len(ids)))
        return results

    def _result(self, written: Sequence[tuple[str, float, float]]) -> Any:
        return SimpleNamespace(
            sequences_ids=[self.tokens.encode(text) for text, _, _ in written],
            scores=[score for _, score, _ in written],
            no_speech_prob=written[0][2],
        )


def fake_recognizer(folder: Path, write: Write, **options: Any) -> tuple[WhisperRecognizer, FakeWhisper]:
    """Return a recognizer on a stand-in, with the tokenizer of a folder; `options` are those of `WhisperOptions`."""
    tokens = WhisperTokens.load(folder, multilingual=True)
    model = FakeWhisper(tokens, write)
    return WhisperRecognizer(model, tokens, 80, "fake", WhisperOptions(**options)), model


def always(text: str, nats: float = -0.1, no_speech: float = 0.0) -> Write:
    """Return what writes one text, whatever is asked."""
    return lambda prompt, options: [(text, nats, no_speech)]
