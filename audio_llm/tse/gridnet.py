"""The baseline: a causal TF-GridNet-style network of the published size, written from the published description.

Each block has a bidirectional LSTM over the bins of a frame, an LSTM over the frames of each bin, and attention over
the last 50 frames. The speaker embedding multiplies the features once, after the first block; the output is the complex
spectrum itself. It has 2.0 M parameters, most of them for the embedding, and 39 M multiplications per chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.tse.frames import BINS, CHUNK, FRAME, OVERLAP, analyze, inverse, synthesize, transform
from audio_llm.tse.recurrent_steps import lstm_step

EARS = 2
_KERNEL = 3  # of both convolutions, in frames and bins


@dataclass(frozen=True)
class GridNetConfig:
    """Size of the network; the defaults are the published one.

    Attributes:
        channels: Features of a bin.
        hidden: Units of the LSTMs.
        blocks: Number of blocks.
        heads: Attention heads.
        window: Frames in the attention window.
        embedding: Width of the speaker embedding; 0: the network takes none.
        outputs: Streams in the output: 1, or one per talker.
    """

    channels: int = 64
    hidden: int = 64
    blocks: int = 3
    heads: int = 4
    window: int = 50
    embedding: int = 256
    outputs: int = 1

    @property
    def key_width(self) -> int:
        """Width of a query or key per bin and head."""
        return math.ceil(512 / BINS)


@dataclass(frozen=True)
class GridNetState:
    """State of the network between two chunks; zeros at the beginning.

    Attributes:
        tail: (B, 2, 64) float32, the last input samples.
        past: (B, 4, 2, BINS) float32, the last two spectra.
        features: (B, C, 2, BINS) float32, the last two frames before the output.
        overlap: (B, outputs x 2, 64) float32, output samples of the last frame to be added to the next.
        keys: (blocks, B, heads, window - 1, E x BINS) float32.
        values: (blocks, B, heads, window - 1, C / heads x BINS) float32.
        hidden: (blocks, B, BINS, H) float32, hidden states of the LSTMs over frames.
        cell: (blocks, B, BINS, H) float32, cell states of the LSTMs over frames.
    """

    tail: Tensor
    past: Tensor
    features: Tensor
    overlap: Tensor
    keys: Tensor
    values: Tensor
    hidden: Tensor
    cell: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class GridNet(nn.Module):
    """The network; `forward` for whole mixtures and `step` for chunks give the same output."""

    def __init__(self, config: GridNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.enter = nn.Conv2d(2 * EARS, channels, _KERNEL, padding=(0, 1))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.leave = nn.Conv2d(channels, config.outputs * EARS * 2, _KERNEL, padding=(0, 1))
        if config.embedding:
            self.speaker = nn.Sequential(
                nn.Linear(config.embedding, channels * BINS),
                nn.LayerNorm(channels * BINS),
                nn.Unflatten(-1, (-1, BINS)),
            )

    def forward(self, mixture: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Extract from whole mixtures.

        Args:
            mixture: (B, 2, T) float32 at 16 kHz, T a multiple of 128.
            embedding: (B, E) float32; None if the network takes none.

        Returns:
            (B, outputs, 2, T) float32, 64 samples later than the mixture.
        """
        spectra = analyze(mixture).transpose(2, 3).flatten(1, 2)  # (B, 4, N, BINS)
        x = self.enter(functional.pad(spectra, (0, 0, _KERNEL - 1, 0)))
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 0 and embedding is not None:
                x = x * self.speaker(embedding)[:, :, None]
        output = self.leave(functional.pad(x, (0, 0, _KERNEL - 1, 0)))
        shape = (self.config.outputs, EARS, 2)
        return synthesize(output.unflatten(1, shape).transpose(3, 4))

    def initial_state(self, batch: int = 1) -> GridNetState:
        """Return the state before the first chunk."""
        config, like = self.config, self.leave.weight
        past = (config.blocks, batch, config.heads, config.window - 1)
        memory = (config.blocks, batch, BINS, config.hidden)
        return GridNetState(
            like.new_zeros(batch, EARS, OVERLAP),
            like.new_zeros(batch, 2 * EARS, _KERNEL - 1, BINS),
            like.new_zeros(batch, config.channels, _KERNEL - 1, BINS),
            like.new_zeros(batch, config.outputs * EARS, OVERLAP),
            like.new_zeros(*past, config.key_width * BINS),
            like.new_zeros(*past, config.channels // config.heads * BINS),
            like.new_zeros(memory),
            like.new_zeros(memory),
        )

    def step(self, chunk: Tensor, embedding: Tensor | None, state: GridNetState) -> tuple[Tensor, GridNetState]:
        """Extract from one chunk.

        Args:
            chunk: (B, 2, 128) float32.
            embedding: As for `forward`.
            state: From the last call, or `initial_state`.

        Returns:
            (B, outputs, 2, 128) float32, and the next state.
        """
        spectra = transform(torch.cat([state.tail, chunk], dim=-1)).flatten(1, 2)[:, :, None]  # (B, 4, 1, BINS)
        past = torch.cat([state.past, spectra], dim=2)
        x = self.enter(past)
        parts: list[tuple[Tensor, ...]] = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            x, *rest = block.step(x, state.keys[number], state.values[number], state.hidden[number], state.cell[number])
            parts.append(tuple(rest))
            if number == 0 and embedding is not None:
                x = x * self.speaker(embedding)[:, :, None]
        features = torch.cat([state.features, x], dim=2)
        output = self.leave(features)[:, :, 0].unflatten(1, (self.config.outputs * EARS, 2))
        frames = inverse(output)
        sound = frames[..., :CHUNK] + functional.pad(state.overlap, (0, CHUNK - OVERLAP))
        keys, values, hidden, cell = (torch.stack(part) for part in zip(*parts, strict=True))
        next_state = GridNetState(
            chunk[..., CHUNK - OVERLAP :],
            past[:, :, 1:],
            features[:, :, 1:],
            frames[..., FRAME - OVERLAP :],
            keys,
            values,
            hidden,
            cell,
        )
        return sound.unflatten(1, (self.config.outputs, EARS)), next_state


class _Block(nn.Module):
    def __init__(self, config: GridNetConfig) -> None:
        super().__init__()
        channels, hidden, self.heads, self.window = config.channels, config.hidden, config.heads, config.window
        self.bin_norm, self.time_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.bins = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.bins_out = nn.Linear(2 * hidden, channels)
        self.time = nn.LSTM(channels, hidden, batch_first=True)
        self.time_out = nn.Linear(hidden, channels)
        self.query, self.key = (_Projection(channels, config.key_width, config.heads) for _ in range(2))
        self.value = _Projection(channels, channels // config.heads, config.heads)
        self.out = _Projection(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, C, N, BINS)."""
        x = self._bins(x)
        rows = self.time_norm(x.permute(0, 3, 2, 1))  # (B, BINS, N, C)
        update = self.time_out(self.time(rows.flatten(0, 1))[0]).unflatten(0, rows.shape[:2])
        x = x + update.permute(0, 3, 2, 1)
        keys, values = (functional.pad(part(x), (0, 0, self.window - 1, 0)) for part in (self.key, self.value))
        frames = x.shape[2]
        ahead = torch.arange(frames + self.window - 1) - torch.arange(frames)[:, None]
        visible = ((ahead >= 0) & (ahead < self.window)).to(x.device)
        return self._attend(x, keys, values, visible)

    def step(
        self, x: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Transform one frame (B, C, 1, BINS); return it, and the next keys, values, hidden and cell states."""
        x = self._bins(x)
        rows = self.time_norm(x[:, :, 0].transpose(1, 2))  # (B, BINS, C)
        top, next_hiddens, next_memories = lstm_step(self.time, rows, hidden[None], cell[None])
        x = x + self.time_out(top).transpose(1, 2)[:, :, None]
        keys, values = torch.cat([keys, self.key(x)], dim=2), torch.cat([values, self.value(x)], dim=2)
        return self._attend(x, keys, values, None), keys[:, :, 1:], values[:, :, 1:], next_hiddens[0], next_memories[0]

    def _bins(self, x: Tensor) -> Tensor:
        rows = self.bin_norm(x.permute(0, 2, 3, 1))  # (B, N, BINS, C)
        update = self.bins_out(self.bins(rows.flatten(0, 1))[0]).unflatten(0, rows.shape[:2])
        return x + update.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
        """Add the attention of each frame to its visible frames; keys and values (B, heads, M, ...)."""
        query = self.query(x)
        scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if visible is not None:
            scores = scores.masked_fill(~visible, -math.inf)
        attended = torch.softmax(scores, dim=-1) @ values  # (B, heads, N, C / heads x BINS)
        attended = attended.unflatten(-1, (-1, BINS)).transpose(2, 3).flatten(1, 2)
        return x + self.out(attended).unflatten(-1, (-1, BINS))[:, 0].transpose(1, 2)


class _Projection(nn.Module):
    """Features of every bin, per head, normalized over the features and bins of a frame."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.linear = nn.Conv2d(channels, width * heads, 1)
        self.act = nn.PReLU()
        self.norm = nn.LayerNorm([width, BINS])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, heads, N, width x BINS) of (B, C, N, BINS)."""
        parts = self.act(self.linear(x)).unflatten(1, (self.heads, self.width)).transpose(2, 3)
        normalized: Tensor = self.norm(parts).flatten(-2)
        return normalized


def macs_per_chunk(config: GridNetConfig) -> int:
    """Return the multiplications per chunk, including the speaker projection."""
    channels, hidden = config.channels, config.hidden
    bins = 2 * 4 * hidden * (channels + hidden) + 2 * hidden * channels
    time = 4 * hidden * (channels + hidden) + hidden * channels
    projections = channels * (2 * config.key_width * config.heads + 2 * channels)
    attention = config.window * (config.key_width * config.heads + channels)
    ends = _KERNEL**2 * channels * 2 * EARS * (1 + config.outputs)
    speaker = config.embedding * channels * BINS
    transforms = FRAME * 2 * BINS * EARS * (1 + config.outputs)
    return config.blocks * BINS * (bins + time + projections + attention) + BINS * ends + speaker + transforms
