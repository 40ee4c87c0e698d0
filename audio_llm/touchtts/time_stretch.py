"""Change the speed of speech at constant pitch by interpolation of mel frames; chunk by chunk equals all at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class TimeStretch:
    """Mel frames at another speed, by linear interpolation.

    Output frame k lies at input position k times the speed.

    Args:
        speed: 2.0 doubles the speed.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._buffer: Tensor | None = None  # (1, K, bands), input frames still needed
        self._first, self._next = 0, 0  # indices of the buffer's first frame and of the next output frame

    def step(self, mel: Tensor) -> Tensor:
        """Return the output frames (1, M, bands) that the next input frames (1, N, bands) complete."""
        if self.speed == 1.0:
            return mel
        frames = mel if self._buffer is None else torch.cat([self._buffer, mel], dim=1)
        end = self._first + frames.shape[1] - 1  # index of the last known frame
        count = max(0, math.floor(end / self.speed) + 1 - self._next) if frames.shape[1] else 0
        positions = [(self._next + k) * self.speed - self._first for k in range(count)]
        before = torch.tensor([math.floor(position) for position in positions], dtype=torch.int64, device=mel.device)
        weight = torch.tensor([position - math.floor(position) for position in positions], device=mel.device)[:, None]
        after = (before + 1).clamp_max(max(0, frames.shape[1] - 1))
        output = (1.0 - weight) * frames[:, before] + weight * frames[:, after]
        self._next += count
        # frames before the next position are not needed again; the last frame may be
        drop = min(max(0, math.floor(self._next * self.speed) - self._first), max(0, frames.shape[1] - 1))
        self._buffer, self._first = frames[:, drop:], self._first + drop
        return output.to(mel.dtype)
