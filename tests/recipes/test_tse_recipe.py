"""Target-speech hearing's recipe from end to end, tiny, on the sample recordings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_runs_on_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, PROJECT / "recipes" / "tse" / "run.py", "all", "--smoke", "--output", tmp_path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(PROJECT / part) for part in ("export", "realtime")),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    contract = json.loads((tmp_path / "tse-small" / "tse.json").read_text())
    assert contract["enrolment"]["file"] == "enrolment.onnx"
    rows = [json.loads(line) for line in (tmp_path / "measures" / "scenes-0.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    oracle = [row["oracle_mask_db"] for row in rows if "oracle_mask_db" in row]
    assert oracle
    assert min(oracle) > 3.0
    on_device = [
        json.loads(line) for line in (tmp_path / "measures" / "device-tse-small.jsonl").read_text().splitlines()
    ]
    for row, own in zip(on_device, rows, strict=True):
        assert row.get("noisy_db", 0.0) == pytest.approx(own.get("noisy_db", 0.0), abs=0.05)
    assert "noisy enrollment" in (tmp_path / "measures" / "scenes.md").read_text()
