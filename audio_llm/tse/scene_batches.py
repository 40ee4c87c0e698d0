"""Batches of scenes: which scenes each is made of, and a process of its own that makes them.

Every epoch draws new scenes in training, validation always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from audio_llm.simulation.scene_plan import SceneSources
from audio_llm.simulation.sources import read_sources

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


class SceneProcess:
    """Makes batches in another process: many small operations would else wait for the training's, and it for them.

    Args:
        pack: Packed sources, read there.
    """

    def __init__(self, pack: Path) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _read, (pack,))

    def __enter__(self) -> SceneProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def make(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(sources, *arguments)`; the function is one of a module, and what it returns is copied."""
        return self._pool.submit(_call, function, arguments).result()


_sources: SceneSources | None = None  # of the process that makes batches


def _read(pack: Path) -> None:
    global _sources
    import torch

    torch.set_num_threads(1)
    _sources = read_sources(pack)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_sources, *arguments)
