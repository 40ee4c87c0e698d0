"""Peak memory of whole processes on hours of sound: 20 minutes of speech among noise, and speech without a pause."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import speed

from audio_llm import audio

NOISE_LEVEL = 1e-3  # -60 dBFS, between the utterances
SPARSE_HOURS = (1, 10)
DENSE_HOURS = (1, 3)


def run(data: Path, output: Path, model: str, threads: int) -> None:
    """Print peak memory, time and words; append a line for each run to OUTPUT/memory.jsonl."""
    joined = output / "joined.flac"
    speed.join(data, joined)
    speech = audio.read(joined)
    print("| sound | hours | peak memory | wall | words |\n|---|---|---|---|---|")
    plans = [("20 minutes of speech, noise between", hours, sparse) for hours in SPARSE_HOURS]
    plans += [("speech", hours, dense) for hours in DENSE_HOURS]
    for name, hours, blocks in plans:
        path = output / "long.flac"
        write(path, blocks(speech, hours))
        command = [sys.executable, "-m", "audio_llm", "transcribe", str(path), "--language", "en"]
        measured = speed.measure([*command, "--recognizer", model, "--threads", str(threads)])
        words = len(str(measured.pop("text")).split())
        row = {"sound": name, "hours": hours, "model": model, "threads": threads, "words": words, **measured}
        with (output / "memory.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"| {name} | {hours} | {row['peak_mb']:.0f} MB | {row['wall_s']:.0f} s | {words} |", flush=True)
        path.unlink()


def sparse(speech: np.ndarray, hours: int) -> Iterator[np.ndarray]:
    """Yield a recording with 10 s pieces of the speech at regular intervals, and noise between them."""
    rng = np.random.default_rng(0)
    size = 10 * audio.SAMPLE_RATE
    pieces = [speech[at : at + size] for at in range(0, len(speech), size)]
    gap = hours * 3600 * audio.SAMPLE_RATE // len(pieces) - size
    for piece in pieces:
        yield piece
        yield (NOISE_LEVEL * rng.standard_normal(gap)).astype(np.float32)


def dense(speech: np.ndarray, hours: int) -> Iterator[np.ndarray]:
    """Yield the speech repeatedly."""
    for _ in range(hours * 3600 * audio.SAMPLE_RATE // len(speech) + 1):
        yield speech


def write(path: Path, blocks: Iterator[np.ndarray]) -> None:
    """Write blocks of (T,) float32 at 16 kHz to a FLAC file."""
    with soundfile.SoundFile(path, "w", audio.SAMPLE_RATE, 1) as file:
        for block in blocks:
            file.write(block)
