"""Stretches of speech packed into windows of up to 30 s, and times in a window mapped back to the recording.

Whisper's encoder takes 30 s at a time, whatever the length of the speech, so that a window of many short stretches
costs as much as a single short one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE
from audio_llm.asr.segment import Segment
from audio_llm.errors import UsageError

GAP_S = 0.2  # longest silence inserted between two pieces, whose padding already holds a part of the pause


@dataclass(frozen=True)
class Piece:
    """A stretch of the recording in a window.

    Attributes:
        offset_s: Start in the window, seconds.
        start_s: Start in the recording, seconds.
        duration_s: Duration, seconds.
        speech_probability: Speech probability of its segment; None where it is unknown.
    """

    offset_s: float
    start_s: float
    duration_s: float
    speech_probability: float | None = None

    @property
    def end_s(self) -> float:
        """End in the recording, seconds."""
        return round((self.start_s + self.duration_s) * SAMPLE_RATE) / SAMPLE_RATE  # as exact as the duration of a file


@dataclass(frozen=True)
class Window:
    """Input of a recognizer.

    Attributes:
        waveform: (T,) float32 at 16 kHz.
        pieces: Its stretches in order, one per segment, with at most 0.2 s of silence between them.
    """

    waveform: np.ndarray
    pieces: tuple[Piece, ...]

    @property
    def start_s(self) -> float:
        """Start of its first piece in the recording, seconds."""
        return self.pieces[0].start_s

    @property
    def end_s(self) -> float:
        """End of its last piece in the recording, seconds."""
        return self.pieces[-1].end_s

    @property
    def speech_probability(self) -> float | None:
        """Highest speech probability of its pieces; None where no piece has one."""
        known = [piece.speech_probability for piece in self.pieces if piece.speech_probability is not None]
        return max(known, default=None)

    def piece_at(self, time_s: float) -> int:
        """Return the index of the piece at a time in the window; between two pieces that of the nearer one."""
        index = max(0, bisect_right([piece.offset_s for piece in self.pieces], time_s) - 1)
        after_s = time_s - self.pieces[index].offset_s - self.pieces[index].duration_s
        if after_s > 0 and index + 1 < len(self.pieces) and self.pieces[index + 1].offset_s - time_s < after_s:
            index += 1
        return index

    def part(self, start_s: float, end_s: float) -> Window:
        """Return the part of the window between two times as a new window, without pieces of less than 10 ms."""
        first, last = round(start_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE)
        pieces = []
        for piece in self.pieces:
            from_s = max(piece.offset_s, start_s)
            to_s = min(piece.offset_s + piece.duration_s, end_s)
            if to_s - from_s >= 0.01:
                moved_s = from_s - piece.offset_s
                pieces.append(
                    replace(piece, offset_s=from_s - start_s, start_s=piece.start_s + moved_s, duration_s=to_s - from_s)
                )
        return Window(self.waveform[first:last], tuple(pieces))

    def recording_time(self, time_s: float) -> float:
        """Return the time in the recording, seconds, of a time in the window.

        Later times give later or equal ones. A time between two pieces, before the first or after the last one gives
        the nearest boundary.
        """
        piece = self.pieces[self.piece_at(time_s)]
        return min(piece.start_s + max(time_s - piece.offset_s, 0.0), piece.end_s)


def pack_windows(segments: Iterable[Segment], max_s: float = 30.0) -> Iterator[Window]:
    """Yield windows of neighboring segments, each as soon as the next segment does not fit.

    Segments that follow each other without a gap stay so; otherwise silence as long as the gap, at most 0.2 s, divides
    them. Segments are never divided, except those longer than a window. One window is held in memory.

    Args:
        segments: Stretches of one recording, in order and without overlap.
        max_s: Longest window in seconds, at least one sample, at most an hour.

    Raises:
        UsageError: `max_s` is out of range.
    """
    if not 1 / SAMPLE_RATE <= max_s <= 3600:  # NaN is refused as well
        raise UsageError(f"a window cannot be {max_s} s long", remedy="choose 30 seconds")
    longest = round(max_s * SAMPLE_RATE)
    packer = _Packer(longest)
    for segment in segments:
        for start in range(0, len(segment.waveform), longest):
            part = segment.waveform[start : start + longest]
            yield from packer.add(round(segment.start_s * SAMPLE_RATE) + start, part, segment.speech_probability)
    yield from packer.flush()


def cut_segments(blocks: Iterable[np.ndarray], max_s: float = 30.0) -> Iterator[Segment]:
    """Yield a whole recording in segments of up to `max_s`, cut at the quietest 0.1 s of their last third.

    Args:
        blocks: (T,) float32 in -1..1 at 16 kHz, one after another.
        max_s: Longest segment in seconds.
    """
    longest = int(max_s * SAMPLE_RATE)
    held, start = np.zeros(0, np.float32), 0
    for block in blocks:
        held = np.concatenate([held, np.asarray(block, dtype=np.float32)])
        while len(held) > longest:
            cut = _quietest(held[:longest])
            yield Segment(start / SAMPLE_RATE, held[:cut])
            held, start = held[cut:], start + cut
    if len(held):
        yield Segment(start / SAMPLE_RATE, held)


def _quietest(waveform: np.ndarray) -> int:
    """Return the middle of the quietest 0.1 s in the last third."""
    size = SAMPLE_RATE // 10
    frames = waveform[2 * len(waveform) // 3 :]
    frames = frames[: len(frames) // size * size].reshape(-1, size)
    quietest = int(np.argmin(np.square(frames).mean(axis=1)))
    return 2 * len(waveform) // 3 + quietest * size + size // 2


class _Packer:
    """Collects the pieces of the next window, in samples."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._parts: list[np.ndarray] = []
        self._spans: list[tuple[int, int, int, float | None]] = []  # offset, start, length, probability
        self._length = 0

    def add(self, start: int, waveform: np.ndarray, speech_probability: float | None) -> Iterator[Window]:
        """Append a piece; yield the previous window if the piece does not fit into it."""
        gap = self._gap(start)
        if self._spans and self._length + gap + len(waveform) > self._longest:
            yield from self.flush()
            gap = 0
        if gap:
            self._parts.append(np.zeros(gap, np.float32))
        self._parts.append(waveform)
        self._spans.append((self._length + gap, start, len(waveform), speech_probability))
        self._length += gap + len(waveform)

    def flush(self) -> Iterator[Window]:
        """Yield the collected window."""
        if self._spans:
            pieces = (
                Piece(
                    offset_s=offset / SAMPLE_RATE,
                    start_s=start / SAMPLE_RATE,
                    duration_s=length / SAMPLE_RATE,
                    speech_probability=speech,
                )
                for offset, start, length, speech in self._spans
            )
            yield Window(np.concatenate(self._parts, dtype=np.float32), tuple(pieces))
        self._parts, self._spans, self._length = [], [], 0

    def _gap(self, start: int) -> int:
        if not self._spans:
            return 0
        _, before, length, _ = self._spans[-1]
        return min(max(0, start - before - length), round(GAP_S * SAMPLE_RATE))
