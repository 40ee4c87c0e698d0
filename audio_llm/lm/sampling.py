"""Choice of the next token: greedy, sampled, or the median."""

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
        temperature: 0 takes the likeliest token; below 1 sharpens the distribution.
        top_k: Sample from at most this many tokens; 0: from all.
        top_p: Sample from the likeliest tokens that together have this probability.
        median: Take the median of every coordinate that tokens encode, which minimizes the expected distance (minimum
            Bayes risk). For tokens that encode every point of a grid of levels, as in finite scalar quantization.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    median: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0.0 or self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"{self}", remedy="give a temperature and top_k of 0 or more, and top_p in 0..1")
        if self.median and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise ConfigError(f"{self}", remedy="leave the other options at their defaults with the median")

    @property
    def is_random(self) -> bool:
        """Whether the tokens depend on the seed."""
        return not self.median and self.temperature > 0.0


GREEDY = Sampling(temperature=0.0)
MEDIAN = Sampling(median=True)


def median(probabilities: Tensor, grid: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the token with the median of each coordinate for each row: (B,) int64.

    Args:
        probabilities: (B, V) float32.
        grid: (V, L) float32, one-hot levels of each coordinate of each token, concatenated.
        levels: Number of levels of each coordinate; their sum is L, their product V.
    """
    marginals = probabilities @ grid
    chosen = [
        (part.cumsum(-1) < 0.5).sum(-1).clamp_max(part.shape[-1] - 1) for part in marginals.split(list(levels), -1)
    ]
    target = torch.cat([functional.one_hot(part, size) for part, size in zip(chosen, levels, strict=True)], dim=-1)
    return (target.to(grid.dtype) @ grid.T).argmax(-1)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Return one token for each row; the median needs the grid, see `median`.

    Args:
        logits: (B, V) float32, -inf for tokens that are not allowed.
        sampling: Sampling options.
        generator: Source of the draws, on the CPU, so that a seed gives the same draws on every device.

    Returns:
        (B,) int64.

    Raises:
        ConfigError: `sampling.median` is set.
    """
    if sampling.median:
        raise ConfigError("the median is not sampled", remedy="use `median`")
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the likelier tokens have enough probability
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on all the given numbers, each 0 or more; torch's generator uses 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def draw_without_loops(
    logits: Tensor,
    history: Tensor,
    sampling: Sampling,
    window: int = 10,
    most: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one token for each row; frequent recent tokens are resampled from all (repetition-aware sampling).

    Sampling from the likeliest tokens only can end in a loop; sampling from all tokens leaves it (VALL-E 2, Chen et
    al. 2024). Silence, whose tokens may repeat, is still possible.

    Args:
        logits: (B, V) float32, -inf for tokens that are not allowed.
        history: (B, T) int64, tokens drawn before.
        sampling: Options of the first draw.
        window: Number of last tokens in which repetitions are counted.
        most: Maximum occurrences of a token in the window.
        generator: Source of the draws, on the CPU.
    """
    drawn = draw(logits, sampling, generator)
    if not sampling.is_random:
        return drawn
    often = (history[:, -window:] == drawn[:, None]).sum(-1) > most if history.shape[1] else drawn < 0
    if bool(often.any()):
        drawn = torch.where(often, draw(logits, Sampling(), generator), drawn)
    return drawn
