"""The cost of correction: sentences per second, time added to transcription, memory, and import time."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audio_llm.nbest import NBest

DECODINGS = ("none", "greedy", "dlm-sum", "dsr")
REPEATS = 2  # runs of each command, alternating; the fastest counts


@dataclass(frozen=True)
class Cost:
    """Resources that a command used.

    Attributes:
        seconds: Time from start to end in s.
        cpu_seconds: Processor time in s, user and system.
        peak_mb: Peak resident memory of all its processes together in MB, sampled every 20 ms.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float


def report(lists: Sequence[NBest], recordings: Sequence[Path], model_dir: Path) -> str:
    """Return a table of all figures.

    Args:
        lists: N-best lists for greedy correction by itself.
        recordings: Recordings to transcribe, with each decoding and without correction.
        model_dir: The Denoising LM.
    """
    lines = ["| what | figure |", "|---|---|"]
    lines.append(f"| greedy, two processes of one thread | {greedy_rate(lists, model_dir):.1f} sentences a second |")
    costs = main_job(recordings, model_dir)
    for decoding, cost in costs.items():
        added = 100 * (cost.seconds / costs["none"].seconds - 1)
        lines.append(
            f"| main job, {len(recordings)} files, {decoding} | {cost.seconds:.1f} s ({added:+.1f} %), "
            f"{cost.cpu_seconds:.1f} CPU s, peak {cost.peak_mb:.0f} MB |"
        )
    imported = min(_measure([sys.executable, "-c", "import audio_llm"]).seconds for _ in range(5))
    lines.append(f"| `import audio_llm`, interpreter's start included | {imported:.2f} s |")
    return "\n".join(lines)


def greedy_rate(lists: Sequence[NBest], model_dir: Path, processes: int = 2) -> float:
    """Return how many lists per second are corrected greedily by this number of processes, without loading."""
    context = multiprocessing.get_context("spawn")
    ready, begin = context.Barrier(processes + 1), context.Event()
    workers = [
        context.Process(target=_correct, args=(lists[i::processes], model_dir, ready, begin)) for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    begin.set()
    for worker in workers:
        worker.join()
    return len(lists) / (time.perf_counter() - start)


def main_job(recordings: Sequence[Path], model_dir: Path) -> dict[str, Cost]:
    """Return the cost of transcribing the recordings from start to end, by decoding."""
    measured: dict[str, list[Cost]] = {decoding: [] for decoding in DECODINGS}
    for _ in range(REPEATS):
        for decoding in DECODINGS:
            with tempfile.TemporaryDirectory() as output:
                command = [sys.executable, "-m", "audio_llm", "transcribe", *map(str, recordings), "-o", output, "-q"]
                if decoding != "none":
                    command += ["--correct", "dlm", "--correct-model", str(model_dir), "--decode", decoding]
                measured[decoding].append(_measure(command))
    return {decoding: min(costs, key=lambda cost: cost.seconds) for decoding, costs in measured.items()}


def _correct(lists: Sequence[NBest], model_dir: Path, ready, begin) -> None:  # type: ignore[no-untyped-def]
    import torch

    from audio_llm.dlm.corrector import DlmCorrector

    torch.set_num_threads(1)
    corrector = DlmCorrector.load(model_dir, decode="greedy")
    corrector.correct(lists[:2])  # warm-up
    ready.wait()
    begin.wait()
    corrector.correct(lists)


def _measure(command: list[str]) -> Cost:
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_kb, ended = 0, (0, 0)
    while ended[0] == 0:
        peak_kb = max(peak_kb, _resident_kb(child.pid))
        time.sleep(0.02)
        *ended, usage = os.wait4(child.pid, os.WNOHANG)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(ended[1])
    if child.returncode:
        raise SystemExit(f"{command[:5]} ended with status {child.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak_kb / 1024)


def _resident_kb(pid: int) -> int:
    """Return the current resident memory of a process and its descendants in kB; 0 if they have ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    resident = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return resident + sum(_resident_kb(int(child)) for child in children)
