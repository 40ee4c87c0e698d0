"""A pack of made-up people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audio_llm.simulation.heads import load_head
from audio_llm.simulation.scene_plan import Voice
from audio_llm.simulation.sources import write_sources


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
    write_sources(folder, voices, [rng.standard_normal(9000).astype(np.float32)], [load_head()])
    return folder
