"""One vocabulary for several kinds of tokens: special tokens first, then a disjoint range for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audio_llm.errors import ConfigError, UsageError

PAD, BOS, EOS, SEP = 0, 1, 2, 3
SPECIALS = 4  # number of special tokens before the ranges


class Vocabulary:
    """Token ids of all ranges.

    Args:
        sizes: Name and number of tokens of each range, in order.

    Attributes:
        size: Number of all tokens.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        if not sizes or min(sizes.values()) < 1:
            raise ConfigError(f"ranges of tokens: {dict(sizes)}", remedy="give each at least one token")
        self._starts: dict[str, int] = {}
        self.size = SPECIALS
        for name, count in sizes.items():
            self._starts[name] = self.size
            self.size += count
        self._sizes = dict(sizes)

    def span(self, name: str) -> range:
        """Return the ids of a range."""
        if name not in self._sizes:
            raise UsageError(f"no range of tokens is named {name!r}", remedy=f"use {', '.join(self._sizes)}")
        return range(self._starts[name], self._starts[name] + self._sizes[name])

    def encode(self, name: str, tokens: Tensor) -> Tensor:
        """Return the ids of a range's tokens, int64 of any shape.

        Raises:
            UsageError: A token is outside of the range.
        """
        span = self.span(name)
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < len(span)):
            remedy = f"there are {len(span)}: the tokenizer or codec is another one"
            raise UsageError(f"a token of {name!r} is {int(tokens.max())}", remedy=remedy)
        return tokens + span.start

    def decode(self, name: str, ids: Tensor) -> Tensor:
        """Return the tokens of a range's ids, int64 of any shape."""
        return ids - self.span(name).start

    def allowed(self, names: Sequence[str], specials: Sequence[int] = ()) -> Tensor:
        """Return (size,) bool: True at the ids of some ranges and at some special ones."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        for name in names:
            span = self.span(name)
            mask[span.start : span.stop] = True
        mask[list(specials)] = True
        return mask
