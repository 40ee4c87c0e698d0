"""The package as a whole: four dependencies, nothing of the library, light to import, no memory that grows."""

from __future__ import annotations

import ast
import gc
import os
import re
import subprocess
import sys
import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime import __version__
from audio_llm_realtime.clock import MeasuredClock
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.loop import FileLoop
from audio_llm_realtime.report import histogram, percentiles
from audio_llm_realtime.schedule import SchedulingOptions, apply_scheduling
from audio_llm_realtime.worker import Worker

PROJECT = Path(__file__).resolve().parents[2] / "realtime"
DEPENDENCIES = {"numpy", "onnxruntime", "soundfile", "sounddevice"}


def modules() -> list[tuple[str, ast.Module]]:
    return [(path.stem, ast.parse(path.read_text())) for path in sorted((PROJECT / "audio_llm_realtime").glob("*.py"))]


def test_nothing_else_is_imported() -> None:
    allowed = DEPENDENCIES | {"audio_llm_realtime"} | set(sys.stdlib_module_names)
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {(node.module or "").split(".")[0]}
            else:
                continue
            assert imported <= allowed, name


def test_only_the_command_line_prints() -> None:
    printing = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"cli", "bench_load"}  # the latter is a program of its own


def test_project_file_matches() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=~!]", line)[0] for line in project["dependencies"]} == DEPENDENCIES
    assert project["version"] == __version__


def test_help_loads_no_runtime_and_no_device() -> None:
    script = (
        "import sys; from audio_llm_realtime.cli import main; main(['--help']); "
        "print('LOADED', *(m for m in ('onnxruntime', 'soundfile', 'sounddevice', 'torch') if m in sys.modules))"
    )
    path = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=path, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_loop_keeps_no_memory(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    loop = FileLoop(Worker(make_engine(0.5, 0.1, counters=Counters(1000))), MeasuredClock(instant=True))
    loop.run(sound)
    of_package = [tracemalloc.Filter(True, "*audio_llm_realtime*")]  # what else runs in this process is not the loop's

    def held() -> int:
        gc.collect()
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(of_package).traces)

    tracemalloc.start()
    try:
        before = held()
        for _ in range(10):
            loop.run(sound)
        growth = held() - before
    finally:
        tracemalloc.stop()
    assert growth < 10_000


def test_counters_keep_the_last_times_and_counts_all() -> None:
    counters = Counters(capacity=4)
    for ms in range(1, 7):
        counters.record_chunk(ms * 1_000_000, ms * 500_000, late=ms == 2)
    counters.record_skipped(3)
    assert sorted(counters.wall_ms) == [3.0, 4.0, 5.0, 6.0]
    assert (counters[Count.CHUNKS], counters[Count.MISSES], counters[Count.SKIPPED], counters[Count.STALLS]) == (
        6,
        4,
        3,
        4,
    )
    result = percentiles(counters.wall_ms)
    assert (result.p50, result.max) == (4.5, 6.0)
    counters.clear()
    assert counters.wall_ms.size == 0
    assert percentiles(counters.wall_ms).p999 == 0.0


def test_a_histogram_holds_every_chunk() -> None:
    times_ms = np.array([0.0, 0.05, 0.1, 0.11, 1.0, 7.9, 8.1, 500.0])
    result = histogram(times_ms)
    assert sum(result.chunks) == len(times_ms)
    assert len(result.edges_ms) == len(result.chunks)
    assert (result.chunks[0], result.chunks[-1]) == (2, 1)
    for edge, following, count in zip(result.edges_ms, (*result.edges_ms[1:], np.inf), result.chunks, strict=True):
        assert count == ((times_ms >= edge) & (times_ms < following)).sum()
    assert not any(histogram(np.zeros(0)).chunks)


def test_skipped_chunks_are_no_stall_where_the_network_is_slow() -> None:
    counters = Counters()
    counters.record_chunk(200_000_000, 190_000_000, late=True)
    counters.record_skipped(5)
    assert (counters[Count.MISSES], counters[Count.STALLS]) == (6, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a system without these calls")
def test_scheduling_is_restored_and_refusals_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before, interval = os.sched_getaffinity(0), sys.getswitchinterval()
    refused: list[str] = []
    with apply_scheduling(SchedulingOptions(fifo=True, cpu=min(before), no_gc=True), refused):
        assert os.sched_getaffinity(0) == {min(before)}
        assert not gc.isenabled()
    assert refused == ["SCHED_FIFO was not granted: Operation not permitted"]
    assert (os.sched_getaffinity(0), sys.getswitchinterval(), gc.isenabled()) == (before, interval, True)
