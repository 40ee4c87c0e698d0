"""Parts of a Conformer (Gulati et al. 2020) with rotary positions, and layer instead of batch normalization.

So the output of an utterance does not depend on its batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from audio_llm.features import N_MELS, valid_mask

SUBSAMPLING = 4  # feature frames per output frame of the convolutions


class ConformerConfig(Protocol):
    """Sizes that the parts ask for.

    Attributes:
        channels: Channels of the two subsampling convolutions.
        width: Model width of every block.
        heads: Attention heads.
        feedforward: Inner width of the feed-forward layers.
        kernel: Kernel size of the convolution of a block, frames; odd.
    """

    @property
    def channels(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def feedforward(self) -> int: ...
    @property
    def kernel(self) -> int: ...


def output_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Return the number of output frames of the subsampling for feature frames; both (B,) int64."""
    return (lengths + 3) // 4


class ConvSubsampling(nn.Module):
    """Two strided convolutions over time and frequency, then `fold` of their 40 ms frames become one of `width`."""

    def __init__(self, config: ConformerConfig, fold: int = 1) -> None:
        super().__init__()
        self.fold = fold
        self.first = nn.Conv2d(1, config.channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1)
        self.project = nn.Linear(fold * config.channels * N_MELS // SUBSAMPLING, config.width)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor, dropout: float) -> torch.Tensor:
        """Return (B, N, width) of features (B, F, 80); lengths (B,) int64 feature frames; dropout is a rate."""
        x = functional.silu(self.first(features[:, None]))
        # What a convolution makes of the padding must not leak into the last frames at the next one.
        x = x * valid_mask((lengths + 1) // 2, x.shape[2])[:, None, :, None]
        x = functional.silu(self.second(x))
        x = x * valid_mask(output_lengths(lengths), x.shape[2])[:, None, :, None]
        x = x.transpose(1, 2).flatten(2)
        x = functional.pad(x, (0, 0, 0, -x.shape[1] % self.fold)).unflatten(1, (-1, self.fold)).flatten(2)
        return functional.dropout(self.project(x), dropout, dropout > 0)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width = config.width
        self.first, self.second = _FeedForward(config), _FeedForward(config)
        self.attention, self.convolution = _Attention(config), _Convolution(config)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, turns: torch.Tensor, dropout: float) -> torch.Tensor:
        """Return (B, N, width); mask (B, N) bool, turns of `rotation`, dropout a rate."""
        x = x + 0.5 * self.first(x, dropout)
        x = x + self.attention(x, mask, turns, dropout)
        x = x + self.convolution(x, mask, dropout)
        x = x + 0.5 * self.second(x, dropout)
        out: torch.Tensor = self.norm(x)
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feedforward)
        self.down = nn.Linear(config.feedforward, config.width)

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        x = self.down(functional.silu(self.up(self.norm(x))))
        return functional.dropout(x, dropout, dropout > 0)


class _Attention(nn.Module):
    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, turns: torch.Tensor, dropout: float) -> torch.Tensor:
        batch, size, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, size, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key = _rotate(qkv[0], turns), _rotate(qkv[1], turns)
        y = functional.scaled_dot_product_attention(query, key, qkv[2], mask[:, None, None, :])
        y = self.out(y.transpose(1, 2).reshape(batch, size, width))
        return functional.dropout(y, dropout, dropout > 0)


class _Convolution(nn.Module):
    def __init__(self, config: ConformerConfig) -> None:
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


def rotation(size: int, width: int, device: torch.device) -> torch.Tensor:
    """Return cosines and sines of rotary positions: (2, size, width / 2) float32."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(size, device=device)[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn pairs of values by their position's angles; x (B, heads, N, D)."""
    cos, sin = turns.to(x.dtype)
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)
