"""The result of a quantizer.

A quantizer is a torch module with `size`, the number of codes, and `width`, the dimension D of a vector. It is called
with vectors (B, N, D) and a mask (B, N) bool, True where valid; `decode` returns the values (..., D) of codes (...)
int64.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Quantized(NamedTuple):
    """Quantized vectors.

    Attributes:
        values: (B, N, D) float32, the vectors of the codes, with straight-through gradients.
        codes: (B, N) int64.
        loss: Scalar to add to the training loss; 0 for a quantizer without a loss.
        bounded: (B, N, D) float32, the values before quantization.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor
    bounded: Tensor
