"""K-means with random initial centers, and uniform sampling from a stream of unknown length."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 4096  # frames whose distances are computed at a time
_MOST_PASSES = 50  # at most, of k-means
_LEAST_GAIN = 1e-4  # fraction of the mean distance; after a smaller gain k-means stops
_START_FRAMES = 8  # candidate frames per center for the initial centers

logger = logging.getLogger(__name__)


class Reservoir:
    """A uniform sample of a stream of frames of unknown length (Vitter 1985, algorithm R)."""

    def __init__(self, most: int, width: int, generator: np.random.Generator) -> None:
        self._sample, self._generator, self.seen = np.empty((most, width), np.float32), generator, 0

    def add(self, frames: np.ndarray) -> None:
        """Add frames (N, D) of the stream."""
        numbers = np.arange(self.seen, self.seen + len(frames))
        slots = np.where(numbers < len(self._sample), numbers, self._generator.integers(0, numbers + 1))
        selected = slots < len(self._sample)
        self._sample[slots[selected]] = frames[selected]  # of frames with the same slot the last one stays
        self.seen += len(frames)

    def frames(self) -> np.ndarray:
        """Return the sampled frames, (M, D) float32."""
        return self._sample[: self.seen]


@dataclass(frozen=True)
class Clusters:
    """Centers (K, D) float32, the number of centers that no point is nearest to, and the mean squared distance."""

    centers: Tensor
    unused: int
    distance: float


def kmeans(points: Tensor, clusters: int, generator: np.random.Generator) -> Clusters:
    """Return centers of points (N, D) float32; an empty center moves to the point farthest from its center."""
    centers = _first_centers(points, clusters, generator)
    before = math.inf
    for _ in range(_MOST_PASSES):
        numbers, distances = nearest(points, centers)
        counts = torch.bincount(numbers, minlength=clusters)
        distance = float(distances.mean())
        if before - distance <= _LEAST_GAIN * distance and bool(counts.all()):
            break
        before = distance
        sums = torch.zeros(clusters, points.shape[1], dtype=torch.float64)
        for block, assigned in zip(points.split(_BLOCK), numbers.split(_BLOCK), strict=True):
            sums.index_add_(0, assigned, block.double())
        empty = counts == 0
        centers = (sums / counts.clamp_min(1)[:, None]).float()
        centers[empty] = points[distances.topk(int(empty.sum())).indices]
    numbers, distances = nearest(points, centers)
    return Clusters(centers, clusters - len(numbers.unique()), float(distances.mean()))


def _first_centers(points: Tensor, clusters: int, generator: np.random.Generator) -> Tensor:
    """Return points far apart (Arthur and Vassilvitskii 2007, k-means++), from a random subset: (K, D) float32."""
    some = generator.choice(len(points), min(len(points), _START_FRAMES * clusters), replace=False)
    candidates = points[torch.from_numpy(some)]
    centered = candidates - candidates.mean(0)  # a large common mean would cost precision below
    energies = centered.square().sum(1)
    nearest = torch.full((len(centered),), math.inf)
    chosen: list[int] = []
    pick = int(generator.integers(len(centered)))
    for _ in range(clusters):
        chosen.append(pick)
        distances = (energies - 2.0 * (centered @ centered[pick]) + energies[pick]).clamp_min(0.0)
        nearest = torch.minimum(nearest, distances)
        nearest[pick] = 0.0
        sums = nearest.double().cumsum(0)
        draw = torch.tensor([generator.random() * float(sums[-1])], dtype=torch.float64)
        pick = min(int(torch.searchsorted(sums, draw, right=True)), len(centered) - 1)
    return candidates[chosen].clone()


def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return index (N,) int64 of and squared distance (N,) float64 to the nearest center (K, D) of points (N, D)."""
    centers = centers.double()  # XLS-R has a few large values, next to which float32 loses the rest
    energies = centers.square().sum(1)
    numbers, distances = [points.new_zeros(0, dtype=torch.int64)], [energies.new_zeros(0)]
    for block in points.split(_BLOCK):
        block = block.double()
        best = (energies - 2.0 * (block @ centers.T)).min(1)
        numbers.append(best.indices)
        distances.append((best.values + block.square().sum(1)).clamp_min(0.0))
    return torch.cat(numbers), torch.cat(distances)
