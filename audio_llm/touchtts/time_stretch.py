"""Speech faster or slower: mel frames between those that were made, piece by piece as at once. Pitch stays."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class TimeStretch:
    """Mel frames at another pace, by linear interpolation.

    Frame k of what comes out lies at k times the speed of what goes in.

    Args:
        speed: 2.0 is twice as fast.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._buffer: Tensor | None = None  # (1, K, bands), frames still needed, the first of them has this number:
        self._first, self._next = 0, 0  # and that of the next frame to come out

    def step(self, mel: Tensor) -> Tensor:
        """Return the frames (1, M, bands) that the next ones (1, N, bands) make possible."""
        if self.speed == 1.0:
            return mel
        frames = mel if self._buffer is None else torch.cat([self._buffer, mel], dim=1)
        end = self._first + frames.shape[1] - 1  # number of the last frame that is known
        count = max(0, math.floor(end / self.speed) + 1 - self._next) if frames.shape[1] else 0
        positions = [(self._next + k) * self.speed - self._first for k in range(count)]
        before = torch.tensor([math.floor(position) for position in positions], dtype=torch.int64, device=mel.device)
        weight = torch.tensor([position - math.floor(position) for position in positions], device=mel.device)[:, None]
        after = (before + 1).clamp_max(max(0, frames.shape[1] - 1))
        output = (1.0 - weight) * frames[:, before] + weight * frames[:, after]
        self._next += count
        # what lies before the next place is not needed again; the last frame may be
        drop = min(max(0, math.floor(self._next * self.speed) - self._first), max(0, frames.shape[1] - 1))
        self._buffer, self._first = frames[:, drop:], self._first + drop
        return output.to(mel.dtype)
