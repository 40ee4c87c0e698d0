"""The protocol every recogniser follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Stretch:
    """What was recognized in a stretch of a recording.

    Attributes:
        start_s: Where it begins in the recording, seconds.
        end_s: Where it ends.
        nbest: The hypotheses, word times in seconds of the recording.
        waveform: (T,) float32 at 16 kHz, its sound.
        language: Code of the language where the recognizer knows it, else empty.
        language_probability: Of that language where it was detected, 0 to 1.
        notes: What checks did to the text, in words.
        rejected: Why the text does not count, or empty.
    """

    start_s: float
    end_s: float
    nbest: NBest
    waveform: np.ndarray = field(repr=False)
    language: str = ""
    language_probability: float | None = None
    notes: tuple[str, ...] = ()
    rejected: str = ""


class Recognizer(Protocol):
    """Speech to N-best lists."""

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

    def recognize_stream(
        self, blocks: Iterable[np.ndarray], nbest: int = 1, id: str = "", sound: bool = False
    ) -> Iterator[Stretch]:
        """Recognize a recording of any length, stretch by stretch, as its sound comes.

        Args:
            blocks: (T,) float32 at 16 kHz in -1..1, one after another.
            nbest: How many distinct hypotheses at most for every stretch.
            id: Begins the name of every list: `id#0`, `id#1`, ...
            sound: Whether the sound of every stretch is needed, by a corrector, say.
        """
        ...

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | waveform) up to a constant of the waveform, None for a text it cannot score."""
        ...

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Prefer these names and terms from now on; return those that the engine could not take."""
        ...
