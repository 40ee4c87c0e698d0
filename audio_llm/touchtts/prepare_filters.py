"""Filters of clips: verification of the text by recognizers, and tests of waveform and text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from audio_llm.asr.base import Recognizer
from audio_llm.audio import SAMPLE_RATE
from audio_llm.metrics import character_error_rate

NATS = "nats per letter"  # log-probability of the scorer's own hypothesis above that of a given text
CER = "character error rate"  # of the second text against the first
MEASURES = {  # default limits
    # Training splits, 186 utterances that ctc-small was not trained on (Kathleen, two readers of LibriSpeech): passes
    # 98.9 % of the true texts, 96.8 % with noise at 10 dB; of texts of another utterance, about as long, none; of texts
    # whose second half is wrong, none and 5.9 %. Dividing by letters of the text separates better than by frames,
    # by letters of the hypothesis, or by the loss of log-probability of the reversed text.
    NATS: 2.0,
    # 50 utterances of Kathleen, ctc against sphinx: passes 82 %, with 10.6 % instead of 13.3 % of ctc's letters wrong;
    # 40 of LibriSpeech: 20 %, with 21.7 % instead of 31.9 %.
    CER: 0.3,
}
_PEAK = 0.9  # samples above this fraction of the largest count as clipped
_CLIPPED = 0.004  # fraction of such samples: at most 0.0024 in 800 recordings; 0.0053 on where 0.5 % were clipped
SPEED = (3.0, 25.0)  # letters per second, spaces included; 2,000 recordings, pauses included, lie between 4 and 23
_REPEATS = 4  # successive occurrences of a phrase that makes up half of the text or more
_LONGEST_PHRASE = 8  # words
_FRAME = SAMPLE_RATE // 50


@dataclass(frozen=True)
class TextVerification:
    """Two texts of one clip, and how much they disagree.

    Attributes:
        text: The first text, which is kept.
        second_text: The second text.
        disagreement: Distance of the second text from the first, 0 or more; None where the text is too long for the
            waveform.
        measure: Measure of the distance, a key of `MEASURES`.
    """

    text: str
    second_text: str
    disagreement: float | None
    measure: str


class TextVerifier(Protocol):
    """Verifies texts; waveforms are (T,) float32 at 16 kHz."""

    def verify_text(self, waveform: np.ndarray, text: str) -> TextVerification:
        """Verify a given text in normalized words."""
        ...

    def transcribe(self, waveform: np.ndarray) -> TextVerification:
        """Recognize a clip with two recognizers."""
        ...


class AsrAgreement:
    """Verification by recognizers: two transcribe a clip without a text, and one scores given texts.

    Args:
        first: Loads the recognizer whose text is kept where none is given; each is loaded when it is first needed.
        second: Loads the recognizer that has to agree with it.
        scorer: Loads the recognizer that verifies given texts: our own CTC network by log-probability relative to its
            own hypothesis, any other by the character error rate of its hypothesis.
    """

    def __init__(
        self, first: Callable[[], Recognizer], second: Callable[[], Recognizer], scorer: Callable[[], Recognizer]
    ) -> None:
        self._first, self._second, self._scorer = cache(first), cache(second), cache(scorer)

    def verify_text(self, waveform: np.ndarray, text: str) -> TextVerification:
        """Verify a given text (see `TextVerifier.verify_text`)."""
        from audio_llm.asr.ctc import CtcRecognizer

        scorer = self._scorer()
        if not isinstance(scorer, CtcRecognizer):
            return _compared(text, scorer.recognize(waveform, 1).best)
        posteriors = scorer.posteriors(waveform)
        greedy_text = posteriors.greedy_text()
        text_score, greedy_score = posteriors.score([text, greedy_text])
        if greedy_score is None:  # its hypothesis is empty
            greedy_score = float(posteriors.log_probs.max(axis=1).sum())
        margin = None if text_score is None else max(0.0, greedy_score - text_score) / len(text)
        return TextVerification(text, greedy_text, margin, NATS)

    def transcribe(self, waveform: np.ndarray) -> TextVerification:
        """Recognize a clip with both recognizers (see `TextVerifier.transcribe`)."""
        first = self._first().recognize(waveform, 1).best
        return _compared(first, self._second().recognize(waveform, 1).best if first else "")


def _compared(first: str, second: str) -> TextVerification:
    return TextVerification(first, second, character_error_rate([first], [second]), CER)


def is_clipped(waveform: np.ndarray) -> bool:
    """Return whether so many samples of (T,) float32 are near the largest that the peaks must be clipped.

    Sound that was attenuated and resampled afterwards may go unnoticed, and a sustained tone is taken for clipped.
    """
    levels = np.abs(waveform)
    return bool(levels.size and levels.max() > 0 and np.mean(levels >= _PEAK * levels.max()) >= _CLIPPED)


def is_stuck(text: str) -> bool:
    """Return whether a phrase occurs four or more times in succession and makes up half of a normalized text."""
    words = text.split()
    for length in range(1, _LONGEST_PHRASE + 1):
        run = 0  # words up to here that equal the one a phrase before
        for index in range(length, len(words)):
            run = run + 1 if words[index] == words[index - length] else 0
            repeated_words = run + length
            if repeated_words >= _REPEATS * length and 2 * repeated_words >= len(words):
                return True
    return False


def clip_snr_db(waveform: np.ndarray) -> float:
    """Estimate the signal-to-noise ratio in dB of (T,) float32 at 16 kHz from the levels of 20 ms frames.

    The quietest 15 % are taken as noise, the loudest 60 % as speech with noise. Steady noise at 10 and 20 dB is
    estimated at 14 and 22 dB; fluctuating noise is underestimated.
    """
    count = len(waveform) // _FRAME
    if not count:
        return 0.0
    frames = np.square(waveform[: count * _FRAME].reshape(count, _FRAME), dtype=np.float64)
    power = np.sort(frames.mean(axis=1)) + 1e-12
    noise = power[: max(1, round(0.15 * count))].mean()
    speech = power[round(0.4 * count) :].mean()
    return float(10 * np.log10(max(speech - noise, 1e-12) / noise))
