"""The speaker encoder: a sound to a unit vector, similar for the same speaker and dissimilar for different speakers.

It has the shape of Resemblyzer's d-vector network (generalized end-to-end loss, Wan et al. 2018), so that those weights
can serve as the teacher.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.features import triangular_filters
from audio_llm.tse.frames import CHUNK
from audio_llm.tse.recurrent_steps import lstm_step

SAMPLE_RATE = 16_000
WINDOW, HOP, BANDS = 400, 160, 40  # samples, samples, mel bands
EMBEDDING = 256
PIECE, PIECE_STEP = 160, 80  # frames of a window, and hop between two windows
LEVEL = 10.0 ** (-30.0 / 20.0)  # RMS after level normalization
_FLOOR = 1e-8  # added to a mean square
_MEL_FLOOR = 1e-5  # added to a mel power at that level


class SpeakerEncoder(nn.Module):
    """Three LSTM layers over mel powers, in windows of 1.6 s whose vectors are averaged."""

    def __init__(self, hidden: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, EMBEDDING)

    def forward(self, mel: Tensor) -> Tensor:
        """Return unit vectors (B, 256) of mel powers (B, F, 40) of sounds at the level of -30 dB."""
        pieces = functional.pad(mel, (0, 0, 0, max(0, PIECE - mel.shape[1]))).unfold(1, PIECE, PIECE_STEP)
        pieces = pieces.transpose(2, 3)  # (B, P, PIECE, 40)
        vectors = self.project(self.lstm(pieces.flatten(0, 1))[0][:, -1]).unflatten(0, pieces.shape[:2])
        return functional.normalize(vectors.mean(dim=1), dim=-1)

    def project(self, top: Tensor) -> Tensor:
        """Return unit vectors (..., 256) of outputs of the last layer (..., H)."""
        return functional.normalize(functional.relu(self.linear(top)), dim=-1)

    def step(self, mel: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read one frame (..., 40); return the output of the last layer (..., H), and both states (layers, ..., H)."""
        return lstm_step(self.lstm, mel, hidden, cell)


def embed(encoder: SpeakerEncoder, waveforms: Tensor) -> Tensor:
    """Return unit vectors (B, 256) of sounds (B, T) float32 at 16 kHz."""
    embeddings: Tensor = encoder(mel_power(at_level(waveforms)))
    return embeddings


def at_level(waveforms: Tensor) -> Tensor:
    """Scale sounds (..., T) to an RMS of -30 dB; silence stays silent."""
    mean = waveforms.square().mean(-1, keepdim=True)
    return waveforms * (LEVEL / (mean + _FLOOR).sqrt())


def mel_power(waveforms: Tensor) -> Tensor:
    """Return mel powers (..., F, 40) of sounds (..., T), a frame every 10 ms."""
    half = WINDOW // 2
    return frames_to_mel(functional.pad(waveforms, (half, half)).unfold(-1, WINDOW, HOP))


def chunk_features(waveforms: Tensor) -> Tensor:
    """Return causal features of sounds (..., T), T a multiple of 128, for a small encoder: (..., T / 128, 40)."""
    return compressed_mel(functional.pad(at_level(waveforms), (WINDOW - CHUNK, 0)).unfold(-1, WINDOW, CHUNK))


def compressed_mel(frames: Tensor) -> Tensor:
    """Return logarithmic mel powers (..., 40), about -2 to 1.5, of frames (..., 400) at the level of -30 dB."""
    return 0.25 * (frames_to_mel(frames) + _MEL_FLOOR).log() + 1.0


def frames_to_mel(frames: Tensor) -> Tensor:
    """Return mel powers (..., 40) of frames (..., 400)."""
    real, imaginary = windowed_transform(frames)
    mel: Tensor = (real.square() + imaginary.square()) @ mel_filters().to(frames.device)
    return mel


def windowed_transform(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary parts (..., 201) of the spectra of frames (..., 400)."""
    real, imaginary = (frames @ _transform().to(frames)).chunk(2, dim=-1)
    return real, imaginary


@functools.cache
@torch.inference_mode(False)  # inference tensors cannot be used in training
def _transform() -> Tensor:
    """Return a Hann window and the Fourier transform in one matrix, (400, 402) float32."""
    time = np.arange(WINDOW)
    phase = 2.0 * np.pi * (time[:, None] * np.arange(WINDOW // 2 + 1) % WINDOW) / WINDOW
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * time / WINDOW)
    both = np.concatenate([np.cos(phase), -np.sin(phase)], axis=1) * window[:, None]
    return torch.from_numpy(both.astype(np.float32))


@functools.cache
@torch.inference_mode(False)  # inference tensors cannot be used in training
def mel_filters() -> Tensor:
    """Return (201, 40) float32 triangles of area 1 from 0 to 8 kHz."""
    return triangular_filters(BANDS, WINDOW, 0.0, SAMPLE_RATE / 2, unit_area=True).T.contiguous()
