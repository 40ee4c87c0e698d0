"""Inverse transform of magnitudes and phases: the last step of codec and vocoder, whole or streaming."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE = 16_000  # Hz
N_FFT = 640  # samples of a frame, 40 ms
HOP_LENGTH = 160  # samples, 10 ms
BINS = N_FFT // 2 + 1
SIDE = (N_FFT - HOP_LENGTH) // 2  # samples of a frame before its own hop
_LEAST_OVERLAP = 0.1  # smallest sum of squared windows, so that edges are not amplified
_LOUDEST = 8.0  # natural logarithm of the largest output magnitude


class SoundState(NamedTuple):
    """Overlap of the frames so far with those to come.

    Attributes:
        sound: (B, N_FFT - HOP_LENGTH) float32, sum of windowed frames.
        squares: (N_FFT - HOP_LENGTH,) float32, sum of squared windows.
    """

    sound: Tensor
    squares: Tensor


def windowed_frames(waveforms: Tensor, count: int) -> Tensor:
    """Return `count` windowed frames (B, count, N_FFT) of (B, T) float32; the hop of a frame lies at its center."""
    padded = functional.pad(waveforms, (SIDE, SIDE + count * HOP_LENGTH - waveforms.shape[1]))
    return padded.unfold(1, N_FFT, HOP_LENGTH) * _window().to(waveforms)


def to_sound(out: Tensor, mask: Tensor) -> Tensor:
    """Return the sound (B, N x HOP_LENGTH) of log magnitudes and phases (B, N, 2 x BINS), zero outside the mask."""
    frames = _frames(out, mask)
    rows = mask[:1] if bool(mask.all()) else mask  # an utterance in a batch ends as it would alone
    squares = _window().to(frames).square() * rows[:, :, None]
    return _overlap_add(frames) / _overlap_add(squares).clamp_min(_LEAST_OVERLAP)


def first_state(batch: int = 1, device: torch.device | str = "cpu") -> SoundState:
    """Return the state before the first frame."""
    size = N_FFT - HOP_LENGTH
    return SoundState(torch.zeros(batch, size, device=device), torch.zeros(size, device=device))


def next_sound(out: Tensor, state: SoundState) -> tuple[Tensor, SoundState]:
    """Return samples that no later frame changes, and the new state.

    Concatenated, without the first `SIDE` samples, and followed by `last_sound`, they equal `to_sound` of all frames.

    Args:
        out: (B, N, 2 x BINS), log magnitudes and phases of the next frames.
        state: State after the frames before.

    Returns:
        (B, N x HOP_LENGTH) float32.
    """
    frames = _frames(out, out.new_ones(out.shape[:2], dtype=torch.bool))
    squares = _window().to(frames).square().expand(1, frames.shape[1], N_FFT)
    sound, over = _added(frames), _added(squares)[0]
    sound[:, : state.sound.shape[1]] += state.sound
    over[: len(state.squares)] += state.squares
    done = frames.shape[1] * HOP_LENGTH
    ready = sound[:, :done] / over[:done].clamp_min(_LEAST_OVERLAP)
    return ready, SoundState(sound[:, done:], over[done:])


def last_sound(state: SoundState) -> Tensor:
    """Return the remaining samples after the last frame: (B, SIDE) float32."""
    return state.sound[:, :SIDE] / state.squares[:SIDE].clamp_min(_LEAST_OVERLAP)


def _frames(out: Tensor, mask: Tensor) -> Tensor:
    magnitude, phase = out.float().chunk(2, dim=-1)
    magnitude = magnitude.clamp_max(_LOUDEST).exp() * mask[:, :, None]
    return torch.fft.irfft(torch.polar(magnitude, phase), N_FFT) * _window().to(magnitude)


def _overlap_add(frames: Tensor) -> Tensor:
    """Return (B, N x HOP_LENGTH) of frames (B, N, N_FFT), without samples outside the first and the last hop."""
    sound = _added(frames)
    return sound[:, SIDE : sound.shape[1] - SIDE]


def _added(frames: Tensor) -> Tensor:
    size = frames.shape[1] * HOP_LENGTH + 2 * SIDE
    return functional.fold(frames.transpose(1, 2), (1, size), (1, N_FFT), stride=(1, HOP_LENGTH))[:, 0, 0]


@functools.cache
@torch.inference_mode(False)  # a tensor of inference mode could not be trained with later
def _window() -> Tensor:
    return torch.hann_window(N_FFT)
