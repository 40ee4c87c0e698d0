"""What every quantizer gives.

A quantizer is a torch module with `size`, how many codes there are, and `width`, D; it is called with vectors (B, N, D)
and a mask (B, N) bool, True where valid, and `decode` returns the values (..., D) of codes (...) int64.
"""

from __future__ import annotations

from typing import NamedTuple

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
