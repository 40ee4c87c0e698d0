"""The codebook reorganization of GenSE's SimCodec: two small codebooks become one large codebook.

Stage 1 quantizes each half of the channels with a separate codebook and counts how often each entry is used.
`reorganize` takes the most used entries of the two and forms all pairs: one codebook of full vectors, with which
training continues. The large codebook therefore starts without dead entries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audio_llm.errors import UsageError
from audio_llm.quantizers.base import Quantized

_COMMIT = 0.25
_APART = 0.1  # weight of the loss that pushes the codebook's entries apart
_SHARPNESS = 3.0  # factor on the products of entries in that loss
_APART_ROWS = 1024  # number of entries compared at a time


class GradientVQ(nn.Module):
    """Vector quantization by distance with a codebook learned by gradient, as in SimCodec.

    Args:
        size: Number of codes.
        width: Dimension of a vector.
    """

    uses: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.codebook = nn.Parameter(torch.randn(size, width) / width**0.5)
        self.register_buffer("uses", torch.zeros(size, dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor) -> Quantized:
        """Quantize vectors (B, N, D) float32; mask (B, N) bool, True where valid."""
        x = x.float()
        with (
            torch.no_grad(),
            torch.autocast(x.device.type, enabled=False),
        ):  # half precision can find other nearest codes
            flat = x.flatten(0, 1)
            codes = (self.codebook.square().sum(-1) - 2.0 * flat @ self.codebook.T).argmin(-1).view(x.shape[:2])
        quantized = self.codebook[codes]
        if self.training:
            self.uses += torch.bincount(codes[mask], minlength=self.size)
        loss = x.new_zeros(())
        if bool(mask.any()):
            loss = (x.detach() - quantized)[mask].square().mean() + _COMMIT * (x - quantized.detach())[
                mask
            ].square().mean()
        if self.training:
            loss = loss + _APART * self._alike()
        return Quantized(x + (quantized - x).detach(), codes, loss, x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values (..., D) of codes (...) int64."""
        return self.codebook[codes]

    def most_used(self, count: int) -> Tensor:
        """Return the most used codes: (count,) int64, the most used first."""
        return self.uses.argsort(descending=True, stable=True)[:count]

    def _alike(self) -> Tensor:
        """Return the cross-entropy of identifying each entry by its products with all entries."""
        rows: Tensor = self.codebook
        if self.size > _APART_ROWS:
            rows = rows[torch.randperm(self.size, device=rows.device)[:_APART_ROWS]]
        target = torch.arange(len(rows), device=rows.device)
        return nn.functional.cross_entropy(_SHARPNESS * rows @ rows.T, target)


class GroupVQ(nn.Module):
    """Stage 1: each half of the channels is quantized by itself; a code is a pair.

    Args:
        sizes: Number of codes of the first and of the second half.
        width: Dimension of a whole vector, even.
    """

    def __init__(self, sizes: tuple[int, int], width: int) -> None:
        super().__init__()
        self.size, self.width = sizes[0] * sizes[1], width
        self.first, self.second = (GradientVQ(size, width // 2) for size in sizes)

    def forward(self, x: Tensor, mask: Tensor) -> Quantized:
        """Quantize vectors (B, N, D) float32; mask (B, N) bool, True where valid."""
        first, second = (half(part, mask) for half, part in zip(self._halves, x.chunk(2, dim=-1), strict=True))
        values = torch.cat([first.values, second.values], dim=-1)
        codes = first.codes * self.second.size + second.codes
        return Quantized(values, codes, first.loss + second.loss, x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values (..., D) of codes (...) int64."""
        size = self.second.size
        return torch.cat([self.first.decode(codes // size), self.second.decode(codes % size)], dim=-1)

    @property
    def _halves(self) -> tuple[GradientVQ, GradientVQ]:
        return self.first, self.second


def reorganize(groups: GroupVQ, first: int, second: int) -> GradientVQ:
    """Return the quantizer of stage 2: all pairs of the most used codes of the two halves.

    Args:
        groups: The quantizer trained in stage 1.
        first: Number of codes to take from the first half.
        second: Number of codes to take from the second half. Code i x second + j of the result is the pair (i, j),
            where i and j rank the codes by use.

    Raises:
        UsageError: A half has fewer codes.
    """
    halves = ((groups.first, first), (groups.second, second))
    if any(count > half.size for half, count in halves):
        remedy = "give at most the number of codes of each half"
        raise UsageError(f"{first} and {second} codes of {groups.first.size} and {groups.second.size}", remedy=remedy)
    chosen = [half.codebook.detach()[half.most_used(count)] for half, count in halves]
    single = GradientVQ(first * second, groups.width).to(chosen[0].device)
    with torch.no_grad():
        rows = [chosen[0].repeat_interleave(second, dim=0), chosen[1].repeat(first, 1)]
        single.codebook.copy_(torch.cat(rows, dim=-1))
    return single
