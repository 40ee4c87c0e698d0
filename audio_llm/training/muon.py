"""Muon: orthogonalized momentum for the matrices inside a network, AdamW for the rest (Jordan et al. 2024).

The update of a matrix is scaled to the size of AdamW's (Liu et al. 2025), so that both share one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LEAST = 16  # rows and columns that a matrix has at least
_MOMENTUM = 0.95
_ADAM_SIZE = 0.2  # root mean square of an AdamW update, divided by the learning rate
_QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3 and x^5, which drive singular values towards 1
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """The optimizer.

    Args:
        model: The network; its parameters that require gradients are optimized. Each matrix of a stack (..., R, C) is
            orthogonalized by itself.
        apart: Parameters whose names contain one of these strings are left to AdamW, such as first and last layers.
        lr: Learning rate.
        betas: AdamW's betas.
        weight_decay: Weight decay of matrices; other parameters have none.
    """

    def __init__(
        self, model: nn.Module, apart: Sequence[str], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        chosen = {name for name, parameter in named if _is_matrix(name, parameter, apart)}
        rest = [parameter for name, parameter in named if name not in chosen]
        super().__init__([{"params": rest, "weight_decay": 0.0}], lr=lr, betas=betas)
        self._matrices = [parameter for name, parameter in named if name in chosen]
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step with the learning rate of the first parameter group."""
        value = super().step(closure)
        rate = self.param_groups[0]["lr"]
        for matrix in self._matrices:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                state["exp_avg"] = torch.zeros_like(matrix)
            mean = state["exp_avg"].lerp_(matrix.grad, 1.0 - _MOMENTUM)
            update = orthogonal(matrix.grad.lerp(mean, _MOMENTUM))
            size = _ADAM_SIZE * max(matrix.shape[-2:]) ** 0.5
            matrix.mul_(1.0 - rate * self._weight_decay).add_(update, alpha=-rate * size)
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        super().zero_grad(set_to_none)
        for matrix in self._matrices:
            matrix.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix (..., R, C) with the same singular vectors, and singular values between 0.7 and 1.2."""
    a, b, c = _QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _is_matrix(name: str, parameter: Tensor, apart: Sequence[str]) -> bool:
    if parameter.ndim < 2 or "bias" in name or any(part in name for part in apart):
        return False
    return min(parameter.shape[-2:]) >= _LEAST
