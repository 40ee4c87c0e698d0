"""A small streaming enhancer: estimates a short complex filter for each bin from spectra split into bands.

Bands as in BSRNN (Luo and Yu 2023), narrow at low frequencies. Blocks alternate recurrence over time, the same for each
band, and layers that mix the bands of a frame. Each bin gets a filter over neighboring frames (deep filtering, Mack and
Habets 2019). A frame's output needs one frame of the future.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.errors import ConfigError

SAMPLE_RATE = 16_000  # Hz
N_FFT = 512  # samples of a frame, 32 ms
HOP_LENGTH = 256  # samples, 16 ms
BINS = N_FFT // 2 + 1
LOOKAHEAD = 1  # frames
LATENCY_S = (N_FFT + LOOKAHEAD * HOP_LENGTH) / SAMPLE_RATE
BAND_GROUPS = ((16, 4), (12, 8), (6, 16))  # bands, and bins of each: 125, 250 and 500 Hz; the last bin is left out
BANDS = sum(count for count, _ in BAND_GROUPS)
_SEEN = 2 + LOOKAHEAD  # frames that a frame's features come from: the one before, itself and those ahead
_COMPRESSION = 0.3  # exponent of the magnitudes that the network sees
_FLOOR = 1e-12  # of a power


@dataclass(frozen=True)
class MaskConfig:
    """Size of the network.

    Attributes:
        width: Number of features of a band.
        blocks: Number of blocks, each with recurrence over time and mixing of bands.
        expansion: Inner width of the layers that mix bands and features, relative to their number.
        taps: Frames that a bin's filter spans; the last is `LOOKAHEAD` frames ahead.
    """

    width: int = 64
    blocks: int = 3
    expansion: int = 2
    taps: int = 4

    def __post_init__(self) -> None:
        if self.taps <= LOOKAHEAD:
            raise ConfigError(f"{self.taps} taps", remedy=f"give more than {LOOKAHEAD}")


class MaskState(NamedTuple):
    """What a stream remembers between chunks.

    Attributes:
        samples: (B, N_FFT - HOP_LENGTH) float32, the end of the input so far.
        tail: (B, N_FFT - HOP_LENGTH) float32, output to which the next frame is added.
        spectra: (B, taps - 1, 2, BINS) float32, the last frames.
        features: (B, 3, 2, BINS) float32, the network's features of the last frames.
        hidden: (blocks, B x BANDS, width) float32.
        cell: (blocks, B x BANDS, width) float32.
    """

    samples: Tensor
    tail: Tensor
    spectra: Tensor
    features: Tensor
    hidden: Tensor
    cell: Tensor


class MaskNetwork(nn.Module):
    """The enhancer."""

    def __init__(self, config: MaskConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.ModuleList(_PerBand(count, _SEEN * 3 * bins, config.width) for count, bins in BAND_GROUPS)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.ModuleList(_PerBand(count, config.width, 2 * config.width) for count, _ in BAND_GROUPS)
        self.leave = nn.ModuleList(
            _PerBand(count, 2 * config.width, 2 * config.taps * bins) for count, bins in BAND_GROUPS
        )
        for layer in self.leave:  # at first each bin passes through
            assert isinstance(layer, _PerBand)
            nn.init.zeros_(layer.weight)
            layer.bias.data.unflatten(1, (config.taps, 2, -1))[:, config.taps - 1 - LOOKAHEAD, 0] = 1.0

    def forward(self, waveforms: Tensor) -> Tensor:
        """Enhance whole waveforms: (B, T) float32 at 16 kHz in, the same out, aligned."""
        return synthesize(self.enhance(analyze(waveforms)), waveforms.shape[1])

    def enhance(self, spectra: Tensor) -> Tensor:
        """Return the enhanced spectra (B, N, 2, BINS) of (B, N, 2, BINS)."""
        state = self.initial_state(len(spectra))
        padded = functional.pad(spectra, (0, 0, 0, 0, 0, LOOKAHEAD))
        enhanced, _ = self._step(padded, state)
        return enhanced[:, LOOKAHEAD:]

    def initial_state(self, batch: int = 1) -> MaskState:
        """Return the state of a stream before its first chunk."""
        like, overlap = self.norm.weight, N_FFT - HOP_LENGTH
        memory = like.new_zeros(self.config.blocks, batch * BANDS, self.config.width)
        nothing = like.new_zeros(batch, _SEEN - 1, 2, BINS)
        return MaskState(
            like.new_zeros(batch, overlap),
            like.new_zeros(batch, overlap),
            like.new_zeros(batch, self.config.taps - 1, 2, BINS),
            _features(nothing),
            memory,
            memory,
        )

    def step(self, chunk: Tensor, state: MaskState) -> tuple[Tensor, MaskState]:
        """Enhance the next samples of a stream.

        Args:
            chunk: (B, T) float32 at 16 kHz, T a multiple of `HOP_LENGTH`.
            state: The state from `initial_state` or the last step.

        Returns:
            (B, T) float32, delayed by `LATENCY_S` less one hop; and the new state.
        """
        samples = torch.cat([state.samples, chunk], dim=1)
        enhanced, state = self._step(_spectra(samples.unfold(1, N_FFT, HOP_LENGTH)), state)
        sound = _overlap_add(_frames(enhanced))
        size, overlap = chunk.shape[1], N_FFT - HOP_LENGTH
        sound = torch.cat([sound[:, :overlap] + state.tail, sound[:, overlap:]], dim=1)
        return sound[:, :size], state._replace(samples=samples[:, size:], tail=sound[:, size:])

    def _step(self, new: Tensor, state: MaskState) -> tuple[Tensor, MaskState]:
        """Return enhanced frames, `LOOKAHEAD` frames late, of (B, N, 2, BINS), and the state with old samples."""
        seen = torch.cat([state.features, _features(new)], dim=2)
        spectra = torch.cat([state.spectra, new], dim=1)
        frames = seen.unfold(2, _SEEN, 1).permute(0, 2, 3, 1, 4)  # (B, N, BINS, 3, _SEEN)
        x = torch.cat([layer(part.flatten(3)) for layer, part in zip(self.enter, _split(frames), strict=True)], dim=2)
        hidden_states, cell_states = [], []
        for block, hidden, cell in zip(self.blocks, state.hidden, state.cell, strict=True):
            x, hidden, cell = block(x, hidden, cell)
            hidden_states.append(hidden)
            cell_states.append(cell)
        filters, first = [], 0
        for (count, _), hide, leave in zip(BAND_GROUPS, self.hidden, self.leave, strict=True):
            band = functional.silu(hide(self.norm(x[:, :, first : first + count])))
            taps = leave(band).float().unflatten(3, (self.config.taps, 2, -1))  # (B, N, bands, taps, 2, bins)
            filters.append(taps.permute(0, 1, 3, 4, 2, 5).flatten(4))
            first += count
        enhanced = functional.pad(_filter(spectra[..., :-1], torch.cat(filters, dim=-1)), (0, 1))
        history = spectra[:, spectra.shape[1] - self.config.taps + 1 :], seen[:, :, 1 - _SEEN :]
        return enhanced, MaskState(
            state.samples, state.tail, *history, torch.stack(hidden_states), torch.stack(cell_states)
        )


class _PerBand(nn.Module):
    """A separate linear layer for each band: (B, N, bands, I) to (B, N, bands, O)."""

    def __init__(self, bands: int, size: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bands, size, out).uniform_(-1.0, 1.0) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(bands, out))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(2, 0, 1, 3).flatten(1, 2)  # (bands, B x N, I)
        out = torch.bmm(rows, self.weight.to(rows.dtype)) + self.bias[:, None]
        return out.unflatten(1, x.shape[:2]).permute(1, 2, 0, 3)


class _Block(nn.Module):
    def __init__(self, config: MaskConfig) -> None:
        super().__init__()
        width, inner = config.width, config.expansion * config.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.over_time = nn.LSTM(width, width, batch_first=True)
        self.time_out = nn.Linear(width, width)
        self.bands_up, self.bands_down = (
            nn.Linear(BANDS, config.expansion * BANDS),
            nn.Linear(config.expansion * BANDS, BANDS),
        )
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B, N, BANDS, C) for (B, N, BANDS, C), and the new hidden and cell state (B x BANDS, C)."""
        batch, frames, bands, width = x.shape
        rows = self.norms[0](x).transpose(1, 2).reshape(batch * bands, frames, width)
        rows, (hidden, cell) = self.over_time(rows, (hidden[None], cell[None]))
        x = x + self.time_out(rows).view(batch, bands, frames, width).transpose(1, 2)
        mixed = self.bands_up(self.norms[1](x).transpose(2, 3))
        x = x + self.bands_down(functional.silu(mixed)).transpose(2, 3)
        return x + self.down(functional.silu(self.up(self.norms[2](x)))), hidden[0], cell[0]


def analyze(waveforms: Tensor) -> Tensor:
    """Return the spectra (B, N, 2, BINS) of waveforms (B, T); the first frame ends with the first hop."""
    size = waveforms.shape[1]
    hops = -(-size // HOP_LENGTH) + N_FFT // HOP_LENGTH - 1  # so that every sample is in the same number of frames
    padded = functional.pad(waveforms, (N_FFT - HOP_LENGTH, hops * HOP_LENGTH - size))
    return _spectra(padded.unfold(1, N_FFT, HOP_LENGTH))


def synthesize(spectra: Tensor, samples: int) -> Tensor:
    """Return the waveforms (B, samples) of spectra from `analyze`."""
    start = N_FFT - HOP_LENGTH
    return _overlap_add(_frames(spectra))[:, start : start + samples]


def _spectra(frames: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(frames * _window().to(frames))
    return torch.stack([spectrum.real, spectrum.imag], dim=-2)


def _frames(spectra: Tensor) -> Tensor:
    """Return windowed frames (B, N, N_FFT) of spectra (B, N, 2, BINS)."""
    parts = torch.complex(spectra[..., 0, :].contiguous(), spectra[..., 1, :].contiguous())
    return torch.fft.irfft(parts, N_FFT) * _window().to(spectra)


def _overlap_add(frames: Tensor) -> Tensor:
    """Return (B, (N + 1) x HOP_LENGTH) of frames (B, N, N_FFT) that overlap by half."""
    first, second = frames[..., :HOP_LENGTH], frames[..., HOP_LENGTH:]
    return (functional.pad(first, (0, 0, 0, 1)) + functional.pad(second, (0, 0, 1, 0))).flatten(1)


def _features(spectra: Tensor) -> Tensor:
    """Return compressed magnitude, real and imaginary part: (B, 3, N, BINS) of (B, N, 2, BINS)."""
    power = spectra.square().sum(2) + _FLOOR
    magnitude = power ** (0.5 * _COMPRESSION)
    scale = (power ** (0.5 * (_COMPRESSION - 1.0)))[:, :, None]
    return torch.cat([magnitude[:, None], (spectra * scale).transpose(1, 2)], dim=1)


def _split(x: Tensor) -> list[Tensor]:
    """Return (B, N, bands, bins, ...) of each group of bands, of (B, N, BINS, ...)."""
    parts, first = [], 0
    for count, bins in BAND_GROUPS:
        parts.append(x[:, :, first : first + count * bins].unflatten(2, (count, bins)))
        first += count * bins
    return parts


def _filter(spectra: Tensor, filters: Tensor) -> Tensor:
    """Return (B, N, 2, BINS): spectra (B, N + taps - 1, 2, BINS) under complex filters (B, N, taps, 2, BINS)."""
    count = filters.shape[1]
    real = imag = torch.zeros_like(spectra[:, :count, 0])
    for tap in range(filters.shape[2]):
        x, y = spectra[:, tap : tap + count, 0], spectra[:, tap : tap + count, 1]
        a, b = filters[:, :, tap, 0], filters[:, :, tap, 1]
        real, imag = real + a * x - b * y, imag + a * y + b * x
    return torch.stack([real, imag], dim=2)


@functools.cache
@torch.inference_mode(False)  # a tensor of inference mode could not be trained with later
def _window() -> Tensor:
    """Square root of a Hann window: (N_FFT,) float32; used twice, overlapping by half it adds up to 1."""
    return torch.hann_window(N_FFT).sqrt()
