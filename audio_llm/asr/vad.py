"""Voice activity detection with Silero VAD: the stretches of speech in a recording of any length, as a stream.

The network gives one probability of speech per 512 samples (32 ms). Recordings are amplified for it, so that quiet
speech is detected as well; the stretches hold the unchanged samples of the recording. The network, its license and
its figures are described in `pretrained/silero-vad/README.md`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm import hub
from audio_llm.asr.base import SAMPLE_RATE
from audio_llm.asr.segment import Segment
from audio_llm.errors import MissingDependencyError, ModelFormatError, ModelNotFoundError, UsageError

FRAME = 512  # samples, 32 ms: what the network takes at a time
_FRAME_S = FRAME / SAMPLE_RATE
_CONTEXT = 64  # samples of context before a frame
_STATE = (1, 1, 128)  # shape of the LSTM's hidden and cell state
_BATCH = 40  # frames in one run: 1.28 s; larger batches are hardly faster and come later
_SHA256 = "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"
_FILE = "silero-vad/silero_vad.onnx"

_TARGET_DB = -30.0  # level to which quieter sound is amplified, relative to full scale
_MAX_GAIN_DB = 65.0  # speech with peaks of -75 dBFS in a 24-bit file needs about this much
_FLOOR_DB = -110.0  # level of digital silence
_NEAR = 32  # frames before and after a frame that count for its level: 1 s
_QUANTILE = 0.9  # its level is the 90th percentile of theirs, so that a click does not count as speech
_RAMP = 8  # frames before and after over which the gain is averaged: 0.25 s
_REACH = _NEAR + _RAMP  # frames before and after on which a gain depends; at most a batch

_SECOND = 31  # frames in a second
_SMOOTH = 5  # frames over which probability and level are averaged when endless speech is cut: 0.16 s
_PROBABILITY_DB = 40.0  # how many decibels of level one unit of probability counts when endless speech is cut


@dataclass(frozen=True)
class VadOptions:
    """Thresholds that decide what is speech and where it is divided.

    Attributes:
        threshold: Probability at which speech begins, 0 to 1.
        neg_threshold: Probability below which speech may end, at most `threshold`.
        min_speech_s: Shorter stretches are dropped, unless they touch the beginning or the end of the recording.
        min_silence_s: Pauses of this length divide stretches; shorter ones stay inside.
        pad_s: Sound included before and after each stretch; where the pause is shorter than two of these, the two
            neighbors share it.
        max_s: Longest stretch, padding included, at least 2; longer speech is cut where speech is least probable.
    """

    threshold: float = 0.5
    neg_threshold: float = 0.2
    min_speech_s: float = 0.1
    min_silence_s: float = 0.6
    pad_s: float = 0.5
    max_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise UsageError for values that contradict each other or lie out of range."""
        if not 0 < self.neg_threshold <= self.threshold < 1:
            remedy = "choose 0 < neg_threshold <= threshold < 1"
            raise UsageError(f"VAD thresholds {self.threshold} and {self.neg_threshold} do not fit", remedy=remedy)
        for name in ("min_speech_s", "min_silence_s", "pad_s"):
            if not 0 <= getattr(self, name) <= 10:  # NaN is refused as well
                raise UsageError(f"VAD {name} is {getattr(self, name)}", remedy="choose 0 to 10 seconds")
        if not 2 <= self.max_s <= 3600:
            raise UsageError(f"VAD max_s is {self.max_s}", remedy="choose 2 to 3600 seconds")


class SpeechDetector:
    """Silero VAD on one thread: sound at 16 kHz to one probability of speech per frame of 512 samples.

    The state of the network is carried from call to call; `reset` begins a new recording.
    """

    def __init__(self) -> None:
        """Load the network that ships with the package.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ModelNotFoundError: The file is missing from the installation.
            ModelFormatError: The file was changed.
        """
        self._session = _open_session(hub.PRETRAINED / _FILE)
        self.reset()

    def reset(self) -> None:
        """Reset the state before a new recording."""
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)

    def probabilities(self, waveform: np.ndarray, gain: np.ndarray | None = None) -> np.ndarray:
        """Return the probability of speech of each of the next frames.

        Args:
            waveform: (T,) float32 in -1..1 at 16 kHz; T is a multiple of 512 except at the end of a recording, where
                the last frame is zero-padded.
            gain: (N,) linear factor for each frame, N = ceil(T / 512); None: 1.

        Returns:
            (N,) float32, 0 to 1.
        """
        count = -(-len(waveform) // FRAME)
        padded = np.zeros(_CONTEXT + count * FRAME, np.float32)
        padded[:_CONTEXT] = self._context
        padded[_CONTEXT : _CONTEXT + len(waveform)] = waveform
        self._context = padded[len(padded) - _CONTEXT :].copy()
        frames = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + FRAME)[::FRAME] if count else padded[:0]
        output = np.zeros(count, np.float32)
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            batch = frames[part] if gain is None else frames[part] * gain[part, None].astype(np.float32)
            inputs = {"input": np.ascontiguousarray(batch), "h": self._hidden, "c": self._cell}
            values, self._hidden, self._cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
            output[part] = values.reshape(-1)
        return output


def speech_segments(
    blocks: Iterable[np.ndarray], options: VadOptions | None = None, detector: SpeechDetector | None = None
) -> Iterator[Segment]:
    """Yield the stretches of speech in a recording, in order and without overlap.

    Speech that runs on past `max_s` is cut in the last third, where speech is least probable and the sound is
    quietest; the next stretch begins with the very next sample. The result does not depend on how the recording is
    divided into blocks. Memory is bounded by `max_s`, 2.6 s of latency and the longest block.

    Args:
        blocks: (T,) float32 in -1..1 at 16 kHz each, one after another.
        options: None: the defaults.
        detector: A detector to reuse, which saves loading one; None loads a new one.

    Yields:
        The stretches; `start_s` times 16,000 is a multiple of 512, the waveform holds the recording's own samples.
    """
    detector = detector or SpeechDetector()
    detector.reset()
    segmenter = _Segmenter(options or VadOptions())
    for waveform, gain in _leveled(_batches(blocks)):
        for index, probability in enumerate(detector.probabilities(waveform, gain)):
            yield from segmenter.push(waveform[index * FRAME : (index + 1) * FRAME], float(probability))
    yield from segmenter.finish()


def _open_session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        remedy = "pip install onnxruntime"
        raise MissingDependencyError("voice activity detection needs onnxruntime", remedy=remedy) from None
    try:
        content = path.read_bytes()
    except OSError:
        raise ModelNotFoundError("the network of Silero VAD is missing", path=path, remedy=_REINSTALL) from None
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise ModelFormatError("is not the Silero VAD that ships with audio-llm", path=path, remedy=_REINSTALL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised as well
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


_REINSTALL = "install audio-llm again"


def _batches(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Divide the blocks into batches of 40 frames; the last may be shorter."""
    size = _BATCH * FRAME
    rest: list[np.ndarray] = []
    held = 0
    for block in blocks:
        block = np.asarray(block, dtype=np.float32)
        while held + len(block) >= size:
            yield np.concatenate([*rest, block[: size - held]])
            rest, block, held = [], block[size - held :], 0
        if len(block):
            rest.append(block.copy())
            held += len(block)
    if held:
        yield np.concatenate(rest)


def _leveled(batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each batch with the gains (N,) that amplify quiet sound to a level that suits the network.

    The gain follows the level of about a second before and after, so that a quiet speaker between loud ones is
    detected too. The latency is one batch.
    """
    before = np.zeros(0)
    batch: np.ndarray | None = None
    levels_db = before
    for following in batches:
        following_db = _levels_db(following)
        if batch is not None:
            yield batch, _gain(batch, before, levels_db, following_db)
            before = levels_db[-_REACH:]
        batch, levels_db = following, following_db
    if batch is not None:
        yield batch, _gain(batch, before, levels_db, levels_db[:0])


def _frames(batch: np.ndarray) -> np.ndarray:
    """Return the frames of a batch, (N, 512), the last one zero-padded."""
    count = -(-len(batch) // FRAME)
    frames = np.zeros((count, FRAME), np.float32)
    frames.reshape(-1)[: len(batch)] = batch
    return frames


def _levels_db(batch: np.ndarray) -> np.ndarray:
    """Return the level of each frame, (N,), relative to full scale."""
    power = np.mean(np.square(_frames(batch), dtype=np.float64), axis=1)
    return np.asarray(10 * np.log10(power + 10 ** (_FLOOR_DB / 10)))


def _gain(batch: np.ndarray, before: np.ndarray, levels_db: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the gain (N,) of the frames of a batch, from their levels and those before and after the batch.

    No frame is amplified beyond full scale, and none is attenuated.
    """
    after = after[:_REACH]
    joined = np.concatenate([before, levels_db, after])
    padded = np.pad(joined, (_REACH - len(before), _REACH - len(after)), mode="edge")
    near = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEAR + 1)
    gain_db = np.clip(_TARGET_DB - np.quantile(near, _QUANTILE, axis=1), 0.0, _MAX_GAIN_DB)
    smooth_db = np.convolve(gain_db, np.ones(2 * _RAMP + 1) / (2 * _RAMP + 1), mode="valid")
    peak = np.max(np.abs(_frames(batch)), axis=1)
    return np.maximum(1.0, np.minimum(10 ** (smooth_db / 20), 1.0 / np.maximum(peak, 1e-9)))


class _Segmenter:
    """Decides frame by frame where stretches of speech begin and end.

    `_held` are the frames that may still be needed, the first of them being frame number `_first` of the recording.
    During speech they begin with the stretch, its padding included; otherwise they are the padding that the
    next one may need.
    """

    def __init__(self, options: VadOptions) -> None:
        self._options = options
        self._pad = round(options.pad_s / _FRAME_S)
        self._silence = max(1, round(options.min_silence_s / _FRAME_S))
        self._shortest = options.min_speech_s / _FRAME_S
        self._longest = int(options.max_s / _FRAME_S)
        self._held: deque[tuple[np.ndarray, float]] = deque()
        self._first = 0
        self._open = False
        self._unbroken = False  # the stretch goes on from a cut or from the beginning of the recording
        self._voiced = 0  # frames at or above the threshold in this stretch
        self._last = 0  # number of the last frame that belongs to speech

    def push(self, frame: np.ndarray, probability: float) -> Iterator[Segment]:
        """Take the next frame: (512,) float32, fewer samples only in the last."""
        self._held.append((frame, probability))
        now = self._first + len(self._held) - 1
        pause = now - self._last - 1  # frames between speech and this one
        if probability >= self._options.threshold:
            if self._open and pause >= self._silence:
                yield from self._divide(now, pause)
            if not self._open:
                self._begin(now)
            self._voiced += 1
            self._last = now
        elif self._open and probability >= self._options.neg_threshold and pause < self._silence:
            self._last = now
        if not self._open:
            self._forget(now + 1 - self._pad)
        elif now - self._last >= max(self._silence, 2 * self._pad):
            yield from self._end(self._last + 1 + self._pad)
        elif len(self._held) >= self._longest:
            yield from self._cut()

    def finish(self) -> Iterator[Segment]:
        """Yield the last stretch at the end of the recording."""
        if self._open:
            after = self._first + len(self._held)
            self._unbroken |= after - self._last <= self._pad
            yield from self._end(min(after, self._last + 1 + self._pad))

    def _begin(self, now: int) -> None:
        """Open a stretch, its padding reaching back from the first frame of speech."""
        self._open, self._voiced = True, 0
        self._unbroken = now <= self._pad
        self._forget(now - self._pad)

    def _divide(self, now: int, pause: int) -> Iterator[Segment]:
        """End the stretch before an onset within its padding; both stretches share the pause."""
        yield from self._end(min(self._last + 1 + self._pad, now - pause // 2))

    def _end(self, before: int) -> Iterator[Segment]:
        """Close the stretch, which ends before the frame of that number."""
        rest = self._last >= self._first  # False where a cut fell after the last word
        if rest and (self._unbroken or self._voiced >= self._shortest):
            yield self._take(before - self._first)
        self._open = False
        self._forget(self._first + len(self._held) - 1 - self._pad)

    def _cut(self) -> Iterator[Segment]:
        """Yield the part of a long stretch before the best point to cut it, and continue after it."""
        yield self._take(self._quietest())
        self._unbroken = True

    def _take(self, count: int) -> Segment:
        taken = [self._held.popleft() for _ in range(count)]
        start_s = self._first * FRAME / SAMPLE_RATE
        self._first += count
        likeliest = sorted((probability for _, probability in taken), reverse=True)[:_SECOND]
        return Segment(start_s, np.concatenate([frame for frame, _ in taken]), float(np.mean(likeliest)))

    def _forget(self, before: int) -> None:
        """Drop the frames before that number."""
        while self._first < before and self._held:
            self._held.popleft()
            self._first += 1

    def _quietest(self) -> int:
        """Return the number of held frames before the point of the last third where speech is least probable."""
        power = np.array([np.mean(np.square(frame)) for frame, _ in self._held])
        probability = np.array([probability for _, probability in self._held])
        window = np.ones(_SMOOTH) / _SMOOTH
        level_db = 10 * np.log10(np.convolve(power, window, mode="same") + 1e-11)
        cost = level_db + _PROBABILITY_DB * np.convolve(probability, window, mode="same")
        begin, end = 2 * len(cost) // 3, len(cost) - _SMOOTH // 2
        return begin + int(np.argmin(cost[begin:end]))
