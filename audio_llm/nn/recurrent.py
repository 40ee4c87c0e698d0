"""A gated linear recurrence: its gates depend on the input only, so that a step over time needs no matrix product.

    h[t] = f[t] h[t-1] + (1 - f[t]) c[t]

where f = 1 - sigmoid(z), and z, c and an output gate are linear in the input (Qin et al. 2023, "Hierarchically gated
recurrent neural network"). Processing a whole sequence or single steps gives the same result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MEMORY_FRAMES = (2.0, 500.0)  # shortest and longest memory of the units at the start of a training, in frames


class LinearRecurrence(nn.Module):
    """The layer, in three functions, so that a caller can compile the parts around the scan.

    Args:
        channels: Width of input and output.
        hidden: Number of recurrent units.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(channels, 3 * hidden)
        self.out = nn.Linear(hidden, channels)
        with torch.no_grad():
            shortest, longest = (torch.tensor(frames).log10() for frames in _MEMORY_FRAMES)
            self.input.bias[:hidden] = -torch.logspace(float(shortest), float(longest), hidden).log()

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gates of the recurrence.

        Args:
            x: Input (..., C).

        Returns:
            Forget factors and inputs of the recurrence, (..., H) float32, and the output gate (..., H).
        """
        write, candidate, gate = self.input(x).split(self.hidden, dim=-1)
        write = torch.sigmoid(write.float())  # 1 - f, because floats are more precise near 0
        return 1.0 - write, write * candidate.float(), gate

    @staticmethod
    def scan(forget: Tensor, entry: Tensor, state: Tensor) -> Tensor:
        """Return all states (N, R, H), given forget factors and inputs (N, R, H) and the previous state (R, H)."""
        states: Tensor = _Scan.apply(forget, entry, state)
        return states

    def output(self, states: Tensor, gate: Tensor) -> Tensor:
        """Return the layer's output (..., C), given states and output gate (..., H)."""
        out: Tensor = self.out(states.to(gate.dtype) * functional.silu(gate))
        return out

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (N, R, C) and the last state (R, H), given the input (N, R, C), time first, and a state."""
        forget, entry, gate = self.gates(x)
        states = self.scan(forget, entry, state)
        return self.output(states, gate), states[-1]


class _Scan(torch.autograd.Function):
    """h[t] = a[t] h[t-1] + b[t] along the first axis; the gradient is the same recurrence in reverse."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
        h = b.clone(memory_format=torch.contiguous_format)
        h[0].addcmul_(a[0], state)
        _scan(a[1:], h)
        ctx.save_for_backward(a, h, state)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, state = ctx.saved_tensors
        g = gradients[0].clone(memory_format=torch.contiguous_format)
        _scan(a[1:].flip(0) if g.is_cuda else a[1:], g, backward=True)
        to_a = torch.empty_like(g)
        torch.mul(g[0], state, out=to_a[0])
        torch.mul(g[1:], h[:-1], out=to_a[1:])
        return to_a, g, a[0] * g[0]


def _scan(a: Tensor, h: Tensor, backward: bool = False) -> None:
    """Add to each row of h (N, R, H) the previous (if backward: the next) row times a (N - 1, R, H), row by row.

    On a CPU this is a loop with one fused operation per step; on a GPU, where launching an operation costs more than
    running it, it takes log2(N) passes over all rows (Hillis and Steele 1986).
    """
    if h.is_cuda:
        rows = h.flip(0) if backward else h.clone()
        factors = torch.cat([torch.zeros_like(rows[:1]), a])
        distance = 1
        while distance < len(rows):
            rows = torch.cat([rows[:distance], rows[distance:] + factors[distance:] * rows[:-distance]])
            factors = torch.cat([factors[:distance], factors[distance:] * factors[:-distance]])
            distance *= 2
        h.copy_(rows.flip(0) if backward else rows)
        return
    rows_of_h, rows_of_a = h.unbind(0), a.unbind(0)
    if backward:
        for t in range(len(rows_of_h) - 2, -1, -1):
            rows_of_h[t].addcmul_(rows_of_a[t], rows_of_h[t + 1])
    else:
        for t in range(1, len(rows_of_h)):
            rows_of_h[t].addcmul_(rows_of_a[t - 1], rows_of_h[t - 1])
