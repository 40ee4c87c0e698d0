"""Waveform to log-mel features: one definition for training and for use, with lengths and masks."""

from __future__ import annotations

import functools

import torch

SAMPLE_RATE = 16_000  # Hz
N_FFT = 512  # points of the transform
WIN_LENGTH = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
FRAME_RATE = SAMPLE_RATE // HOP_LENGTH  # frames per second
N_MELS = 80  # bands
LOWEST_HZ, HIGHEST_HZ = 20.0, 7600.0  # outer edges of the bands
FLOOR = 1e-6  # smallest mel energy; about 75 dB below a full-scale sine
LOG_FLOOR, LOG_CEILING = -13.815511, 11.5  # natural log of FLOOR, and the upper limit for sound within -1..1

_STEP = (LOG_CEILING - LOG_FLOOR) / 255  # step of the 8-bit form: 0.1, that is 0.43 dB of power


def log_mel(waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-mel energies. A frame depends on its own 25 ms alone, so a batch equals its parts.

    Args:
        waveforms: (B, T) float32 at 16 kHz in -1..1, zero-padded.
        lengths: (B,) int64, samples of each.

    Returns:
        (B, F, 80) float32 natural-log energies, padded with `LOG_FLOOR`, and (B,) int64 frames of each.
    """
    frames = frame_lengths(lengths)
    side = (N_FFT - WIN_LENGTH) // 2
    short = max(0, WIN_LENGTH - waveforms.shape[1])
    padded = torch.nn.functional.pad(waveforms.float(), (side, side + short))
    window = torch.hann_window(WIN_LENGTH, device=waveforms.device)
    spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, WIN_LENGTH, window, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    energies = (mel_filters().to(waveforms.device) @ power).clamp_min(FLOOR).log().transpose(1, 2)
    energies = energies[:, : int(frames.max())] if len(frames) else energies
    return energies.masked_fill(~valid_mask(frames, energies.shape[1])[:, :, None], LOG_FLOOR), frames


def frame_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Return the number of whole 25 ms frames of each number of samples; both (B,) int64."""
    return ((lengths - WIN_LENGTH).div(HOP_LENGTH, rounding_mode="floor") + 1).clamp_min(0)


def normalize(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Normalize every band of every utterance to mean 0 and variance 1 over its frames.

    Args:
        features: (B, F, 80) float32.
        lengths: (B,) int64, frames of each.

    Returns:
        (B, F, 80) float32, zero-padded.
    """
    mask = valid_mask(lengths, features.shape[1])[:, :, None]
    count = lengths.clamp_min(1)[:, None, None]
    centered = features - (features * mask).sum(dim=1, keepdim=True) / count
    variance = (centered.square() * mask).sum(dim=1, keepdim=True) / count
    return centered / (variance + 1e-2).sqrt() * mask  # 1e-2: an empty band stays small


def valid_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Return (B, size) bool, True at positions before each length; lengths (B,) int64."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def to_uint8(features: torch.Tensor) -> torch.Tensor:
    """Return log-mel energies of any shape in 8 bits, with an error of at most 0.05 (0.22 dB)."""
    steps = (features.clamp(LOG_FLOOR, LOG_CEILING) - LOG_FLOOR) / _STEP
    return steps.round().to(torch.uint8)


def from_uint8(steps: torch.Tensor) -> torch.Tensor:
    """Return float32 log-mel energies of the output of `to_uint8`, of any shape."""
    return steps.float() * _STEP + LOG_FLOOR


@functools.cache
@torch.inference_mode(False)  # a cached tensor of inference mode could not be used in training
def mel_filters() -> torch.Tensor:
    """Return triangular filters (80, 257) float32 with peak 1, evenly spaced on Slaney's mel scale."""
    return triangular_filters(N_MELS, N_FFT, LOWEST_HZ, HIGHEST_HZ)


def triangular_filters(
    count: int, n_fft: int, lowest_hz: float, highest_hz: float, unit_area: bool = False
) -> torch.Tensor:
    """Return filters evenly spaced on Slaney's mel scale, for 16 kHz.

    Args:
        count: Number of filters.
        n_fft: Points of the transform.
        lowest_hz: Lower edge of the first.
        highest_hz: Upper edge of the last.
        unit_area: Whether each has the area 1 (over Hz) instead of the peak 1.

    Returns:
        (count, n_fft // 2 + 1) float32.
    """
    edges = _to_hz(torch.linspace(_to_mel(lowest_hz), _to_mel(highest_hz), count + 2, dtype=torch.float64))
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / n_fft
    left, center, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (center - left), (right - bins) / (right - center)
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    return (filters * (2.0 / (right - left)) if unit_area else filters).float()


def _to_mel(hz: float) -> float:
    """Return mel on Slaney's scale: linear to 1 kHz, where 200 Hz are 3 mel, then 27 mel per factor of 6.4."""
    import math

    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)


def _to_hz(mel: torch.Tensor) -> torch.Tensor:
    return torch.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))
