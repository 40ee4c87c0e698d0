"""How near an extracted sound is to the target: ratios in dB, per ear, differentiable."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from audio_llm.sound_metrics import si_sdr_db, snr_db

_FLOOR = 1e-8  # of an energy


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
    return _loss(estimate, target, mixture, silent_weight).mean()


@torch.no_grad()
def best_order(estimate: Tensor, target: Tensor, mixture: Tensor, silent_weight: float = 0.3) -> Tensor:
    """Return which target each stream is nearest to, all streams together: (B, K) int64, a permutation in each row.

    Args:
        estimate: (B, K, 2, T).
        target: (B, K, 2, T), zeros where there is nobody.
        mixture: (B, 2, T).
        silent_weight: As of `separation_loss`, which is least for `in_order(target, order)`.
    """
    pairs = _pair_losses(estimate, target, mixture, silent_weight)  # (B, K, K)
    count = estimate.shape[1]
    orders = torch.tensor(list(permutations(range(count))), device=pairs.device)  # (K!, K)
    found: Tensor = orders[pairs[:, torch.arange(count), orders].sum(-1).argmin(1)]
    return found


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """Return values (B, K, ...) in the order (B, K) of `best_order`."""
    return values[torch.arange(len(order), device=order.device)[:, None], order]


def _loss(estimate: Tensor, target: Tensor, mixture: Tensor, silent_weight: float) -> Tensor:
    """Return (B, K, ...) of (B, K, ..., 2, T) and a mixture (B, ..., 2, T)."""
    ratios = 0.5 * (snr_db(estimate, target) + si_sdr_db(estimate, target)).mean(-1)
    leak = leak_db(estimate, mixture[:, None]).mean(-1)
    return torch.where(talking(target), -ratios, silent_weight * leak)


def _pair_losses(estimate: Tensor, target: Tensor, mixture: Tensor, silent_weight: float) -> Tensor:
    """Return `_loss` of every stream (B, K, 2, T) with every target: (B, K, K), from inner products alone."""
    found, wanted = estimate.transpose(1, 2), target.transpose(1, 2)  # (B, ears, K, T)
    samples = found.shape[-1]
    found_power, wanted_power = found.square().sum(-1)[..., None], wanted.square().sum(-1)[..., None, :]
    product = found @ wanted.mT
    error = (found_power - 2.0 * product + wanted_power).clamp(min=0.0)
    snr = (wanted_power + _FLOOR) / (error + _FLOOR)
    found_mean, wanted_mean = found.mean(-1)[..., None], wanted.mean(-1)[..., None, :]
    product = product - samples * found_mean * wanted_mean
    found_power = found_power - samples * found_mean.square()
    wanted_power = wanted_power - samples * wanted_mean.square()
    scaled = product.square() / (wanted_power + _FLOOR)
    si_sdr = (scaled + _FLOOR) / ((found_power - scaled).clamp(min=0.0) + _FLOOR)
    ratios = (5.0 * (snr.log10() + si_sdr.log10())).mean(1)
    leak = leak_db(estimate, mixture[:, None]).mean(-1)
    return torch.where(talking(target)[:, None], -ratios, silent_weight * leak[..., None])


def talking(target: Tensor) -> Tensor:
    """Return whether there is anybody: (...) bool for (..., 2, T)."""
    return target.square().sum((-2, -1)) > _FLOOR
