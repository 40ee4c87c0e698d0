"""How near an extracted sound is to the target: ratios in dB, per ear, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 1e-8  # of an energy


def snr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the target's energy over that of the error: (...,) for (..., T); level counts."""
    error = (estimate - target).square().sum(-1)
    return 10.0 * torch.log10((target.square().sum(-1) + _FLOOR) / (error + _FLOOR))


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio (Le Roux et al. 2019): (...,) for (..., T)."""
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + _FLOOR)
    wanted = scale * target
    error = (estimate - wanted).square().sum(-1)
    return 10.0 * torch.log10((wanted.square().sum(-1) + _FLOOR) / (error + _FLOOR))


def negative_ratios(estimate: Tensor, target: Tensor) -> Tensor:
    """Return minus the mean of both ratios, half by half: without the first, level and cues are free; a scalar."""
    return -0.5 * (snr_db(estimate, target) + si_sdr_db(estimate, target)).mean()
