"""Speaker selection: which separated stream is the enrolled speaker, by a causal speaker encoder and soft weights.

The speaker encoder of enrollment runs over every stream. The similarity of a stream's vector to the enrolled one, and
the stream's level, are evidence that a small GRU accumulates; its output weighs the streams and silence by a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audio_llm.tse.frames import CHUNK
from audio_llm.tse.recurrent_steps import gru_step
from audio_llm.tse.speaker import LEVEL, WINDOW, SpeakerEncoder, compressed_mel

_MEMORY = 128.0  # chunks over which a stream's level is averaged, about one second
_FLOOR = 1e-8  # added to mean squares


@dataclass(frozen=True)
class SelectorConfig:
    """Size of the network.

    Attributes:
        hidden: Units of the speaker encoder's LSTM.
        layers: Layers of the speaker encoder's LSTM.
        hints: Values per chunk that the encoder adds to the evidence, in addition to the similarity.
        evidence: Units of the GRU that accumulates the evidence.
    """

    hidden: int = 160
    layers: int = 2
    hints: int = 8
    evidence: int = 16


@dataclass(frozen=True)
class SelectorState:
    """State of the network between two chunks; zeros at the beginning.

    Attributes:
        tail: (B, K, 272) float32, the last samples of each stream.
        level: (B, K, 1) float32, mean square of each stream so far.
        count: (B, 1, 1) float32, chunks so far, at most 128.
        hidden: (layers, B, K, H) float32, hidden states of the speaker encoder.
        cell: (layers, B, K, H) float32, cell states of the speaker encoder.
        evidence: (B, K, E) float32, hidden state of the GRU.
        weights: (B, K) float32, the last weights of the streams.
    """

    tail: Tensor
    level: Tensor
    count: Tensor
    hidden: Tensor
    cell: Tensor
    evidence: Tensor
    weights: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class StreamEncoding(NamedTuple):
    """Encoding of streams that does not depend on the enrolled speaker.

    Attributes:
        top: (B, K, N, H) float32, outputs of the speaker encoder's last layer.
        vectors: (B, K, N, 256) float32, speaker vectors of each stream at each chunk.
        power: (B, K, N, 1) float32, mean square of each chunk.
        level: (B, K, N, 1) float32, mean square so far.
        memory: `hidden` and `cell` of the next state, (layers, B, K, H) float32 each.
    """

    top: Tensor
    vectors: Tensor
    power: Tensor
    level: Tensor
    memory: tuple[Tensor, Tensor]


class Selector(nn.Module):
    """The network; whole streams, consecutive chunks, and `step` give the same output."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__()
        self.config = config
        self.speaker = SpeakerEncoder(config.hidden, config.layers)
        self.counted = nn.Linear(config.hidden, 1)  # for enrollment: weight of a chunk
        self.hint = nn.Linear(config.hidden, config.hints)
        self.gru = nn.GRU(3 + config.hints, config.evidence, batch_first=True)
        self.choice = nn.Linear(config.evidence, 1)
        self.nobody = nn.Linear(config.evidence, 1)

    def forward(self, streams: Tensor, enrolled: Tensor) -> tuple[Tensor, Tensor]:
        """Select among whole streams.

        Args:
            streams: (B, K, 2, T) float32 at 16 kHz, T a multiple of 128.
            enrolled: (B, 256) unit vectors of the enrolled speakers.

        Returns:
            Logits (B, N, K + 1) of each stream and of silence per chunk, and the streams' vectors (B, N, K, 256) up to
            each chunk.
        """
        encoding = self.encode_streams(streams)
        return self.select(encoding, enrolled)[0], encoding.vectors.transpose(1, 2)

    def encode_streams(self, streams: Tensor, state: SelectorState | None = None) -> StreamEncoding:
        """Return the encoding of the next chunks of streams (B, K, 2, T), independent of the enrolled speaker."""
        if state is None:
            state = self.initial_state(streams.shape[1], len(streams))
        mono = streams.mean(dim=2)
        power = mono.unflatten(-1, (-1, CHUNK)).square().mean(-1, keepdim=True)
        level = _running_level(power, state)
        frames = torch.cat([state.tail, mono], dim=-1).unfold(-1, WINDOW, CHUNK)
        features = _features(frames, level).flatten(0, 1)
        before = tuple(part.flatten(1, 2).to(features.dtype) for part in (state.hidden, state.cell))
        top, (hidden, cell) = self.speaker.lstm(features, before)
        top = top.unflatten(0, mono.shape[:2])
        memory = (hidden.view(state.hidden.shape), cell.view(state.cell.shape))
        return StreamEncoding(top, self.speaker.project(top), power, level, memory)

    def select(
        self, encoding: StreamEncoding, enrolled: Tensor, state: SelectorState | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (B, N, K + 1) for enrolled speakers (B, 256), and the state of the GRU (B, K, E)."""
        evidence = self._evidence(*encoding[:2], enrolled[:, None, None], *encoding[2:4])
        before = None if state is None else state.evidence.flatten(0, 1)[None]
        gathered, memory = self.gru(evidence.flatten(0, 1), before)
        return self._logits(gathered.unflatten(0, evidence.shape[:2])), memory[0].unflatten(0, evidence.shape[:2])

    def select_chunks(self, streams: Tensor, enrolled: Tensor, state: SelectorState) -> tuple[Tensor, SelectorState]:
        """Select in the next chunks of streams (B, K, 2, T); return the weights (B, N, K) and the next state."""
        encoding = self.encode_streams(streams, state)
        logits, evidence = self.select(encoding, enrolled, state)
        weights = torch.softmax(logits, dim=-1)[..., :-1]
        samples = torch.cat([state.tail, streams.mean(dim=2)], dim=-1)
        next_state = SelectorState(
            samples[..., CHUNK - WINDOW :],
            encoding.level[:, :, -1],
            (state.count + weights.shape[1]).clamp_max(_MEMORY),
            *encoding.memory,
            evidence,
            weights[:, -1],
        )
        return weights, next_state

    def initial_state(self, streams: int, batch: int = 1) -> SelectorState:
        """Return the state before the first chunk."""
        config, like = self.config, self.choice.weight
        memory = (config.layers, batch, streams, config.hidden)
        return SelectorState(
            like.new_zeros(batch, streams, WINDOW - CHUNK),
            like.new_zeros(batch, streams, 1),
            like.new_zeros(batch, 1, 1),
            like.new_zeros(memory),
            like.new_zeros(memory),
            like.new_zeros(batch, streams, config.evidence),
            like.new_zeros(batch, streams),
        )

    def step(self, streams: Tensor, enrolled: Tensor, state: SelectorState) -> tuple[Tensor, SelectorState]:
        """Select in one chunk, in plain operations, for export.

        Args:
            streams: (B, K, 2, 128) float32.
            enrolled: (B, 256).
            state: From the last call, or `initial_state`.

        Returns:
            (B, K + 1) logits, and the next state.
        """
        frames = torch.cat([state.tail, streams.mean(dim=2)], dim=-1)
        power = frames[..., WINDOW - CHUNK :].square().mean(-1, keepdim=True)
        count = (state.count + 1.0).clamp_max(_MEMORY)
        level = state.level + (power - state.level) / count
        x, hidden, cell = self.speaker.step(_features(frames, level), state.hidden, state.cell)
        vectors = self.speaker.project(x)
        seen = self._evidence(x, vectors, enrolled[:, None], power, level)
        gathered = gru_step(self.gru, seen, state.evidence)
        logits = self._logits(gathered)
        next_state = SelectorState(
            frames[..., CHUNK:], level, count, hidden, cell, gathered, torch.softmax(logits, dim=-1)[..., :-1]
        )
        return logits, next_state

    def _evidence(self, top: Tensor, vectors: Tensor, enrolled: Tensor, power: Tensor, level: Tensor) -> Tensor:
        """Return the evidence for each stream, (B, K, ..., 3 + hints)."""
        similarity = (vectors * enrolled).sum(-1, keepdim=True)
        power_fraction = power / (power.sum(dim=1, keepdim=True) + _FLOOR)
        loudness = 0.1 * ((power + _FLOOR) / (level + _FLOOR)).log()
        return torch.cat([4.0 * similarity - 2.5, power_fraction, loudness, self.hint(top)], dim=-1)

    def _logits(self, gathered: Tensor) -> Tensor:
        """Return (B, ..., K + 1) of (B, K, ..., E)."""
        streams = self.choice(gathered).squeeze(-1).movedim(1, -1)
        silence = self.nobody(gathered.mean(dim=1))
        return torch.cat([streams, silence], dim=-1)


def weigh(streams: Tensor, logits: Tensor) -> Tensor:
    """Return the selected sound (B, 2, T) of whole streams (B, K, 2, T) by logits (B, N, K + 1)."""
    weights = torch.softmax(logits, dim=-1)[..., :-1]
    return crossfade(streams, torch.zeros_like(weights[:, 0]), weights)


def crossfade(streams: Tensor, before: Tensor, weights: Tensor) -> Tensor:
    """Return the sound (B, 2, T) of streams (B, K, 2, T) by weights (B, N, K).

    Within a chunk each weight changes linearly from its last value, for the first chunk `before` (B, K), to the next.
    """
    chunks = streams.unflatten(-1, (-1, CHUNK))  # (B, K, 2, N, 128)
    slope = torch.arange(1, CHUNK + 1, device=chunks.device, dtype=chunks.dtype) / CHUNK
    starts = torch.cat([before[:, None], weights[:, :-1]], dim=1)
    start, end = (part.transpose(1, 2)[:, :, None, :, None] for part in (starts, weights))
    return (chunks * (start + (end - start) * slope)).sum(dim=1).flatten(-2)


@torch.no_grad()
def _running_level(power: Tensor, state: SelectorState) -> Tensor:
    """Return the mean square at each chunk (B, K, N, 1), over all chunks at first, later over about a second."""
    level, levels, count = state.level, [], float(state.count.flatten()[0])
    for number in range(power.shape[2]):
        level = level + (power[:, :, number] - level) / min(count + number + 1.0, _MEMORY)
        levels.append(level)
    return torch.stack(levels, dim=2)


def _features(frames: Tensor, level: Tensor) -> Tensor:
    """Return features (..., 40) of frames (..., 400), the stream's level normalized to the encoder's."""
    return compressed_mel(frames * (LEVEL / (level + _FLOOR).sqrt()))
