"""Gated noise attention: a decoder language model attends to the noise embedding of a list while it writes.

Every tuned layer has learned slots that the noise embedding shifts; the layer's input attends to them, and the
result is added to the output of the layer's self-attention through a gate that starts at zero (RobustGER, eq. 9-13).
It is attached by hooks, so it works with any decoder and needs no change to its cache or positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audio_llm.errors import ModelFormatError

_ATTENTION_NAMES = ("self_attn", "attn", "self_attention", "attention")


@dataclass(frozen=True)
class AdapterSettings:
    """How the noise embedding enters the language model.

    Attributes:
        form: `paper`: one linear map of the noise for all layers, subtracted from the slots before keys and values.
            `reference-code`: two maps per layer, one added to the keys and one to the values, each scaled to unit
            root mean square and gated, so the amount of noise is lost (the authors' release).
        first_layer: Index of the first layer that is tuned: 1 in the paper, 2 in the authors' release.
        width: Width of queries, keys and values, over all heads.
        heads: Attention heads.
        noise_gate: Initial value of the gate of the noise on the slots in `paper`. With both gates at zero the map of
            the noise would have no gradient.
    """

    form: Literal["paper", "reference-code"] = "paper"
    first_layer: int = 1
    width: int = 64
    heads: int = 4
    noise_gate: float = 0.1


class NoiseAttention(nn.Module):
    """The noise attention of one layer.

    Args:
        hidden: Width D of the language model.
        slots: Number of slots U, equal to the rows of the noise embedding.
        noise_width: Width d of the noise embedding.
        settings: See `AdapterSettings`.
    """

    def __init__(self, hidden: int, slots: int, noise_width: int, settings: AdapterSettings) -> None:
        super().__init__()
        self.heads, self.width = settings.heads, settings.width
        self.slots = nn.Parameter(torch.randn(slots, hidden) * 0.02)
        self.query = nn.Linear(hidden, settings.width, bias=False)
        self.key = nn.Linear(hidden, settings.width, bias=False)
        self.value = nn.Linear(hidden, settings.width, bias=False)
        self.output = nn.Linear(settings.width, hidden, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        self.by_code = settings.form == "reference-code"
        if self.by_code:
            self.noise_key = nn.Linear(noise_width, settings.width, bias=False)
            self.noise_value = nn.Linear(noise_width, settings.width)
            self.key_gate = nn.Parameter(torch.zeros(slots, settings.width))
            self.value_gate = nn.Parameter(torch.zeros(slots, settings.width))
        else:
            self.noise_gate = nn.Parameter(torch.full((slots, 1), settings.noise_gate))

    def keys_and_values(self, noise: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, (B, U, width) each; they are constant for a whole text.

        Args:
            noise: (B, U, d) noise embedding.
            shift: (B, U, D) the noise embedding mapped to the width of the model (`paper` only).
        """
        if self.by_code:  # the authors add better minus worse, which is the negative of our embedding
            key = self.key(self.slots) + self.key_gate * _unit(self.noise_key(-noise))
            return key, self.value(self.slots) + self.value_gate * _unit(self.noise_value(-noise))
        slots = self.slots - self.noise_gate * shift
        return self.key(slots), self.value(slots)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """Return what is added to the attention's output.

        Args:
            hidden: (B, T, D) input of the attention.
            keys, values: (B, U, width) from `keys_and_values`.
            valid: (B, U) bool, True for rows of the noise embedding that exist.

        Returns:
            (B, T, D).
        """
        query, keys, values = (self._split(x) for x in (self.query(hidden.to(keys.dtype)), keys, values))
        blocked = torch.zeros(valid.shape, dtype=keys.dtype, device=keys.device).masked_fill(~valid, -1e4)
        attended = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=blocked[:, None, None])
        merged = attended.transpose(1, 2).reshape(*hidden.shape[:2], self.width)
        return torch.tanh(self.gate) * self.output(merged)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, width) to (B, heads, L, width / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class NoiseAdapter(nn.Module):
    """The adapter of a whole language model.

    Args:
        hidden: Width D of the language model.
        layers: Number of its layers.
        slots: Rows U of the noise embedding.
        noise_width: Width d of the noise embedding.
        settings: See `AdapterSettings`.
    """

    def __init__(self, hidden: int, layers: int, slots: int, noise_width: int, settings: AdapterSettings) -> None:
        super().__init__()
        self.first_layer, self.slots, self.noise_width = settings.first_layer, slots, noise_width
        self.tuned_width = hidden if settings.form == "paper" else settings.width  # of what `tuned` returns
        count = max(0, layers - settings.first_layer)
        self.layers = nn.ModuleList(NoiseAttention(hidden, slots, noise_width, settings) for _ in range(count))
        self.map = nn.Linear(noise_width, hidden, bias=False) if settings.form == "paper" else None
        self._current: list[tuple[Tensor, Tensor]] | None = None
        self._valid: Tensor | None = None

    def tuned(self, noise: Tensor) -> list[Tensor]:
        """Return what the noise embedding becomes inside the model, for distillation: (B, U, width) each."""
        if self.map is not None:
            return [self.map(noise)]
        return [part(noise) for layer in self.layers for part in (layer.noise_key, layer.noise_value)]  # type: ignore[operator, union-attr]

    @contextlib.contextmanager
    def condition(self, noise: Tensor | None, valid: Tensor | None = None) -> Iterator[None]:
        """Condition the model on a noise embedding inside the block; None: the model runs without adapter.

        Args:
            noise: (B, U, d), one for each text of the batch.
            valid: (B, U) bool; a text without any valid row is not changed.
        """
        if noise is not None and len(self.layers):
            shift = self.map(noise) if self.map is not None else noise
            self._current = [layer.keys_and_values(noise, shift) for layer in self.layers]  # type: ignore[operator]
            self._valid = valid if valid is not None else noise.new_ones(noise.shape[:2], dtype=torch.bool)
        try:
            yield
        finally:
            self._current = self._valid = None

    def select(self, rows: Tensor) -> None:
        """Inside `condition`: select texts of the batch, in this order, as a beam search does."""
        if self._current is not None and self._valid is not None:
            self._current = [(keys[rows], values[rows]) for keys, values in self._current]
            self._valid = self._valid[rows]

    def attach(self, model: nn.Module) -> list[Any]:
        """Hook into a language model; return the handles, whose `remove()` takes the adapter out again."""
        modules = attention_modules(model)
        return [
            module.register_forward_hook(self._hook(number), with_kwargs=True)
            for number, module in enumerate(modules[self.first_layer :])
        ]

    def _hook(self, number: int) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self._current is None or self._valid is None:
                return output
            hidden = args[0] if args else kwargs["hidden_states"]
            added = self.layers[number](hidden, *self._current[number], self._valid)
            added = added * self._valid.any(dim=1)[:, None, None]
            if isinstance(output, tuple):
                return (output[0] + added.to(output[0].dtype), *output[1:])
            return output + added.to(output.dtype)

        return add


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the self-attention of every decoder layer, first to last.

    Raises:
        ModelFormatError: The model's layers are not recognized.
    """
    count = int(getattr(model.config, "num_hidden_layers", 0))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            attentions = [getattr(layer, name) for layer in module for name in _ATTENTION_NAMES if hasattr(layer, name)]
            if count and len(attentions) == count:
                return attentions
    kind = type(model).__name__
    raise ModelFormatError(f"the decoder layers of {kind} are not recognized", remedy="use a decoder-only model")


def _unit(x: Tensor) -> Tensor:
    """Scale to root mean square 1 over the last axis."""
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)
