"""The streaming extractor: a binaural mixture and a speaker embedding to that speaker in both ears, in chunks of 8 ms.

Spectra of two microphones are read in bands of adjacent bins. Every band has its own input and output weights, since a
direction has a different phase in every band. Each block is modulated by the speaker (FiLM), mixes the bands, and keeps
each band's past in a recurrent layer: a GRU or a gated linear recurrence (`nn.recurrent`). There is no recurrence over
frequency and no lookahead beyond the frame. A longer analysis window that ends with the frame can add features that
resolve harmonics, without more delay. The head is a complex filter from two ears to two ears in every bin, which
preserves interaural cues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.errors import ConfigError
from audio_llm.nn.recurrent import LinearRecurrence
from audio_llm.tse.frames import BINS, CHUNK, FRAME, OVERLAP, inverse, transform, transform_long

EARS = 2
_PER_BIN = 8  # features per bin and frame
_COMPRESSION = 0.3  # exponent of magnitudes
_FLOOR = 1e-5  # of magnitudes, about -100 dB of a full-scale sine in a frame


@dataclass(frozen=True)
class ExtractorConfig:
    """Size of the network.

    Attributes:
        channels: Features of every band.
        hidden: Units of the recurrent layers.
        blocks: Number of blocks.
        stride: Bins in a band.
        context: Frames of input features: the current one and those before it.
        kernel: Width of the depthwise convolution in bands; 0: no convolution, only the matrix over all bands.
        embedding: Width of the speaker embedding; 0: the network takes none.
        outputs: Streams in the output: 1, or one per talker.
        front: Whether there is one more head, for the frontal speaker.
        recurrence: `gru`, or `linear` for the gated linear recurrence, which trains faster.
        window: Samples of the long analysis window, a multiple of 192 such as 576 (36 ms); 0: none.
    """

    channels: int = 48
    hidden: int = 64
    blocks: int = 6
    stride: int = 2
    context: int = 3
    kernel: int = 5
    embedding: int = 256
    outputs: int = 1
    front: bool = False
    recurrence: Literal["gru", "linear"] = "gru"
    window: int = 0

    def __post_init__(self) -> None:
        if (self.kernel and self.kernel % 2 == 0) or self.context < 1 or self.stride < 1 or self.outputs < 1:
            raise ConfigError(f"no extractor has the shape {self}", remedy="give an odd kernel and sizes of 1 or more")
        if self.window % FRAME or (self.window and self.window < 2 * FRAME):
            raise ConfigError(f"a window of {self.window} samples", remedy=f"give 0 or {2 * FRAME}, {3 * FRAME}, ...")

    @property
    def bands(self) -> int:
        """Number of bands."""
        return -(-BINS // self.stride)

    @property
    def tail(self) -> int:
        """Samples before a chunk that its analysis windows include."""
        return max(FRAME, self.window) - CHUNK

    @property
    def fine(self) -> int:
        """Bins of the long window for each bin of a frame; 0 without such a window."""
        return self.window // FRAME


PRESETS = {
    "B": ExtractorConfig(blocks=4, stride=3),
    "C": ExtractorConfig(),
    "D": ExtractorConfig(channels=64, hidden=96, stride=3),
}


@dataclass(frozen=True)
class ExtractorState:
    """State of the network between two chunks; zeros at the beginning.

    Attributes:
        tail: (B, 2, 64) float32, the last input samples; more (`ExtractorConfig.tail`) with a long window.
        past: (B, context - 1, 8, BINS) float32, features of the previous frames.
        overlap: (B, outputs x 2, 64) float32, output samples of the last frame to be added to the next.
        hidden: (blocks, B, bands, hidden) float32, states of the recurrent layers.
    """

    tail: Tensor
    past: Tensor
    overlap: Tensor
    hidden: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Extractor(nn.Module):
    """The network; whole mixtures and consecutive chunks give the same output."""

    def __init__(self, config: ExtractorConfig) -> None:
        super().__init__()
        self.config = config
        width = _PER_BIN * config.stride * (config.context + config.fine)
        self.embed = _BandLinear(config.bands, width, config.channels)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.channels)
        self.filters = _Filters(config, config.outputs)
        if config.front:
            self.front = _Filters(config, 1)
        if config.embedding:
            self.film = nn.Linear(config.embedding, config.blocks * 2 * config.channels)
            nn.init.normal_(self.film.weight, std=0.02)
            nn.init.zeros_(self.film.bias)

    def condition(self, embedding: Tensor) -> Tensor:
        """Return the FiLM parameters (B, blocks, 2, C) of a speaker embedding (B, E) float32, once for all chunks."""
        film: Tensor = self.film(embedding).unflatten(-1, (self.config.blocks, 2, self.config.channels))
        return film

    def forward(self, mixture: Tensor, film: Tensor | None = None, frontal: bool = False) -> Tensor:
        """Extract from whole mixtures.

        Args:
            mixture: (B, 2, T) float32 at 16 kHz, T a multiple of 128.
            film: (B, blocks, 2, C) from `condition`; None if the network takes no embedding.
            frontal: Whether to extract the frontal speaker.

        Returns:
            (B, outputs, 2, T) float32, 64 samples later than the mixture; (B, 1, 2, T) for the frontal speaker.
        """
        return self.step(mixture, film, self.initial_state(len(mixture)), frontal)[0]

    def initial_state(self, batch: int = 1) -> ExtractorState:
        """Return the state before the first chunk."""
        config, like = self.config, self.norm.weight
        return ExtractorState(
            like.new_zeros(batch, EARS, config.tail),
            like.new_zeros(batch, config.context - 1, _PER_BIN, BINS),
            like.new_zeros(batch, config.outputs * EARS, OVERLAP),
            like.new_zeros(config.blocks, batch, config.bands, config.hidden),
        )

    def step(
        self, sound: Tensor, film: Tensor | None, state: ExtractorState, frontal: bool = False
    ) -> tuple[Tensor, ExtractorState]:
        """Extract from the next chunks.

        Args:
            sound: (B, 2, T) float32, T a multiple of 128.
            film: As for `forward`.
            state: From the last call with the same `frontal`, or `initial_state`.
            frontal: As for `forward`.

        Returns:
            (B, outputs, 2, T) float32, and the next state; (B, 1, 2, T) for the frontal speaker.
        """
        with _full_precision(sound):
            samples = torch.cat([state.tail, sound], dim=-1)
            spectra = transform(samples[..., self.config.tail - OVERLAP :].unfold(-1, FRAME, CHUNK)).transpose(1, 2)
            features = torch.cat([state.past, _features(spectra)], dim=1)  # (B, context - 1 + N, 8, bins)
            fine = None
            if self.config.window:
                fine = _features(transform_long(samples.unfold(-1, self.config.window, CHUNK)).transpose(1, 2))
            x = self._embed(features, fine)
        x = x.transpose(0, 1).contiguous()  # time first, as recurrent layers require
        hidden = []
        for number, block in enumerate(self.blocks):
            x, memory = block(x, None if film is None else film[:, number], state.hidden[number])
            hidden.append(memory)
        with _full_precision(sound):
            filters = (self.front if frontal else self.filters)(self.norm(x.float()).transpose(0, 1))
            frames = inverse(_filter(filters, spectra)).flatten(2, 3).transpose(1, 2)  # (B, streams, N, 192)
        overlap = state.overlap[:, : frames.shape[1]]
        ends = torch.cat([overlap[:, :, None], frames[..., CHUNK:]], dim=2)
        sounds = (frames[..., :CHUNK] + functional.pad(ends[:, :, :-1], (0, CHUNK - OVERLAP))).flatten(-2)
        next_state = ExtractorState(
            samples[..., -self.config.tail :],
            features[:, len(spectra[0]) :],
            ends[:, :, -1],
            torch.stack(hidden),
        )
        return sounds.unflatten(1, (-1, EARS)), next_state

    def compile_blocks(self) -> None:
        """Fuse the element-wise operations of the blocks (`torch.compile`), for long trainings at one batch shape."""
        for block in self.blocks:
            assert isinstance(block, _Block)
            block.compile_parts()

    def _embed(self, features: Tensor, fine: Tensor | None) -> Tensor:
        """Return bands (B, N, bands, C) from features (B, context - 1 + N, 8, bins) and fine (B, N, 8, fine bins)."""
        config = self.config
        stacked = torch.cat([features[:, n : n - config.context + 1 or None] for n in range(config.context)], dim=2)
        parts = [_by_band(stacked, config.bands, config.stride)]
        if fine is not None:
            parts.append(_by_band(fine, config.bands, config.stride * config.fine))
        embedded: Tensor = self.embed(torch.cat(parts, dim=-1))
        return embedded


def _by_band(features: Tensor, bands: int, stride: int) -> Tensor:
    """Return (B, N, bands, F x stride) of (B, N, F, bins); the last band is padded with zeros."""
    padded = functional.pad(features, (0, bands * stride - features.shape[-1]))
    return padded.unflatten(-1, (bands, stride)).permute(0, 1, 3, 2, 4).flatten(3)


def _full_precision(like: Tensor) -> Any:
    """Return a context without autocast: spectra and filters lose too much precision in bfloat16."""
    return torch.autocast(like.device.type, enabled=False)


class _BandLinear(nn.Module):
    """A linear layer for each band: (..., bands, I) to (..., bands, O)."""

    def __init__(self, bands: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bands, width, out).uniform_(-1.0, 1.0) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(bands, out))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3).transpose(0, 1)  # (bands, rows, I)
        output = torch.baddbmm(self.bias[:, None], rows, self.weight)
        return output.transpose(0, 1).view(*x.shape[:-1], -1)


class _Filters(nn.Module):
    """The head: bands (B, N, bands, C) to filters (B, N, outputs, ears, ears, 2, bins), from the last axis' ear."""

    def __init__(self, config: ExtractorConfig, outputs: int) -> None:
        super().__init__()
        self.shape = (config.stride, outputs, EARS, EARS, 2)
        self.linear = _BandLinear(config.bands, config.channels, config.stride * outputs * EARS * EARS * 2)
        with (
            torch.no_grad()
        ):  # at first every stream is half the mixture, so that training need not learn to pass sound
            self.linear.weight.mul_(0.1)
            self.linear.bias.unflatten(-1, self.shape)[..., 0].copy_(0.5 * torch.eye(EARS))

    def forward(self, x: Tensor) -> Tensor:
        filters: Tensor = self.linear(x).unflatten(-1, self.shape).permute(0, 1, 4, 5, 6, 7, 2, 3).flatten(-2)
        return filters[..., :BINS]


def _filter(filters: Tensor, spectra: Tensor) -> Tensor:
    """Apply filters (B, N, outputs, ears, ears, 2, bins) to spectra (B, N, ears, 2, bins).

    Returns:
        (B, N, outputs, ears, 2, bins).
    """
    real, imaginary = filters.unbind(-2)
    re, im = spectra[:, :, None, None].unbind(-2)
    filtered = torch.stack([real * re - imaginary * im, real * im + imaginary * re], dim=-2)
    return filtered.sum(dim=4)


class _Block(nn.Module):
    def __init__(self, config: ExtractorConfig) -> None:
        super().__init__()
        channels = config.channels
        self.band_norm, self.time_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        if config.kernel:
            self.near = nn.Conv1d(channels, channels, config.kernel, padding=config.kernel // 2, groups=channels)
        self.far = nn.Linear(config.bands, config.bands)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.linear = config.recurrence == "linear"
        if self.linear:
            self.recurrence = LinearRecurrence(channels, config.hidden)
            self._parts: tuple[Callable[..., Any], ...] = self._before, self._after
        else:
            self.gru = nn.GRU(channels, config.hidden)
            self.out = nn.Linear(config.hidden, channels)

    def compile_parts(self) -> None:
        """Compile the parts before and after the recurrence, which is a single operation."""
        if self.linear:
            self._parts = torch.compile(self._before), torch.compile(self._after)

    def forward(self, x: Tensor, film: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Transform (N, B, bands, C), film (B, 2, C), hidden (B, bands, hidden); return output and next hidden."""
        if self.linear:
            before, after = self._parts
            x, forget, entry, gate = before(x, film)
            states = self.recurrence.scan(forget.flatten(1, 2), entry.flatten(1, 2), hidden.flatten(0, 1).float())
            return after(x, states.view(gate.shape), gate), states[-1].view(hidden.shape)
        x = self._bands(x, film)
        top, memory = self.gru(self.time_norm(x).flatten(1, 2), hidden.flatten(0, 1)[None].to(x.dtype))
        return x + self.out(top).view(x.shape), memory.view(hidden.shape)

    def _before(self, x: Tensor, film: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x with its bands mixed, and the gates of the recurrence: forget, entry and output."""
        x = self._bands(x, film)
        return x, *self.recurrence.gates(self.time_norm(x))

    def _after(self, x: Tensor, states: Tensor, gate: Tensor) -> Tensor:
        out: Tensor = x + self.recurrence.output(states, gate)
        return out

    def _bands(self, x: Tensor, film: Tensor | None) -> Tensor:
        """Modulate (..., bands, C) by film (..., 2, C), and mix the bands."""
        y = self.band_norm(x)
        if film is not None:
            y = y * (1.0 + film[..., None, 0, :]) + film[..., None, 1, :]
        if hasattr(self, "near"):
            turned = y.transpose(-1, -2)
            near = self.near(turned.reshape(-1, *turned.shape[-2:])).view(turned.shape)
            mixed = (near + self.far(turned)).transpose(-1, -2)
        else:  # multiplying from the left saves two transpositions
            mixed = y + torch.matmul(self.far.weight, y) + self.far.bias[:, None]
        out: Tensor = x + self.down(functional.silu(self.up(mixed)))
        return out


def _features(spectra: Tensor) -> Tensor:
    """Return (B, N, 8, bins) of (B, N, ears, 2, bins).

    The features are compressed real and imaginary parts of both ears, cosine and sine of the interaural phase, and the
    logarithms of the power and of the interaural power ratio.
    """
    power = spectra.square().sum(dim=3)  # (B, N, ears, bins)
    magnitude = (power + _FLOOR**2).sqrt()
    compressed = spectra * magnitude.pow(_COMPRESSION - 1.0)[:, :, :, None]
    left, right = spectra.unbind(2)
    product = magnitude.prod(dim=2)
    cosine = (left * right).sum(dim=2) / product
    sine = (left[:, :, 1] * right[:, :, 0] - left[:, :, 0] * right[:, :, 1]) / product
    logs = magnitude.log()
    level, ratio = 0.1 * logs.sum(dim=2), 0.2 * (logs[:, :, 0] - logs[:, :, 1])
    return torch.cat([compressed.flatten(2, 3), torch.stack([cosine, sine, level, ratio], dim=2)], dim=2)
