"""ConvNeXt blocks over time (Liu et al. 2022, as Vocos uses them), for codecs and vocoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 7  # frames


class ConvNeXtStack(nn.Module):
    """ConvNeXt blocks in sequence, with a layer norm at the end.

    Args:
        width: Channels.
        blocks: Number of blocks.
        expansion: Ratio of inner channels to channels.
        causal: Whether frames depend on the past alone.
    """

    def __init__(self, width: int, blocks: int, expansion: int, causal: bool = False) -> None:
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList(_ConvNeXtBlock(width, expansion, causal) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, N, C) of (B, N, C); mask (B, N) bool, True where valid; other frames have no influence."""
        keep = mask[:, :, None].to(x.dtype)
        x = x * keep
        for block in self.blocks:
            x = block(x, keep)
        out: Tensor = self.norm(x)
        return out

    def first_state(self, batch: int = 1) -> Tensor:
        """Return the state before the first frame, for `step`: (blocks, B, C, KERNEL - 1)."""
        return self.norm.weight.new_zeros(len(self.blocks), batch, self.width, KERNEL - 1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of `forward` for the next frames (B, N, C), and the new state; causal stacks only."""
        states = []
        for block, past in zip(self.blocks, state, strict=True):
            assert isinstance(block, _ConvNeXtBlock)
            x, last = block.step(x, past)
            states.append(last)
        return self.norm(x), torch.stack(states)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, width: int, expansion: int, causal: bool) -> None:
        super().__init__()
        self.pad = (KERNEL - 1, 0) if causal else (KERNEL // 2, KERNEL // 2)
        self.depthwise = nn.Conv1d(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self._add(x, functional.pad(x.transpose(1, 2), self.pad)) * keep

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([past, x.transpose(1, 2)], dim=2)
        return self._add(x, seen), seen[:, :, 1 - KERNEL :]

    def _add(self, x: Tensor, seen: Tensor) -> Tensor:
        y = self.depthwise(seen).transpose(1, 2)
        return x + self.scale * self.down(functional.gelu(self.up(self.norm(y))))
