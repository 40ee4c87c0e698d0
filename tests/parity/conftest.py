"""The export and realtime packages, where they are not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for name in ("export", "realtime"):
    folder = str(Path(__file__).parents[2] / name)
    if folder not in sys.path:
        sys.path.insert(0, folder)


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """Restore them: a session that treats them as zero does so for all code of the thread that opened it."""
    yield
    torch.set_flush_denormal(False)
