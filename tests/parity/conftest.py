"""The packages beside the library, where they are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

for name in ("export", "realtime"):
    folder = str(Path(__file__).parents[2] / name)
    if folder not in sys.path:
        sys.path.insert(0, folder)
