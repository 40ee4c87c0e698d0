"""Batches of rows of similar length, and batches of indices for data that is generated on the fly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_POOL = 50  # number of batches that are sorted by length together


def batches_by_length(
    rows: np.ndarray, lengths: np.ndarray, limit: int, rng: np.random.Generator
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of (row, seed) in random order, rows of similar length together.

    Args:
        rows: (N,) int64, the rows to batch, in any order.
        lengths: Length of each row, indexed by row.
        limit: Upper limit of longest length times number of rows in a batch; a longer row forms its own batch.
        rng: Random generator.
    """
    if not len(rows):
        return
    rows = rng.permutation(rows)
    pool = max(1, int(_POOL * limit / max(1.0, float(lengths[rows].mean()))))
    for first in range(0, len(rows), pool):
        part = rows[first : first + pool]
        part = part[np.argsort(lengths[part] * rng.uniform(0.9, 1.1, size=len(part)), kind="stable")]
        batches = list(_cut(part, lengths, limit))
        for index in rng.permutation(len(batches)):
            seeds = rng.integers(1 << 62, size=len(batches[index]))
            yield list(zip(batches[index].tolist(), seeds.tolist(), strict=True))


def fresh_batches(batch: int, epoch_batches: int) -> Callable[[int], list[range]]:
    """Return a function from an epoch to its batches of `batch` indices each; no index occurs twice in any epoch."""

    def batches(epoch: int) -> list[range]:
        first = epoch * epoch_batches * batch
        return [range(begin, begin + batch) for begin in range(first, first + epoch_batches * batch, batch)]

    return batches


def fixed_batches(batch: int, count: int) -> list[range]:
    """Return the indices below `count` in batches of `batch`, always the same."""
    return [range(first, min(first + batch, count)) for first in range(0, count, batch)]


def _cut(rows: np.ndarray, lengths: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    start = 0
    for end in range(1, len(rows) + 1):
        longest = int(lengths[rows[start:end]].max())
        if longest * (end - start) > limit and end - start > 1:
            yield rows[start : end - 1]
            start = end - 1
    yield rows[start:]
