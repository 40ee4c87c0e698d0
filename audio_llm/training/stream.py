"""Turns epochs of batches into an endless, resumable stream of steps, split among processes and prepared ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from audio_llm.errors import DataError

_AHEAD = 3  # steps prepared before they are needed


@dataclass(frozen=True)
class Group:
    """The batches of one step.

    Attributes:
        batches: The batches of this process, prepared and on its device.
        epoch: Epoch of the step's last batch.
        batch: Number of batches of that epoch that are done after the step.
    """

    batches: list[Any]
    epoch: int
    batch: int


def group_batches(
    batches: Callable[[int], Iterable[Any]],
    position: tuple[int, int],
    size: int,
    rank: int,
    world: int,
    prepare: Callable[[Any], Any] | None,
    device: torch.device,
) -> Generator[Group, None, None]:
    """Yield the batches of each step without end; a step may extend into the next epoch.

    Args:
        batches: Epoch number -> its batches, the same ones at every call.
        position: Epoch to start in, and number of its batches that are done.
        size: Batches in a step, over all processes; a multiple of `world`.
        rank: Rank of this process.
        world: Number of processes.
        prepare: Batch -> prepared batch, run in a thread some steps ahead; None: batches need no preparation.
        device: Device for the tensors.

    Raises:
        DataError: An epoch has no batch.
    """
    from accelerate.utils import send_to_device

    stream = _stream(batches, *position)

    def make(group: list[tuple[int, int, Any]]) -> Group:
        local = [batch for _, _, batch in group[rank::world]]
        epoch, done, _ = group[-1]
        ready = local if prepare is None else [prepare(batch) for batch in local]
        return Group([send_to_device(batch, device) for batch in ready], epoch, done)

    groups = (list(itertools.islice(stream, size)) for _ in itertools.count())
    if prepare is None:
        yield from map(make, groups)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Group]] = deque(pool.submit(make, next(groups)) for _ in range(_AHEAD))
        while True:
            yield waiting.popleft().result()
            waiting.append(pool.submit(make, next(groups)))


def _stream(batches: Callable[[int], Iterable[Any]], epoch: int, skip: int) -> Iterator[tuple[int, int, Any]]:
    """Yield (epoch, number of batches done in it, batch), epoch after epoch, without the first `skip` batches."""
    while True:
        number = 0
        for number, batch in enumerate(batches(epoch), 1):
            if number > skip:
                yield epoch, number, batch
        if number == 0:
            raise DataError(f"epoch {epoch} has no batch", remedy="check the training data")
        epoch, skip = epoch + 1, 0
