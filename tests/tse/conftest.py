"""A pack of synthetic speakers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_llm.simulation.heads import load_head
from audio_llm.simulation.scene_plan import Voice
from audio_llm.simulation.sources import read_sources, write_sources


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    rng = np.random.default_rng(0)
    time_s = np.arange(24_000) / 16_000
    voices = []
    for number in range(6):  # buzzes of different pitch, cut into syllables
        pitch = 90.0 + 40.0 * number
        buzz = sum(np.sin(2 * np.pi * pitch * k * time_s + k) / k for k in range(1, 20))
        sounds = tuple(
            (0.1 * buzz * (np.sin(2 * np.pi * rng.uniform(2, 5) * time_s) > 0)).astype(np.float32) for _ in "ab"
        )
        voices.append(Voice(f"v{number}", "made", "", sounds))
    head = load_head()
    head = replace(head, azimuths=head.azimuths[::6], responses=head.responses[::6])  # scenes in a fifth of the time
    write_sources(folder, voices, [rng.standard_normal(9000).astype(np.float32)], [head])
    return folder


class ScenesHere:
    """Makes batches in this process instead of workers as `SceneProcesses` does, so that tests start faster."""

    def __init__(self, pack: Path, count: int = 1) -> None:
        self._sources = read_sources(pack)

    def __enter__(self) -> ScenesHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def make(self, function: Callable[..., Any], config: Any, seed: int, chosen: range) -> Any:
        """Return a batch of these scenes."""
        return function(self._sources, config, seed, chosen)


@pytest.fixture
def scenes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings simulate their scenes without worker processes."""
    for name in ("train_separator", "train_joint", "train_speaker"):
        monkeypatch.setattr(import_module(f"audio_llm.tse.{name}"), "SceneProcesses", ScenesHere)
