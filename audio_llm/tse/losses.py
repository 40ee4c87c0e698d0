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


def leak_db(estimate: Tensor, mixture: Tensor, least_db: float = -20.0) -> Tensor:
    """Return the energy of what should be silent over that of the mixture: (...,) for (..., T); never under a least."""
    level = estimate.square().sum(-1) / (mixture.square().sum(-1) + _FLOOR)
    return 10.0 * torch.log10(level + 10.0 ** (least_db / 10.0))


def separation_loss(estimate: Tensor, target: Tensor, mixture: Tensor, silent_weight: float = 0.3) -> Tensor:
    """Return the mean over streams: minus both ratios where somebody talks, the leak where nobody does; a scalar.

    Args:
        estimate: (B, K, 2, T).
        target: (B, K, 2, T), zeros where there is nobody.
        mixture: (B, 2, T).
        silent_weight: Of the leak.
    """
    ratios = 0.5 * (snr_db(estimate, target) + si_sdr_db(estimate, target)).mean(-1)
    leak = leak_db(estimate, mixture[:, None]).mean(-1)
    return torch.where(talking(target), -ratios, silent_weight * leak).mean()


def talking(target: Tensor) -> Tensor:
    """Return whether there is anybody: (...) bool for (..., 2, T)."""
    return target.square().sum((-2, -1)) > _FLOOR
