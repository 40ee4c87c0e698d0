"""Which scenes a batch is made of: every epoch new ones in training, always the same in validation."""

from __future__ import annotations

from collections.abc import Callable

VALIDATION_SEED = 1_000_003  # of the scenes that decide which model is the best


def new_scenes(batch_scenes: int, epoch_batches: int) -> Callable[[int], list[range]]:
    """Return what gives the indices of an epoch's batches: no scene comes twice."""

    def batches(epoch: int) -> list[range]:
        first = epoch * epoch_batches * batch_scenes
        return [
            range(begin, begin + batch_scenes)
            for begin in range(first, first + epoch_batches * batch_scenes, batch_scenes)
        ]

    return batches


def same_scenes(batch_scenes: int, scenes: int) -> list[range]:
    """Return the indices of the validation's batches."""
    return [range(first, min(first + batch_scenes, scenes)) for first in range(0, scenes, batch_scenes)]
