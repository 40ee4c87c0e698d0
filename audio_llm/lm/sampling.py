"""Which token comes next: the likeliest, one drawn among the likely ones, or the one in their middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from audio_llm.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest; below 1 the likely ones become likelier.
        top_k: Draw among so many at most; 0: among all.
        top_p: Draw among the likeliest that together have this probability.
        median: Take for each number that tokens stand for its median: of all tokens the nearest on average, with the
            least expected distance (minimum Bayes risk). For tokens that stand for every point of a grid of levels, as
            those of finite scalar quantization.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    median: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0.0 or self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"{self}", remedy="give a temperature and top_k of 0 or more, and top_p in 0..1")
        if self.median and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise ConfigError(f"{self}", remedy="give nothing else with the median, which is of all tokens")

    @property
    def is_random(self) -> bool:
        """Whether another seed gives other tokens."""
        return not self.median and self.temperature > 0.0


GREEDY = Sampling(temperature=0.0)
MEDIAN = Sampling(median=True)


def median(probabilities: Tensor, grid: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the token nearest on average for each row: (B,) int64.

    Args:
        probabilities: (B, V) float32.
        grid: (V, L) float32: for each number that a token stands for, 1 at its level and 0 at the others.
        levels: Of every number, L in all; their product is V.
    """
    marginals = probabilities @ grid
    chosen = [
        (part.cumsum(-1) < 0.5).sum(-1).clamp_max(part.shape[-1] - 1) for part in marginals.split(list(levels), -1)
    ]
    target = torch.cat([functional.one_hot(part, size) for part, size in zip(chosen, levels, strict=True)], dim=-1)
    return (target.to(grid.dtype) @ grid.T).argmax(-1)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Return one token for each row; `median` is another function, for here nobody knows what tokens stand for.

    Args:
        logits: (B, V) float32, -inf where nothing may be drawn.
        sampling: How.
        generator: Source of the draws, on the CPU, so that a seed draws alike everywhere.

    Returns:
        (B,) int64.

    Raises:
        ConfigError: The median is wanted.
    """
    if sampling.median:
        raise ConfigError("the median is not drawn", remedy="use `median`")
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


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on all of some numbers, 0 or more each; torch's generator heeds 32 bits of one."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def draw_without_loops(
    logits: Tensor,
    history: Tensor,
    sampling: Sampling,
    window: int = 10,
    most: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one token for each row; what came often of late is drawn anew out of all (repetition-aware sampling).

    Where the likeliest tokens alone are drawn from, a model can be caught in a loop; drawing from all leads out of it
    (VALL-E 2, Chen et al. 2024). Silence, whose tokens may repeat, is not forbidden.

    Args:
        logits: (B, V) float32, -inf where nothing may be drawn.
        history: (B, T) int64, what was drawn before.
        sampling: How, at first.
        window: How many of the last tokens count.
        most: How often a token may have come in them.
        generator: Source of the draws, on the CPU.
    """
    drawn = draw(logits, sampling, generator)
    if not sampling.is_random:
        return drawn
    often = (history[:, -window:] == drawn[:, None]).sum(-1) > most if history.shape[1] else drawn < 0
    if bool(often.any()):
        drawn = torch.where(often, draw(logits, Sampling(), generator), drawn)
    return drawn
