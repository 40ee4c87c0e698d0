"""The protocol every recogniser follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from audio_llm.nbest import NBest

SAMPLE_RATE = 16_000  # Hz, what every recogniser takes


@dataclass(frozen=True)
class Capabilities:
    """What an engine can give; what it cannot give is None in its results.

    Attributes:
        scores: Every hypothesis of an N-best list has a score.
        word_times: Words of the best hypothesis have start and end.
        text_scores: `score` gives log p(text | audio) for any text.
        word_preference: `prefer` has an effect inside the engine.
    """

    scores: bool
    word_times: bool
    text_scores: bool
    word_preference: bool


class Recognizer(Protocol):
    """Speech to an N-best list."""

    name: str
    version: str
    capabilities: Capabilities

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognise one utterance.

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1; may be empty or silent, which gives an empty list.
            nbest: How many distinct hypotheses at most.
            id: Name for the result.

        Returns:
            The list, best first, word times in seconds from the start of the waveform.
        """
        ...

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | waveform) up to a constant of the waveform, None for a text it cannot score."""
        ...

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Prefer these names and terms from now on; return those that the engine could not take."""
        ...
