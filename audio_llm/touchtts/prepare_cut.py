"""Segmentation of a recording at silence into stretches of speech that fit a clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from audio_llm.asr.segment import segments
from audio_llm.audio import SAMPLE_RATE

BLOCK_S = 5.0  # longest input block
_FLEETING_S = 0.5  # segments up to this length, margin included, are dropped: clicks, onsets of a hum
_NEAR_S = 1.0  # longest pause across which a short stretch is joined with its neighbor


@dataclass(frozen=True)
class Stretch:
    """Speech, with 0.27 s of margin.

    Attributes:
        start: Index of its first sample in the recording.
        stop: Index after its last sample.
        waveform: (stop - start,) float32 at 16 kHz; None where it is longer than a clip may be.
    """

    start: int
    stop: int
    waveform: np.ndarray | None


def stretches(blocks: Iterable[np.ndarray], min_s: float, max_s: float, whole: bool) -> Iterator[Stretch]:
    """Yield the speech of a recording, in memory that its length does not change.

    Args:
        blocks: (T,) float32 at 16 kHz each, of at most `BLOCK_S`.
        min_s: Shorter stretches are joined with a neighbor less than a second away.
        max_s: Longest stretch with a waveform, in seconds.
        whole: Yield one stretch from the first word to the last, of any length.
    """
    shortest, longest = min_s * SAMPLE_RATE, int(max_s * SAMPLE_RATE)
    tape = _Tape(blocks, 2 * longest + int(2 * BLOCK_S * SAMPLE_RATE))
    last: Stretch | None = None
    for segment in segments(tape, max_s):
        if len(segment.waveform) <= _FLEETING_S * SAMPLE_RATE:
            continue
        start = round(segment.start_s * SAMPLE_RATE)
        current = Stretch(start, start + len(segment.waveform), segment.waveform)
        if last is not None and (whole or _belong(last, current, shortest, longest)):
            current = _joined(last, current, tape, longest)
        elif last is not None:
            yield last
        last = current
    if last is not None:
        yield last


def _belong(first: Stretch, second: Stretch, shortest: float, longest: int) -> bool:
    return (
        min(first.stop - first.start, second.stop - second.start) < shortest
        and second.start - first.stop <= _NEAR_S * SAMPLE_RATE
        and second.stop - first.start <= longest
    )


def _joined(first: Stretch, second: Stretch, tape: _Tape, longest: int) -> Stretch:
    if first.waveform is None or second.waveform is None or second.stop - first.start > longest:
        return Stretch(first.start, second.stop, None)
    pause = tape.cut(first.stop, second.start)
    return Stretch(first.start, second.stop, np.concatenate([first.waveform, pause, second.waveform]))


class _Tape:
    """Iterates over blocks and holds the latest ones, for the pauses between stretches of speech."""

    def __init__(self, blocks: Iterable[np.ndarray], held: int) -> None:
        self._blocks, self._held = blocks, held
        self._recent: deque[np.ndarray] = deque()
        self._first = 0  # index of the first sample held

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self._recent.append(block)
            while sum(map(len, self._recent)) - len(self._recent[0]) >= self._held:
                self._first += len(self._recent.popleft())
            yield block

    def cut(self, start: int, stop: int) -> np.ndarray:
        """Return samples that are still held: (stop - start,) float32."""
        return np.concatenate(self._recent)[start - self._first : stop - self._first]
