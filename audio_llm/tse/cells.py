"""One step of recurrent layers in plain operations, for chunks and for export; equal to the layers' own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def gru_step(gru: nn.GRU, x: Tensor, hidden: Tensor) -> Tensor:
    """Return the next memory (..., H) of a GRU of one layer for an input (..., C)."""
    weights: list[Tensor] = list(gru.parameters())  # to the input, to the memory, and the biases of both
    own = functional.linear(x, weights[0], weights[2])
    old = functional.linear(hidden, weights[1], weights[3])
    size = hidden.shape[-1]
    gates = torch.sigmoid(own[..., : 2 * size] + old[..., : 2 * size])
    new = torch.tanh(own[..., 2 * size :] + gates[..., :size] * old[..., 2 * size :])
    return new + gates[..., size:] * (hidden - new)


def lstm_step(lstm: nn.LSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do a step of an LSTM.

    Args:
        lstm: Of any number of layers, in one direction.
        x: (..., C).
        hidden: (layers, ..., H).
        cell: (layers, ..., H).

    Returns:
        The output (..., H), and both memories anew.
    """
    hiddens, cells = [], []
    weights: list[Tensor] = list(lstm.parameters())  # four of each layer, as a GRU's
    for layer in range(lstm.num_layers):
        to_x, to_hidden, bias_x, bias_hidden = weights[4 * layer : 4 * layer + 4]
        gates = functional.linear(x, to_x, bias_x) + functional.linear(hidden[layer], to_hidden, bias_hidden)
        enter, forget, new, leave = gates.chunk(4, dim=-1)
        kept = torch.sigmoid(forget) * cell[layer] + torch.sigmoid(enter) * torch.tanh(new)
        x = torch.sigmoid(leave) * torch.tanh(kept)
        hiddens.append(x)
        cells.append(kept)
    return x, torch.stack(hiddens), torch.stack(cells)
