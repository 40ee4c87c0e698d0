"""The protocol of all recognizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from audio_llm.nbest import NBest

SAMPLE_RATE = 16_000  # Hz, the input rate of every recognizer


@dataclass(frozen=True)
class Capabilities:
    """What an engine supports; a result that it does not support is None.

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
        start_s: Start in the recording, seconds.
        end_s: End in the recording, seconds.
        nbest: The hypotheses, word times in seconds of the recording.
        waveform: Its sound, (T,) float32 at 16 kHz.
        language: Language code; empty where the recognizer does not know it.
        language_probability: Probability of the detected language, 0 to 1; None where it was not detected.
        notes: What the recognizer's checks changed, one line each.
        rejected: Reason why the text is not part of the transcript; empty where it is.
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
        """Recognize one utterance.

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1; may be empty or silent, which gives an empty list.
            nbest: Maximum number of distinct hypotheses.
            id: Name of the result.

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
            nbest: Maximum number of distinct hypotheses per stretch.
            id: Prefix of the name of every list: `id#0`, `id#1`, ...
            sound: Whether the waveform of every stretch is needed, for example by a corrector.
        """
        ...

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | waveform) up to a constant of the waveform, None for a text it cannot score."""
        ...

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Prefer these names and terms from now on; return those that the engine could not take."""
        ...
