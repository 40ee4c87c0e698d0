"""An exponential moving average of a network's weights, which often validates better than the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


class WeightMean:
    """The exponential moving average of the weights of a network in training.

    Args:
        model: The network.
        decay: Decay per step, such as 0.999; lower during the first steps, so that the initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self._steps = model, decay, 0
        self._mean = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        self._steps += 1
        decay = min(self._decay, self._steps / (9.0 + self._steps))
        current = [parameter.detach() for _, parameter in self._model.named_parameters()]
        torch._foreach_lerp_(list(self._mean.values()), current, 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the network's weights by the average within the context."""
        current = {name: parameter.detach().clone() for name, parameter in self._model.named_parameters()}
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(current)

    def save(self, path: Path) -> None:
        """Write the average and its number of steps as safetensors."""
        from safetensors.torch import save_file

        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._mean.items()}
        save_file(tensors, path, metadata={"steps": str(self._steps)})

    def load(self, path: Path) -> None:
        """Load the result of `save`; without such a file the average starts from the current weights."""
        from safetensors import safe_open

        if not path.exists():
            self._mean = {name: tensor.detach().clone() for name, tensor in self._model.named_parameters()}
            return
        with safe_open(path, "pt") as file:
            self._steps = int(file.metadata()["steps"])
            for name, tensor in self._mean.items():
                tensor.copy_(file.get_tensor(name))

    @torch.no_grad()
    def _copy(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(tensors[name])
