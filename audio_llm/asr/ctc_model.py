"""The character CTC network: log-mel features to symbol log-probabilities every 40 ms.

A Conformer (Gulati et al. 2020) with rotary positions, and layer instead of batch normalisation, so that an utterance
comes out alike alone and in a batch. Half-way predictions (Lee and Watanabe 2021) help it to learn from little data.
"""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from audio_llm.errors import ConfigError
from audio_llm.features import FRAME_RATE, N_MELS, valid_mask

BLANK = 0
SYMBOLS = "\0 'abcdefghijklmnopqrstuvwxyz"  # symbol i of the network's output; the first is the blank
SUBSAMPLING = 4  # feature frames per output frame
FRAME_S = SUBSAMPLING / FRAME_RATE  # seconds per output frame

_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number != BLANK}


@dataclass(frozen=True)
class CtcConfig:
    """Size of the network.

    Attributes:
        channels: Of the two convolutions that shorten the features.
        width: Of every layer.
        layers: Conformer blocks.
        heads: Of attention.
        feedforward: Inner width.
        kernel: Frames that a block's convolution sees.
        fold: Output frames that the blocks handle as one: 2 halves the work, each then predicts two symbols.
        dropout: While training.
        phones: Kinds of phones that the middle layer is taught to tell apart in every output frame; 0: none.
    """

    channels: int = 32
    width: int = 176
    layers: int = 8
    heads: int = 4
    feedforward: int = 528
    kernel: int = 15
    fold: int = 2
    dropout: float = 0.1
    phones: int = 0

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} does not split into {self.heads} heads of even width")
        if self.kernel % 2 == 0 or self.fold < 1:
            raise ConfigError(
                f"kernel {self.kernel}, fold {self.fold}", remedy="give an odd kernel and a fold of 1 or 2"
            )


PRESETS = {
    "small": CtcConfig(),
    "tiny": CtcConfig(channels=16, width=112, layers=6, heads=4, feedforward=336, dropout=0.05),
}


@dataclass(frozen=True)
class CtcOutput:
    """What the network says.

    Attributes:
        log_probs: (B, N, 29) float32, log-probability of each symbol in each 40 ms frame.
        lengths: (B,) int64, output frames of each utterance.
        halfway: (B, N, 29) float32, the same read off the middle of the network; None unless asked for.
        phones: (B, N, phones) float32, log-probability of each phone off the middle; None unless asked for.
    """

    log_probs: torch.Tensor
    lengths: torch.Tensor
    halfway: torch.Tensor | None = None
    phones: torch.Tensor | None = None


class CtcModel(nn.Module):
    """Conformer encoder with a CTC output."""

    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        self.config = config
        self.front = _Front(config)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.output = nn.Linear(config.width, config.fold * len(SYMBOLS))
        if config.phones:
            self.phone_output = nn.Linear(config.width, config.fold * config.phones)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor, dropout: float | None = None, halfway: bool = False
    ) -> CtcOutput:
        """Recognise a batch.

        Args:
            features: (B, F, 80) float32, normalised, zeros behind each end.
            lengths: (B,) int64, at least 1.
            dropout: Rate to use now, also in eval mode; None: the configured one in training, 0 in eval mode.
            halfway: Also return the predictions of the middle layer.
        """
        rate = (self.config.dropout if self.training else 0.0) if dropout is None else dropout
        x = self.front(features, lengths, rate)
        lengths = output_lengths(lengths)
        mask = valid_mask((lengths + self.config.fold - 1) // self.config.fold, x.shape[1])
        rotation = _rotation(x.shape[1], self.config.width // self.config.heads, x.device)
        middle = phones = None
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask, rotation, rate)
            if halfway and number == len(self.blocks) // 2:
                middle = self._log_probs(self.output, x, features.shape[1])
                phones = self._log_probs(self.phone_output, x, features.shape[1]) if self.config.phones else None
        return CtcOutput(self._log_probs(self.output, x, features.shape[1]), lengths, middle, phones)

    def _log_probs(self, output: nn.Linear, x: torch.Tensor, feature_frames: int) -> torch.Tensor:
        logits = output(x).float().view(x.shape[0], -1, output.out_features // self.config.fold)
        return functional.log_softmax(logits[:, : (feature_frames + 3) // SUBSAMPLING], dim=-1)


def output_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Return output frames for so many feature frames; (B,) int64 both."""
    return (lengths + 3) // 4


def encode_symbols(text: str) -> list[int] | None:
    """Return symbol numbers of a text; accents are dropped; None where it has anything but letters, ' and spaces."""
    plain = unicodedata.normalize("NFKD", " ".join(text.lower().split()))
    numbers = [_NUMBERS.get(symbol) for symbol in plain if not unicodedata.combining(symbol)]
    return None if None in numbers else [number for number in numbers if number is not None]


def decode_symbols(numbers: list[int]) -> str:
    """Return the text of symbol numbers without blanks, single spaces between words."""
    return " ".join("".join(SYMBOLS[number] for number in numbers).split())


def frames_needed(numbers: list[int]) -> int:
    """Return the fewest output frames that can spell this: equal neighbours need a blank between them."""
    return len(numbers) + sum(a == b for a, b in itertools.pairwise(numbers))


class _Front(nn.Module):
    """Two strided convolutions over time and frequency, then `fold` of their 40 ms frames become one of `width`."""

    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        self.fold = config.fold
        self.first = nn.Conv2d(1, config.channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1)
        self.project = nn.Linear(config.fold * config.channels * N_MELS // SUBSAMPLING, config.width)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor, dropout: float) -> torch.Tensor:
        x = functional.silu(self.first(features[:, None]))
        # What a convolution makes of the padding must not leak into the last frames at the next one.
        x = x * valid_mask((lengths + 1) // 2, x.shape[2])[:, None, :, None]
        x = functional.silu(self.second(x))
        x = x * valid_mask(output_lengths(lengths), x.shape[2])[:, None, :, None]
        x = x.transpose(1, 2).flatten(2)
        x = functional.pad(x, (0, 0, 0, -x.shape[1] % self.fold)).unflatten(1, (-1, self.fold)).flatten(2)
        return functional.dropout(self.project(x), dropout, dropout > 0)


class _Block(nn.Module):
    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        width = config.width
        self.first, self.second = _FeedForward(config), _FeedForward(config)
        self.attention, self.convolution = _Attention(config), _Convolution(config)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: torch.Tensor, dropout: float) -> torch.Tensor:
        x = x + 0.5 * self.first(x, dropout)
        x = x + self.attention(x, mask, rotation, dropout)
        x = x + self.convolution(x, mask, dropout)
        x = x + 0.5 * self.second(x, dropout)
        out: torch.Tensor = self.norm(x)
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feedforward)
        self.down = nn.Linear(config.feedforward, config.width)

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        x = self.down(functional.silu(self.up(self.norm(x))))
        return functional.dropout(x, dropout, dropout > 0)


class _Attention(nn.Module):
    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: torch.Tensor, dropout: float) -> torch.Tensor:
        batch, size, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, size, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key = _rotate(qkv[0], rotation), _rotate(qkv[1], rotation)
        y = functional.scaled_dot_product_attention(query, key, qkv[2], mask[:, None, None, :])
        y = self.out(y.transpose(1, 2).reshape(batch, size, width))
        return functional.dropout(y, dropout, dropout > 0)


class _Convolution(nn.Module):
    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, dropout: float) -> torch.Tensor:
        x = functional.glu(self.up(self.norm(x)), dim=-1) * mask[:, :, None]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        x = self.down(functional.silu(self.inner_norm(x)))
        return functional.dropout(x, dropout, dropout > 0)


def _rotation(size: int, width: int, device: torch.device) -> torch.Tensor:
    """Return cosines and sines of rotary positions: (2, size, width / 2) float32."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(size, device=device)[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn pairs of values by their position's angles; x (B, heads, N, D)."""
    cos, sin = rotation.to(x.dtype)
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)
