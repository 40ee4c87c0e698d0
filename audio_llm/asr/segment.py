"""Cut long recordings at pauses into segments for a recognizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Stretch
from audio_llm.nbest import NBest

_FRAME = 480  # samples, the 30 ms at 16 kHz that pocketsphinx's detector takes
_VAD_MODE = 1  # 0 loose to 3 strict; 2 and 3 miss the ends of words in quiet recordings (peaks under -30 dBFS)
_RANGE_DB = 40.0  # frames this far below the loudest are not speech, even if the detector takes an initial hiss for it
_FLOOR_DB = -80.0  # nor is anything this faint, relative to full scale: the last bits of a 16-bit file
_DECAY_DB = 0.03  # decay of the loudest level per frame: 1 dB/s
_WINDOW = 10  # frames over which voiced ones are counted
_OPEN = 6  # voiced frames in the window that begin speech: a click or a step in level gives 4
_STAY = 3  # voiced frames in the window that keep it going
_CONTEXT = 9  # frames of context on either side of speech: 0.27 s
_PAUSE = 20  # frames without voice that end a segment: 0.6 s, more than twice the context
_SMOOTH = 5  # frames over which levels are averaged: 0.15 s
_BAND = slice(9, 103)  # bins of a frame's spectrum from 300 to 3,400 Hz
_STEADY_DB = 4.2  # a hiss or hum ranges less in that band (white noise 1.8, pink 2.1); a word at 0 dB SNR over 6


@dataclass(frozen=True)
class Segment:
    """A stretch of speech.

    Attributes:
        start_s: Start in the recording in seconds, a whole number of samples at 16 kHz.
        waveform: (T,) float32 at 16 kHz.
        speech_probability: Speech probability of its most probable second, 0 to 1; None where the detector gives none.
    """

    start_s: float
    waveform: np.ndarray
    speech_probability: float | None = None


def segments(blocks: Iterable[np.ndarray], max_s: float = 30.0) -> Iterator[Segment]:
    """Yield the stretches of speech in a recording, each with about 0.27 s of context.

    Pauses of 0.6 s and more divide segments; shorter ones stay inside, so that a sentence stays whole. Speech that
    runs on past `max_s` is cut at the quietest point of the last third, without overlap or gap. Silence and steady
    noise give nothing. The result does not depend on how the sound is divided into blocks, and memory is bounded
    by `max_s` and the longest block.

    Args:
        blocks: (T,) float32 in -1..1 at 16 kHz each, one after another.
        max_s: Longest segment in seconds, at least 2.

    Raises:
        ValueError: `max_s` is under 2.
    """
    if max_s < 2:
        raise ValueError(f"max_s is {max_s}, it must be at least 2")
    detector = _Detector()
    cutter = _Cutter(int(max_s * SAMPLE_RATE) // _FRAME)
    for frame in _frames(blocks):
        yield from cutter.push(frame, detector.is_voiced(frame))
    yield from cutter.finish()


def recognize_segments(
    recognize: Callable[[np.ndarray, int, str], NBest], blocks: Iterable[np.ndarray], nbest: int, id: str
) -> Iterator[Stretch]:
    """Recognize a recording segment by segment with `recognize` (see `Recognizer.recognize_stream`)."""
    for number, segment in enumerate(segments(blocks)):
        result = recognize(segment.waveform, nbest, f"{id}#{number}")
        words = tuple(
            replace(word, start_s=word.start_s + segment.start_s, end_s=word.end_s + segment.start_s)
            for word in result.words
        )
        end_s = segment.start_s + len(segment.waveform) / SAMPLE_RATE
        nbest_list = replace(result, words=words)
        yield Stretch(start_s=segment.start_s, end_s=end_s, nbest=nbest_list, waveform=segment.waveform)


class SegmentRecognizer(ABC):
    """Base of recognizers that take one stretch of speech at a time, through `recognize`."""

    @abstractmethod
    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance (see `Recognizer.recognize`)."""

    def recognize_stream(
        self, blocks: Iterable[np.ndarray], nbest: int = 1, id: str = "", sound: bool = False
    ) -> Iterator[Stretch]:
        """Recognize a recording of any length (see `Recognizer.recognize_stream`)."""
        return recognize_segments(self.recognize, blocks, nbest, id)


class _Detector:
    """Classifies frames as voiced: pocketsphinx's detector, limited to levels not far below the loudest."""

    def __init__(self) -> None:
        from pocketsphinx import Vad

        self._vad = Vad(_VAD_MODE, SAMPLE_RATE, _FRAME / SAMPLE_RATE)
        self._loudest = _FLOOR_DB + _RANGE_DB

    def is_voiced(self, frame: np.ndarray) -> bool:
        """Classify the next frame: (480,) float32, fewer samples only in the last."""
        level = 10 * np.log10(float(np.mean(np.square(frame))) + 1e-10)
        self._loudest = max(level, self._loudest - _DECAY_DB, _FLOOR_DB + _RANGE_DB)
        samples = np.zeros(_FRAME, np.int16)
        samples[: len(frame)] = np.clip(frame, -1.0, 1.0) * 32767
        return bool(self._vad.is_speech(samples.tobytes())) and level > self._loudest - _RANGE_DB


class _Cutter:
    """Decides frame by frame where segments begin and end.

    `_held` are the frames that may still be needed, the first of them being frame number `_first` of the recording.
    During speech they begin with the segment; otherwise they are the last few, for context.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held: deque[np.ndarray] = deque()
        self._first = 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._open = False
        self._last_voiced = 0

    def push(self, frame: np.ndarray, voiced: bool) -> Iterator[Segment]:
        """Take the next frame: (480,) float32, fewer samples only in the last."""
        self._held.append(frame)
        self._recent.append(voiced)
        now = self._first + len(self._held) - 1
        count = sum(self._recent)
        if voiced and count >= (_STAY if self._open else _OPEN):
            if not self._open:
                self._begin(now)
            self._last_voiced = now
        if not self._open:
            self._forget(now + 1 - _WINDOW - _CONTEXT)
        elif now - self._last_voiced >= _PAUSE:
            yield from self._end()
        elif len(self._held) >= self._longest:
            yield from self._take(self._quietest())

    def finish(self) -> Iterator[Segment]:
        """Yield the last segment at the end of the recording."""
        if self._open:
            yield from self._end()

    def _begin(self, now: int) -> None:
        """Open a segment, its context reaching back from the first voiced frame in the window."""
        first_voiced = now - len(self._recent) + 1 + self._recent.index(True)
        self._open = True
        self._forget(first_voiced - _CONTEXT)

    def _end(self) -> Iterator[Segment]:
        if self._last_voiced >= self._first:  # False where a cut was after the last word
            yield from self._take(min(len(self._held), self._last_voiced + 1 + _CONTEXT - self._first))
        self._open = False

    def _take(self, count: int) -> Iterator[Segment]:
        taken = [self._held.popleft() for _ in range(count)]
        start = self._first * _FRAME
        self._first += count
        if not _is_steady(taken):
            yield Segment(start / SAMPLE_RATE, np.concatenate(taken))

    def _forget(self, before: int) -> None:
        """Drop the frames before that number."""
        while self._first < before and self._held:
            self._held.popleft()
            self._first += 1

    def _quietest(self) -> int:
        """Return the number of held frames before the quietest point of the last third."""
        power = np.array([np.mean(np.square(frame)) for frame in self._held])
        smooth = np.convolve(power, np.ones(_SMOOTH) / _SMOOTH, mode="same")
        begin, end = 2 * len(power) // 3, len(power) - _SMOOTH // 2
        return begin + int(np.argmin(smooth[begin:end]))


def _frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Divide the blocks into (480,) frames; the last may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        joined = np.concatenate([rest, np.asarray(block, dtype=np.float32)])
        whole = len(joined) // _FRAME * _FRAME
        for start in range(0, whole, _FRAME):
            yield joined[start : start + _FRAME].copy()
        rest = joined[whole:]
    if len(rest):
        yield rest


def _is_steady(frames: list[np.ndarray]) -> bool:
    """True for a hiss or hum: at least a second in which the band of speech never rises from its level."""
    if len(frames) * _FRAME < SAMPLE_RATE:
        return False
    spectra = np.fft.rfft(np.stack([frame for frame in frames if len(frame) == _FRAME]) * np.hanning(_FRAME))
    power = np.mean(np.abs(spectra[:, _BAND]) ** 2, axis=1)
    levels = 10 * np.log10(np.convolve(power, np.ones(_SMOOTH) / _SMOOTH, mode="valid") + 1e-10)
    return bool(np.ptp(levels) < _STEADY_DB)
