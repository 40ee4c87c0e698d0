"""What every quantizer gives."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Quantized(NamedTuple):
    """Vectors cut to a codebook.

    Attributes:
        values: (B, N, D) float32, what the codes stand for; gradients pass straight through.
        codes: (B, N) int64.
        loss: Scalar that belongs in the training loss, 0 where there is none.
        bounded: (B, N, D) float32, the values before they were cut.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor
    bounded: Tensor


class Quantizer(Protocol):
    """A torch module that cuts vectors to a codebook.

    Attributes:
        size: How many codes there are.
        width: D, of a vector.
    """

    size: int
    width: int

    def __call__(self, x: Tensor, mask: Tensor) -> Quantized:
        """Cut vectors (B, N, D) float32; mask (B, N) bool, True where valid."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values (..., D) of codes (...) int64."""
        ...
