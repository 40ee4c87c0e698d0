"""Chunks of 8 ms to spectra and back, with perfect reconstruction and 4 ms of lookahead.

A frame is the last 64 samples of the past and a chunk of 128; its window rises and falls over 64 samples as a sine and
is flat between (power complementary, used twice). The output of a frame is complete 64 samples after its input.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE = 16_000  # Hz
CHUNK = 128  # samples, 8 ms
OVERLAP = 64  # samples that two frames share: the lookahead, 4 ms
FRAME = CHUNK + OVERLAP
BINS = FRAME // 2 + 1


def analyze(waveform: Tensor) -> Tensor:
    """Return the spectra of whole chunks.

    Args:
        waveform: (..., T) float32, T a multiple of `CHUNK`; 64 zeros are prepended.

    Returns:
        (..., T / CHUNK, 2, BINS) float32, real and imaginary parts.
    """
    frames = functional.pad(waveform, (OVERLAP, 0)).unfold(-1, FRAME, CHUNK)
    return transform(frames)


def synthesize(spectra: Tensor) -> Tensor:
    """Return the sound (..., N x CHUNK) of spectra (..., N, 2, BINS), `OVERLAP` samples later than `analyze` got it."""
    frames = inverse(spectra)
    ends = functional.pad(frames[..., CHUNK:], (0, CHUNK - OVERLAP))
    before = torch.cat([torch.zeros_like(ends[..., :1, :]), ends[..., :-1, :]], dim=-2)
    return (frames[..., :CHUNK] + before).flatten(-2)


def transform(frames: Tensor) -> Tensor:
    """Window frames (..., FRAME) and return their spectra (..., 2, BINS)."""
    return (frames @ _forward().to(frames)).unflatten(-1, (2, BINS))


def transform_long(frames: Tensor) -> Tensor:
    """Window long frames (..., W) and return their spectra (..., 2, W / 2 + 1), at the level of `transform`'s.

    The window rises as a sine up to the last 64 samples and falls over these as the frames' own does, so that a long
    frame that ends with a frame adds no delay and weighs the newest samples as the frame does.
    """
    size = frames.shape[-1]
    table = _forward_long(size).to(frames)
    return (frames @ table).unflatten(-1, (2, size // 2 + 1))


def inverse(spectra: Tensor) -> Tensor:
    """Return the windowed frames (..., FRAME) of spectra (..., 2, BINS)."""
    return spectra.flatten(-2) @ _backward().to(spectra)


@functools.cache
def _window() -> np.ndarray:
    rise = np.sin(0.5 * np.pi * (np.arange(OVERLAP) + 0.5) / OVERLAP)
    return np.concatenate([rise, np.ones(FRAME - 2 * OVERLAP), rise[::-1]])


@functools.cache
def _turns() -> np.ndarray:
    """Return phases (FRAME, BINS), from whole numbers, since large products lose bits in the sine."""
    return 2.0 * np.pi * (np.outer(np.arange(FRAME), np.arange(BINS)) % FRAME) / FRAME


@functools.cache
@torch.inference_mode(False)  # inference tensors cannot be used in training
def _forward() -> Tensor:
    """(FRAME, 2 x BINS) float32: window and DFT."""
    table = np.concatenate([np.cos(_turns()), -np.sin(_turns())], axis=1) * _window()[:, None]
    return torch.from_numpy(table.astype(np.float32))


@functools.cache
@torch.inference_mode(False)  # inference tensors cannot be used in training
def _forward_long(size: int) -> Tensor:
    """(size, size + 2) float32: window and DFT, scaled so that noise has the level that it has in a frame."""
    rise = np.sin(0.5 * np.pi * (np.arange(size - OVERLAP) + 0.5) / (size - OVERLAP))
    window = np.concatenate([rise, _window()[-OVERLAP:]])
    window *= np.sqrt(np.square(_window()).sum() / np.square(window).sum())
    turns = 2.0 * np.pi * (np.outer(np.arange(size), np.arange(size // 2 + 1)) % size) / size
    table = np.concatenate([np.cos(turns), -np.sin(turns)], axis=1) * window[:, None]
    return torch.from_numpy(table.astype(np.float32))


@functools.cache
@torch.inference_mode(False)  # inference tensors cannot be used in training
def _backward() -> Tensor:
    """(2 x BINS, FRAME) float32: inverse DFT and window."""
    weight = np.full(BINS, 2.0 / FRAME)
    weight[[0, -1]] = 1.0 / FRAME
    table = np.concatenate([np.cos(_turns()), -np.sin(_turns())], axis=1) * np.tile(weight, 2)
    return torch.from_numpy((table * _window()[:, None]).T.astype(np.float32).copy())
