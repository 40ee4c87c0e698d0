"""What is thought of a clip: two opinions on its text, and whether sound and text can be right at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from audio_llm.asr.base import Recognizer
from audio_llm.audio import SAMPLE_RATE
from audio_llm.metrics import character_error_rate

NATS = "nats per letter"  # that a given text is less probable than what the judge itself hears
CER = "character error rate"  # between two texts, over the letters of the first
MEASURES = {  # with the most that passes by default
    # Training splits, 186 utterances that ctc-small has not learnt from (Kathleen, two readers of LibriSpeech): passes
    # 98.9 % of the true texts, 96.8 % with noise at 10 dB; of texts of another utterance, about as long, none; of texts
    # whose second half is another's none and 5.9 %. Dividing by letters of the text separates better than by frames,
    # by letters of what is heard, or by how much less probable the text is backwards.
    NATS: 2.0,
    # 50 utterances of Kathleen, ctc against sphinx: passes 82 %, with 10.6 % instead of 13.3 % of ctc's letters wrong;
    # 40 of LibriSpeech: 20 %, with 21.7 % instead of 31.9 %.
    CER: 0.3,
}
_PEAK = 0.9  # samples above this share of the loudest are at the limit
_CLIPPED = 0.004  # share of samples there: at most 0.0024 in 800 recordings; 0.0053 on where 0.5 % were cut off
SPEED = (3.0, 25.0)  # letters a second, spaces too; 2,000 recordings, pauses included, lie between 4 and 23
_REPEATS = 4  # times that a phrase is said on end, in half of the text or more
_LONGEST_PHRASE = 8  # words
_FRAME = SAMPLE_RATE // 50


@dataclass(frozen=True)
class Opinion:
    """What two say of one clip.

    Attributes:
        text: The first, which is kept.
        second_text: The second.
        disagreement: How far the second is from the first, 0 or more; None where the text is too long for the sound.
        measure: What that is, of `MEASURES`.
    """

    text: str
    second_text: str
    disagreement: float | None
    measure: str


class Opinions(Protocol):
    """Who has an opinion on texts; waveforms are (T,) float32 at 16 kHz."""

    def given(self, waveform: np.ndarray, text: str) -> Opinion:
        """Judge a text that was given, in words as they are said."""
        ...

    def heard(self, waveform: np.ndarray) -> Opinion:
        """Recognise a clip twice."""
        ...


class TwoOpinions:
    """Two recognisers: both hear a clip without a text, and one judges the texts that are given.

    Args:
        first: Loads the recogniser whose text is kept where none is given; each is called when it is first needed.
        second: Loads the one that has to agree with it.
        judge: Loads the one that judges given texts: our own CTC network by how probable it finds them beside what it
            hears itself, any other by what it hears.
    """

    def __init__(
        self, first: Callable[[], Recognizer], second: Callable[[], Recognizer], judge: Callable[[], Recognizer]
    ) -> None:
        self._first, self._second, self._judge = cache(first), cache(second), cache(judge)

    def given(self, waveform: np.ndarray, text: str) -> Opinion:
        """Judge a text that was given (see `Opinions.given`)."""
        from audio_llm.asr.ctc import CtcRecognizer

        judge = self._judge()
        if not isinstance(judge, CtcRecognizer):
            return _compared(text, judge.recognize(waveform, 1).best)
        hearing = judge.posteriors(waveform)
        own = hearing.greedy_text()
        of_text, of_own = hearing.score([text, own])
        if of_own is None:  # it hears nothing at all
            of_own = float(hearing.log_probs.max(axis=1).sum())
        margin = None if of_text is None else max(0.0, of_own - of_text) / len(text)
        return Opinion(text, own, margin, NATS)

    def heard(self, waveform: np.ndarray) -> Opinion:
        """Recognise a clip twice (see `Opinions.heard`)."""
        first = self._first().recognize(waveform, 1).best
        return _compared(first, self._second().recognize(waveform, 1).best if first else "")


def _compared(first: str, second: str) -> Opinion:
    return Opinion(first, second, character_error_rate([first], [second]), CER)


def is_clipped(waveform: np.ndarray) -> bool:
    """True where so many samples of (T,) float32 are near the loudest that its peaks must have been cut off.

    What was turned down and converted to another rate after that goes unnoticed now and then, and a tone that is held
    is taken for overdriven.
    """
    levels = np.abs(waveform)
    return bool(levels.size and levels.max() > 0 and np.mean(levels >= _PEAK * levels.max()) >= _CLIPPED)


def is_stuck(text: str) -> bool:
    """True where a phrase is said four times on end or more, and that is at least half of a normalised text."""
    words = text.split()
    for length in range(1, _LONGEST_PHRASE + 1):
        run = 0  # words that equal the one a phrase before, up to here
        for place in range(length, len(words)):
            run = run + 1 if words[place] == words[place - length] else 0
            said = run + length
            if said >= _REPEATS * length and 2 * said >= len(words):
                return True
    return False


def clip_snr_db(waveform: np.ndarray) -> float:
    """Estimate the ratio of speech to noise in dB of (T,) float32 at 16 kHz from the levels of 20 ms frames.

    The quietest 15 % are taken for noise, the loudest 60 % for speech with noise. Steady noise at 10 and 20 dB is
    found at 14 and 22; noise that comes and goes is taken for less than it is.
    """
    count = len(waveform) // _FRAME
    if not count:
        return 0.0
    frames = np.square(waveform[: count * _FRAME].reshape(count, _FRAME), dtype=np.float64)
    power = np.sort(frames.mean(axis=1)) + 1e-12
    noise = power[: max(1, round(0.15 * count))].mean()
    speech = power[round(0.4 * count) :].mean()
    return float(10 * np.log10(max(speech - noise, 1e-12) / noise))
