"""One step of recurrent layers in plain operations, for streaming and export; equal to the steps of the layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def gru_step(gru: nn.GRU, x: Tensor, hidden: Tensor) -> Tensor:
    """Return the next hidden state (..., H) of a single-layer GRU for an input (..., C)."""
    weights: list[Tensor] = list(gru.parameters())  # input weights, hidden weights, input bias, hidden bias
    from_input = functional.linear(x, weights[0], weights[2])
    from_hidden = functional.linear(hidden, weights[1], weights[3])
    size = hidden.shape[-1]
    gates = torch.sigmoid(from_input[..., : 2 * size] + from_hidden[..., : 2 * size])
    new = torch.tanh(from_input[..., 2 * size :] + gates[..., :size] * from_hidden[..., 2 * size :])
    return new + gates[..., size:] * (hidden - new)


def lstm_step(lstm: nn.LSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one step of an LSTM.

    Args:
        lstm: Unidirectional, with any number of layers.
        x: (..., C).
        hidden: (layers, ..., H).
        cell: (layers, ..., H).

    Returns:
        The output (..., H), and the next hidden and cell states.
    """
    next_hiddens, next_memories = [], []
    weights: list[Tensor] = list(lstm.parameters())  # four per layer, in the order of a GRU's
    for layer in range(lstm.num_layers):
        to_x, to_hidden, bias_x, bias_hidden = weights[4 * layer : 4 * layer + 4]
        gates = functional.linear(x, to_x, bias_x) + functional.linear(hidden[layer], to_hidden, bias_hidden)
        enter, forget, new, leave = gates.chunk(4, dim=-1)
        next_cell = torch.sigmoid(forget) * cell[layer] + torch.sigmoid(enter) * torch.tanh(new)
        x = torch.sigmoid(leave) * torch.tanh(next_cell)
        next_hiddens.append(x)
        next_memories.append(next_cell)
    return x, torch.stack(next_hiddens), torch.stack(next_memories)
