"""Speech to semantic tokens by the published S3Tokenizer files of CosyVoice, with onnxruntime.

The network is a file of the user; its features, Whisper's with 128 bands, and the windows of 30 s are computed here (as
in CosyVoice's frontend and the package s3tokenizer).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_llm.errors import ModelFormatError, UsageError
from audio_llm.features import triangular_filters
from audio_llm.hub import file_sha256
from audio_llm.onnx_file import accepts_shape, open_session
from audio_llm.tokenizer.base import SAMPLE_RATE, Tokens

N_FFT = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
N_MELS = 128  # bands
FRAME_RATE = SAMPLE_RATE // HOP_LENGTH  # feature frames per second
WINDOW_S = 30  # of audio per pass of the network
MARGIN_S = 2  # at a cut; its tokens come from the window on the other side

_POWER_FLOOR = 1e-10  # smaller powers are raised to it
_RANGE = 8.0  # decades of power below the loudest band
_PROBE_FRAMES = FRAME_RATE  # of silence, to check a file


@dataclass(frozen=True)
class S3Variant:
    """Tokens of a published file.

    Attributes:
        size: Number of different tokens.
        frame_rate: Tokens per second.
    """

    size: int
    frame_rate: float


VARIANTS = {
    "v1_50hz": S3Variant(4096, 50.0),  # CosyVoice-300M
    "v1_25hz": S3Variant(4096, 25.0),  # CosyVoice-300M-25Hz
    "v2_25hz": S3Variant(6561, 25.0),  # CosyVoice2-0.5B
    "v3_25hz": S3Variant(6561, 25.0),  # Fun-CosyVoice3-0.5B
}


class OnnxS3Tokenizer:
    """The tokenizer. It runs on the CPU, one utterance at a time; `fingerprint` is the SHA-256 of the file.

    Args:
        path: The .onnx file.
        variant: One of `VARIANTS`; it is never guessed from the name of the file.

    Raises:
        UsageError: The variant is unknown.
        MissingDependencyError: onnxruntime is not installed.
        ModelNotFoundError: The file does not exist.
        ModelFormatError: It is not such a network, or not that variant.
    """

    def __init__(self, path: str | os.PathLike[str], variant: str) -> None:
        if variant not in VARIANTS:
            raise UsageError(f"no S3Tokenizer is named {variant!r}", remedy=f"give one of {', '.join(VARIANTS)}")
        self.path, self.variant = Path(path).expanduser(), variant
        self.size, self.frame_rate = VARIANTS[variant].size, VARIANTS[variant].frame_rate
        self._frames_per_token = round(FRAME_RATE / self.frame_rate)
        self._session = open_session(self.path, "an S3Tokenizer")
        self._mel_input, self._length_input = _input_names(self._session, self.path)
        self.fingerprint = file_sha256(self.path)
        self._run(torch.zeros(N_MELS, _PROBE_FRAMES))

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> Tokens:
        """Return tokens (see `SemanticTokenizer.encode`): one for every 20 or 40 ms begun, from 10 ms on.

        Raises:
            ModelFormatError: The network gives tokens that its variant does not have.
        """
        rows = [
            self._encode_one(waveform[:length].cpu())
            for waveform, length in zip(waveforms, lengths.tolist(), strict=True)
        ]
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        tokens = torch.zeros(len(rows), int(counts.max()) if rows else 0, dtype=torch.int64)
        for row, numbers in zip(tokens, rows, strict=True):
            row[: len(numbers)] = torch.from_numpy(numbers)
        return Tokens(tokens.to(waveforms.device), counts.to(waveforms.device))

    def _encode_one(self, waveform: Tensor) -> np.ndarray:
        """Return the tokens (N,) int64 of a waveform (T,) of any length."""
        mel = whisper_log_mel(waveform)
        parts = [np.zeros(0, np.int64)]
        for window in _windows(mel.shape[1]):
            numbers = self._run(mel[:, window.start : window.end])
            first, last = (self._tokens_of(edge - window.start) for edge in (window.first, window.last))
            parts.append(numbers[first:last])
        return np.concatenate(parts)

    def _run(self, mel: Tensor) -> np.ndarray:
        """Return the tokens (N,) int64 of features (128, F), at most 30 s, and check them."""
        frames = mel.shape[1]
        inputs = {
            self._mel_input: mel[None].float().contiguous().numpy(),
            self._length_input: np.array([frames], dtype=np.int32),
        }
        try:
            output = np.asarray(self._session.run(None, inputs)[0])
        except Exception as error:  # onnxruntime's errors have no common base
            raise _wrong(self.path, f"the network fails on {frames} frames: {error}") from None
        expected = self._tokens_of(frames)
        if output.dtype.kind not in "iu" or output.size != max(output.shape, default=1):
            raise _wrong(
                self.path, f"its output is {output.dtype} {output.shape}, not a row of {expected} whole numbers"
            )
        if output.size != expected:
            message = f"{output.size} tokens of {frames / FRAME_RATE:g} s, but {self.variant} gives {expected}"
            raise _wrong(self.path, message)
        numbers = output.reshape(-1).astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= self.size:
            message = f"token {numbers[(numbers < 0) | (numbers >= self.size)][0]}, but {self.variant} has {self.size}"
            raise _wrong(self.path, message)
        return numbers

    def _tokens_of(self, frames: int) -> int:
        return -(-frames // self._frames_per_token)


def whisper_log_mel(waveform: Tensor) -> Tensor:
    """Return Whisper's features with 128 bands. Values over 80 dB below the loudest one are raised to that limit.

    Args:
        waveform: (T,) float32 at 16 kHz in -1..1.

    Returns:
        (128, F) float32, F = T // 160.
    """
    frames = len(waveform) // HOP_LENGTH
    if not frames:
        return torch.zeros(N_MELS, 0)
    short = max(0, N_FFT - len(waveform))  # half a window is mirrored at both ends, which needs as many samples
    padded = torch.nn.functional.pad(waveform.float(), (0, short))
    spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :frames].abs().square()  # without the frame at the very end
    logs = (_mel_filters() @ power).clamp_min(_POWER_FLOOR).log10()
    return (torch.maximum(logs, logs.max() - _RANGE) + 4.0) / 4.0


@functools.cache
@torch.inference_mode(False)
def _mel_filters() -> Tensor:
    """Return mel filters (128, 201) float32 of area 1."""
    return triangular_filters(N_MELS, N_FFT, 0.0, SAMPLE_RATE / 2, unit_area=True)


@dataclass(frozen=True)
class _Window:
    """A range of frames to run, and the range `first` to `last` (exclusive) whose tokens are used."""

    start: int
    end: int
    first: int
    last: int


def _windows(frames: int) -> Iterator[_Window]:
    """Yield windows of 30 s that overlap by two margins; every frame is used in one of them."""
    size, margin = WINDOW_S * FRAME_RATE, MARGIN_S * FRAME_RATE
    start = 0
    while start < frames:
        end = min(start + size, frames)
        is_last = end == frames
        yield _Window(start, end, start + margin if start else 0, end if is_last else end - margin)
        if is_last:
            return
        start = end - 2 * margin


def _input_names(session: Any, path: Path) -> tuple[str, str]:
    """Return the names of the inputs for features and length, after checking the inputs."""
    inputs = session.get_inputs()
    by_type = {part.type: part for part in inputs}
    mel, length = by_type.get("tensor(float)"), by_type.get("tensor(int32)")
    if (
        len(inputs) != 2
        or mel is None
        or length is None
        or not accepts_shape(mel, (1, N_MELS, None))
        or not accepts_shape(length, (1,))
    ):
        actual = ", ".join(f"{part.name} {part.type} {part.shape}" for part in inputs)
        message = (
            f"it should take features tensor(float) [1, {N_MELS}, T] and their length tensor(int32) [1], not {actual}"
        )
        raise _wrong(path, message)
    return mel.name, length.name


def _wrong(path: Path, what: str) -> ModelFormatError:
    return ModelFormatError(what, path=path, remedy="check the file and the variant given for it")
