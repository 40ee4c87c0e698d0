"""Losses of separation and extraction: differentiable ratios in dB, per ear."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from audio_llm.sound_metrics import si_sdr_db, snr_db

_FLOOR = 1e-8  # added to energies


def leak_db(estimate: Tensor, mixture: Tensor, least_db: float = -20.0) -> Tensor:
    """Return the energy of an estimate over that of the mixture in dB, at least `least_db`: (...,) for (..., T)."""
    level = estimate.square().sum(-1) / (mixture.square().sum(-1) + _FLOOR)
    return 10.0 * torch.log10(level + 10.0 ** (least_db / 10.0))


def separation_loss(estimate: Tensor, target: Tensor, mixture: Tensor, silent_weight: float = 0.3) -> Tensor:
    """Return the mean over streams, a scalar: negative SNR and SI-SDR of active streams, the leak of silent ones.

    Args:
        estimate: (B, K, 2, T).
        target: (B, K, 2, T), zeros in streams without a talker.
        mixture: (B, 2, T).
        silent_weight: Weight of the leak.
    """
    return _loss(estimate, target, mixture, silent_weight).mean()


@torch.no_grad()
def best_order(estimate: Tensor, target: Tensor, mixture: Tensor, silent_weight: float = 0.3) -> Tensor:
    """Return the permutation of targets with the lowest total loss over the streams: (B, K) int64.

    Args:
        estimate: (B, K, 2, T).
        target: (B, K, 2, T), zeros in streams without a talker.
        mixture: (B, 2, T).
        silent_weight: As for `separation_loss`, which is lowest for `in_order(target, order)`.
    """
    pairs = _pair_losses(estimate, target, mixture, silent_weight)  # (B, K, K)
    count = estimate.shape[1]
    orders = torch.tensor(list(permutations(range(count))), device=pairs.device)  # (K!, K)
    best: Tensor = orders[pairs[:, torch.arange(count), orders].sum(-1).argmin(1)]
    return best


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
    estimates, targets = estimate.transpose(1, 2), target.transpose(1, 2)  # (B, ears, K, T)
    samples = estimates.shape[-1]
    estimate_power, target_power = estimates.square().sum(-1)[..., None], targets.square().sum(-1)[..., None, :]
    product = estimates @ targets.mT
    error = (estimate_power - 2.0 * product + target_power).clamp(min=0.0)
    snr = (target_power + _FLOOR) / (error + _FLOOR)
    estimate_mean, target_mean = estimates.mean(-1)[..., None], targets.mean(-1)[..., None, :]
    product = product - samples * estimate_mean * target_mean
    estimate_power = estimate_power - samples * estimate_mean.square()
    target_power = target_power - samples * target_mean.square()
    scaled = product.square() / (target_power + _FLOOR)
    si_sdr = (scaled + _FLOOR) / ((estimate_power - scaled).clamp(min=0.0) + _FLOOR)
    ratios = (5.0 * (snr.log10() + si_sdr.log10())).mean(1)
    leak = leak_db(estimate, mixture[:, None]).mean(-1)
    return torch.where(talking(target)[:, None], -ratios, silent_weight * leak[..., None])


def talking(target: Tensor) -> Tensor:
    """Return whether a target is not silent: (...) bool for (..., 2, T)."""
    return target.square().sum((-2, -1)) > _FLOOR
