"""Cost of enhancement and integrity of long recordings: CPU time, memory, length, seams."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audio_llm.gense.measures import active_frames, levels_db

RATE = 16_000  # Hz
_CODE = """
import itertools, json, sys, time
import torch
torch.set_num_threads(1)
from audio_llm.gense.enhance import Enhancer
model, mode, path, output = sys.argv[1:]
enhancer = Enhancer.load(model, mode)
begun = time.process_time()
done = enhancer.enhance_file(path, output)
used = time.process_time() - begun
seams = [chunk.end_s for chunk in done.chunks[:-1]]
pairs = itertools.pairwise(done.chunks)
left = [one.end_s for one, other in pairs if "bypass" in (one.action, other.action)]
# not getrusage: a child that was spawned starts with its parent's maximum
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
megabytes = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps({"cpu_s": used, "megabytes": megabytes, "samples": done.samples, "seams": seams, "left": left}))
"""


def long_file(sounds: list[np.ndarray], seconds: float, path: Path) -> None:
    """Write a recording of so many seconds by concatenating shorter ones."""
    size, parts, count = round(seconds * RATE), [], 0
    while count < size:
        parts.append(sounds[len(parts) % len(sounds)])
        count += len(parts[-1])
    soundfile.write(path, np.concatenate(parts)[:size], RATE)


def rows(
    model: str, mask: str, mode: str, sounds: list[np.ndarray], folder: Path, lengths_s: list[float]
) -> Iterator[str]:
    """Yield the lines of a table, one row per recording length."""
    yield (
        "| recording | CPU s a second, one thread | memory, MB | samples in, out | seams | largest level jump, dB "
        "| at bypassed chunks |"
    )
    yield "|---" * 7 + "|"
    folder.mkdir(parents=True, exist_ok=True)
    for seconds in lengths_s:
        source, masked, output = (folder / f"{seconds:g}s-{name}.wav" for name in ("noisy", "mask", mode))
        long_file(sounds, seconds, source)
        done = _enhance(mask, "safe", source, masked)
        if mode != "safe":
            done = _enhance(model, mode, source, output)
        # the mask network's output is continuous: it has no seams, and nothing to compare it with
        jumps = ["-", "-"]
        if mode != "safe":
            kinds = [[seam for seam in done["seams"] if (seam in done["left"]) == left] for left in (False, True)]
            jumps = [f"{_largest_jump(masked, output, seams):.2f}" for seams in kinds]
        columns = [f"{seconds:g} s", f"{done['cpu_s'] / seconds:.3f}", f"{done['megabytes']:.0f}"]
        columns += [f"{soundfile.info(source).frames}, {done['samples']}", str(len(done["seams"])), *jumps]
        yield "| " + " | ".join(columns) + " |"


def _enhance(model: str, mode: str, source: Path, output: Path) -> dict[str, Any]:
    """Enhance in a separate process."""
    command = [sys.executable, "-c", _CODE, model, mode, str(source), str(output)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def _largest_jump(masked: Path, output: Path, seams_s: list[float]) -> float:
    """Return the largest jump of the level at a seam, in dB.

    The level is that of the frames with speech in the second before and the second after, relative to the mask
    network's output, which has no seams.
    """
    one, other = (soundfile.read(path, dtype="float32")[0] for path in (masked, output))
    largest = 0.0
    for seam in (round(s * RATE) for s in seams_s):
        gains = []
        for start in (seam - RATE, seam):
            part = slice(max(0, start), start + RATE)
            speech = active_frames(one[part])
            if speech.sum() >= 10:
                powers = [np.mean(10.0 ** (levels_db(w[part])[speech] / 10.0)) for w in (one, other)]
                gains.append(10.0 * np.log10(powers[1] / powers[0]))
        if len(gains) == 2:
            largest = max(largest, abs(gains[1] - gains[0]))
    return float(largest)
