"""Losses of decoded speech: mel spectra at several resolutions, compressed spectra, discriminators."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from audio_llm.features import triangular_filters

_FLOOR = 1e-5  # of a magnitude
_COMPRESSION = 0.3


@dataclass(frozen=True)
class Scale:
    """One resolution of a spectral comparison.

    Attributes:
        n_fft: Samples of a frame.
        hop_length: Samples between frames.
        n_mels: Bands.
    """

    n_fft: int
    hop_length: int
    n_mels: int


SCALES = (Scale(128, 64, 16), Scale(256, 128, 32), Scale(512, 128, 64), Scale(1024, 256, 100), Scale(2048, 512, 160))


def spectral_distance(decoded: Tensor, original: Tensor, scales: tuple[Scale, ...] = SCALES) -> Tensor:
    """Return the mean distance of logarithmic mel spectra and of compressed magnitudes; a scalar.

    Args:
        decoded: (B, T) float32 at 16 kHz.
        original: (B, T) float32 at 16 kHz; no gradient goes there.
        scales: Resolutions, equally weighted.
    """
    total = decoded.new_zeros(())
    for scale in scales:
        with torch.no_grad():
            target = _spectra(original, scale)
        for one, other, weight in zip(_spectra(decoded, scale), target, (1.0, 0.5), strict=True):
            total = total + weight * (one - other).abs().mean()
    return total / len(scales)


def _spectra(waveforms: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Return compressed magnitudes, and logarithms of mel bands."""
    window = torch.hann_window(scale.n_fft, device=waveforms.device)
    spectra = torch.stft(waveforms, scale.n_fft, scale.hop_length, window=window, return_complex=True)
    power = spectra.real.square() + spectra.imag.square() + _FLOOR**2
    bands = (_filters(scale).to(power) @ power.sqrt()).clamp_min(_FLOOR).log()
    return power ** (0.5 * _COMPRESSION), bands


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the hinge loss of the discriminators from the scores of each; a scalar."""
    terms = [(1.0 - r).relu().mean() + (1.0 + f).relu().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def adversarial_loss(fake: list[Tensor]) -> Tensor:
    """Return the hinge loss of the generator; a scalar."""
    return torch.stack([(1.0 - f).relu().mean() for f in fake]).mean()


def feature_distance(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Return the mean distance of the discriminators' inner layers, each relative to its size; a scalar."""
    terms = [
        (r.detach() - f).abs().mean() / (r.detach().abs().mean() + 1e-3)
        for of_real, of_fake in zip(real, fake, strict=True)
        for r, f in zip(of_real, of_fake, strict=True)
    ]
    return torch.stack(terms).mean()


@functools.cache
@torch.inference_mode(False)  # a tensor of inference mode could not be trained with later
def _filters(scale: Scale) -> Tensor:
    filters = triangular_filters(scale.n_mels, scale.n_fft, 0.0, 8000.0)
    return filters / filters.sum(1, keepdim=True)
