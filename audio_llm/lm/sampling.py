"""Which token comes next: the likeliest, or one drawn among the likely ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audio_llm.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest; below 1 the likely ones become likelier.
        top_k: Draw among so many at most; 0: among all.
        top_p: Draw among the likeliest that together have this probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0.0 or self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"{self}", remedy="give a temperature and top_k of 0 or more, and top_p in 0..1")


GREEDY = Sampling(temperature=0.0)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Return one token for each row.

    Args:
        logits: (B, V) float32, -inf where nothing may be drawn.
        sampling: How.
        generator: Source of the draws, on the CPU, so that a seed draws alike everywhere.

    Returns:
        (B,) int64.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # what is likelier has enough already
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)
