"""Vector quantization by cosine (Yu et al. 2022): unit vectors, moving averages as codes, restarts of dead codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.quantizers.base import Quantized

_DECAY = 0.99  # decay of the moving averages
_COMMIT = 0.25  # weight of the distance between the input and its code
_DEAD = 0.02  # a code used less often than this per batch, on average, is restarted
_RESTART_EVERY = 50  # batches between restarts


class CosineVQ(nn.Module):
    """The quantizer.

    Args:
        size: Number of codes.
        width: Dimension of a vector.
    """

    codebook: Tensor
    sums: Tensor
    uses: Tensor
    batches: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.width = size, width
        start = functional.normalize(torch.randn(size, width), dim=-1)
        self.register_buffer("codebook", start)
        self.register_buffer("sums", start.clone())
        self.register_buffer("uses", torch.ones(size))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor) -> Quantized:
        """Quantize vectors (B, N, D) float32; mask (B, N) bool, True where valid."""
        unit = functional.normalize(x.float(), dim=-1)
        with (
            torch.no_grad(),
            torch.autocast(x.device.type, enabled=False),
        ):  # half precision can find other nearest codes
            codes = (unit @ self.codebook.T).argmax(-1)
        quantized = self.codebook[codes]
        if self.training and bool(mask.any()):
            self._follow(unit[mask].detach(), codes[mask])
        error = (unit - quantized.detach()).square().sum(-1)
        loss = _COMMIT * error[mask].mean() if bool(mask.any()) else error.new_zeros(())
        return Quantized(unit + (quantized - unit).detach(), codes, loss, unit)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values (..., D) of codes (...) int64."""
        return self.codebook[codes]

    @torch.no_grad()
    def _follow(self, unit: Tensor, codes: Tensor) -> None:
        """Move the codes towards their vectors, and restart unused codes at random vectors of this batch."""
        uses = torch.bincount(codes, minlength=self.size).to(unit)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, unit)
        self.batches += 1
        if int(self.batches) == 1:  # the first vectors initialize the codes better than random directions
            rows = torch.randint(len(unit), (self.size,), device=unit.device)
            noise = 0.05 * torch.randn(self.size, self.width, device=unit.device)
            self.sums.copy_(functional.normalize(unit[rows] + noise, dim=-1))
        else:
            self.uses.lerp_(uses, 1.0 - _DECAY)
            self.sums.lerp_(sums, 1.0 - _DECAY)
        if int(self.batches) % _RESTART_EVERY == 0:
            dead = torch.nonzero(self.uses < _DEAD)[:, 0]
            chosen = unit[torch.randint(len(unit), (len(dead),), device=unit.device)]
            self.sums[dead], self.uses[dead] = chosen, 1.0
        self.codebook.copy_(functional.normalize(self.sums, dim=-1))
