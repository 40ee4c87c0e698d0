"""Discriminators of complex spectra at several resolutions (as in Encodec, Défossez et al. 2022), small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

RESOLUTIONS = (256, 512, 1024)  # samples of a frame
_SLOPE = 0.1  # negative slope of the leaky activations


class DiscriminatorOutput(NamedTuple):
    """Output of the discriminators.

    Attributes:
        scores: Scores of each discriminator, any shape: above 0 for real.
        layers: Activations of the inner layers of each.
    """

    scores: list[Tensor]
    layers: list[list[Tensor]]


class Discriminators(nn.Module):
    """One discriminator for each resolution.

    Args:
        channels: Channels of the convolutions.
        resolutions: Samples of a frame; the hop is a quarter of it.
    """

    def __init__(self, channels: int = 16, resolutions: tuple[int, ...] = RESOLUTIONS) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_SpectralDiscriminator(size, channels) for size in resolutions)

    def forward(self, waveforms: Tensor) -> DiscriminatorOutput:
        """Score waveforms (B, T) float32."""
        outputs = [part(waveforms) for part in self.parts]
        return DiscriminatorOutput([scores for scores, _ in outputs], [layers for _, layers in outputs])


class _SpectralDiscriminator(nn.Module):
    window: Tensor

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        weight_norm = nn.utils.parametrizations.weight_norm
        sizes = [(2, channels), (channels, channels), (channels, 2 * channels), (2 * channels, 2 * channels)]
        # frequency is downsampled by 4, then by 2 three times; time keeps its frames
        strides = [4, 2, 2, 2]
        self.convolutions = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (7 if stride == 4 else 5, 3), (stride, 1), (3 if stride == 4 else 2, 1)))
            for (i, o), stride in zip(sizes, strides, strict=True)
        )
        self.output = weight_norm(nn.Conv2d(2 * channels, 1, 3, padding=1))

    def forward(self, waveforms: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectra = torch.stft(waveforms, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        power = spectra.real.square() + spectra.imag.square() + 1e-8
        x = torch.view_as_real(spectra).permute(0, 3, 1, 2) * power[:, None] ** -0.35  # magnitudes to the power 0.3
        layers = []
        for convolution in self.convolutions:
            x = functional.leaky_relu(convolution(x), _SLOPE)
            layers.append(x)
        return self.output(x), layers
