"""The streaming network as ONNX: one chunk, the condition and named states in; one chunk and states out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from audio_llm.tse.frames import CHUNK
from audio_llm.tse.gridnet import GridNet, GridNetState
from audio_llm.tse.selector import SelectorState, crossfade
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.target_speaker import TargetSpeakerNetwork, TargetSpeakerState
from audio_llm_export.extractor_step import EARS, ExtractorStep
from audio_llm_export.graph import to_onnx

_LAYERED = ("keys", "values", "hidden", "cell")  # states that hold one tensor for each layer or block

S = TypeVar("S", SelectorState, GridNetState)
SOUND, INPUT, NEXT = "sound", "chunk", "next_"


@dataclass(frozen=True)
class Stream:
    """A network that runs chunk by chunk.

    Attributes:
        module: Takes a chunk (1, 2, 128), the condition (1, width) and each state; returns the output (1, 2, 128) and
            each updated state.
        model: The trained network, with `initial_state` and `step`.
        states: Converts a state of the model to the module's states by name.
        condition: Name of the input for the target speaker's vector.
        width: Size of this vector.
    """

    module: nn.Module
    model: Any
    states: Callable[[Any], dict[str, Tensor]]
    condition: str
    width: int

    def initial(self) -> dict[str, Tensor]:
        """Return the states before the first chunk: zeros."""
        return self.states(self.model.initial_state())


def target_speaker_stream(hearing: TargetSpeakerNetwork) -> Stream:
    """Return the stream of a network with separator and speaker selection."""
    module = _TargetSpeakerStep(hearing)
    return Stream(module, hearing, module.states, "enrolled", 256)


def gridnet_stream(gridnet: GridNet) -> Stream:
    """Return the stream of the reference network."""
    module = _GridNetStep(gridnet)
    return Stream(module, gridnet, _by_layer, "embedding", gridnet.config.embedding)


def write_stream(stream: Stream, path: Path) -> None:
    """Write the graph of one step."""
    states = stream.initial()
    examples = (torch.zeros(1, EARS, CHUNK), torch.ones(1, stream.width), *states.values())
    to_onnx(
        stream.module,
        examples,
        path,
        [INPUT, stream.condition, *states],
        [SOUND, *(f"{NEXT}{name}" for name in states)],
    )


class _TargetSpeakerStep(nn.Module):
    def __init__(self, hearing: TargetSpeakerNetwork) -> None:
        super().__init__()
        self.extractor, self.selector = ExtractorStep(hearing.extractor), copy.deepcopy(hearing.selector)
        self.selector.speaker = _LayerByLayer(hearing.selector.speaker)  # type: ignore[assignment]
        self.extractor_states = len(self.extractor.states(hearing.extractor.initial_state()))  # their number

    def states(self, state: TargetSpeakerState) -> dict[str, Tensor]:
        extractor = {f"extractor_{name}": tensor for name, tensor in self.extractor.states(state.extractor).items()}
        return extractor | {f"selector_{name}": tensor for name, tensor in _by_layer(state.selector).items()}

    def forward(self, chunk: Tensor, enrolled: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        sound, extractor = self.extractor(chunk, None, *states[: self.extractor_states])
        streams = sound.view(1, -1, EARS, CHUNK)
        before = _from_layers(SelectorState, states[self.extractor_states :], self.selector.config.layers)
        _, after = self.selector.step(streams, enrolled, before)
        return crossfade(streams, before.weights, after.weights[:, None]), *extractor, *_by_layer(after).values()


class _LayerByLayer(nn.Module):
    """A speaker encoder whose step has a separate operation and two separate states for each layer."""

    def __init__(self, speaker: SpeakerEncoder) -> None:
        super().__init__()
        self.speaker, self.layers = speaker, nn.ModuleList()
        lstm = speaker.lstm
        for number in range(lstm.num_layers):
            layer = nn.LSTM(lstm.hidden_size if number else lstm.input_size, lstm.hidden_size)
            layer.load_state_dict({name: getattr(lstm, f"{name[:-1]}{number}") for name in layer.state_dict()})
            self.layers.append(layer)

    def project(self, top: Tensor) -> Tensor:
        return self.speaker.project(top)

    def step(
        self, x: Tensor, hidden: Sequence[Tensor], cell: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Same as `SpeakerEncoder.step` for x (1, K, 40) and states (1, K, H) of each layer."""
        hidden_states, cell_states = [], []
        for layer, layer_hidden, layer_cell in zip(self.layers, hidden, cell, strict=True):
            _, (x, new_cell) = layer(x, (layer_hidden, layer_cell))
            hidden_states.append(x)
            cell_states.append(new_cell)
        return x, hidden_states, cell_states


class _GridNetStep(nn.Module):
    def __init__(self, gridnet: GridNet) -> None:
        super().__init__()
        self.gridnet = gridnet

    def forward(self, chunk: Tensor, embedding: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        before = _from_layers(GridNetState, states, self.gridnet.config.blocks)
        sound, after = self.gridnet.step(chunk, embedding, before)
        return sound[:, 0], *_by_layer(after).values()


def _by_layer(state: SelectorState | GridNetState) -> dict[str, Tensor]:
    """Return the tensors of a state by name, with layered ones split into one tensor per layer."""
    tensors: dict[str, Tensor] = {}
    for name, part in state.tensors().items():
        layers = {f"{name}_{number}": part[number] for number in range(len(part))}
        tensors |= layers if name in _LAYERED else {name: part}
    return tensors


def _from_layers(cls: type[S], parts: Sequence[Tensor], layers: int) -> S:
    """Return the state from the tensors of `_by_layer`, with the layers in lists."""
    rest = list(parts)
    values: dict[str, Any] = {}
    for part in fields(cls):
        count = layers if part.name in _LAYERED else 1
        values[part.name] = rest[:count] if part.name in _LAYERED else rest[0]
        rest = rest[count:]
    return cls(**values)
