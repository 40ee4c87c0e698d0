"""Batches of scenes, simulated in worker processes; `training.batching` chooses their indices."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from audio_llm.simulation.scene_plan import SceneSources
from audio_llm.simulation.sources import read_sources

B = TypeVar("B", bound=NamedTuple)

VALIDATION_SEED = 1_000_003  # of the validation scenes


class SceneProcesses:
    """Makes batches in worker processes, so that simulation and training do not wait for each other.

    Args:
        pack: Packed sources, read by each worker.
        count: Number of workers; training on a GPU needs many.
    """

    def __init__(self, pack: Path, count: int = 1) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), _read, (pack,))

    def __enter__(self) -> SceneProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def make(self, function: Callable[..., B], config: Any, seed: int, chosen: range) -> B:
        """Return a batch of these scenes, a named tuple of tensors: the workers' parts, concatenated.

        Args:
            function: (sources, config, seed, indices) -> batch; a module-level function.
            config: Passed to the function.
            seed: Passed to the function.
            chosen: Indices of the scenes.
        """
        import torch

        size = -(-len(chosen) // self._count)
        parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        pending = [self._pool.submit(_call, function, (config, seed, part)) for part in parts]
        batches = [future.result() for future in pending]
        return batches[0]._make(torch.cat(tensors) for tensors in zip(*batches, strict=True))


_sources: SceneSources | None = None  # of a worker


def _read(pack: Path) -> None:
    global _sources
    import torch

    Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    _sources = read_sources(pack)


def _end_with_the_parent() -> None:
    """End this worker when the parent is gone: a killed parent cannot notify it."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_sources, *arguments)
