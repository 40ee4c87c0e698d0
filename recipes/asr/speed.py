"""Speed and memory of whole processes on 20 minutes of speech, in turns, so that all run under the same load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import speech_sets

from audio_llm import audio, hub
from audio_llm.metrics import utterance_errors

PAUSE_S = 0.7  # between two utterances
_FASTER_WHISPER = """
import sys
from faster_whisper import BatchedInferencePipeline, WhisperModel
model = WhisperModel(sys.argv[2], device="cpu", compute_type="int8", cpu_threads=int(sys.argv[3]))
if sys.argv[4] == "batched":
    segments, _ = BatchedInferencePipeline(model).transcribe(sys.argv[1], language="en", beam_size=5, batch_size=8)
else:
    segments, _ = model.transcribe(sys.argv[1], language="en", beam_size=5)
print(" ".join(segment.text.strip() for segment in segments))
"""


def join(data: Path, path: Path, minutes: float = 20.0) -> str:
    """Write LibriSpeech and Kathleen utterances, in turns of one speaker, as one FLAC file; return the reference."""
    sets = speech_sets.recordings(data)
    rows = [*sets["dev-clean-60"], *sets["test-other"], *sets["kathleen"]]
    pieces: list[np.ndarray] = []
    texts: list[str] = []
    length_s = 0.0
    for row in rows:
        if length_s >= minutes * 60:
            break
        waveform = audio.read(row.path)
        pieces += [waveform, np.zeros(round(PAUSE_S * audio.SAMPLE_RATE), np.float32)]
        texts.append(row.text)
        length_s += len(waveform) / audio.SAMPLE_RATE + PAUSE_S
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, np.concatenate(pieces), audio.SAMPLE_RATE)
    return " ".join(texts)


def commands(path: Path, model: str, threads: int) -> dict[str, list[str]]:
    """Return the command of each system."""
    ours = [sys.executable, "-m", "audio_llm", "transcribe", str(path), "--language", "en", "--threads", str(threads)]
    other = [sys.executable, "-c", _FASTER_WHISPER, str(path), str(hub.find_model(model)), str(threads)]
    return {
        "audio-llm": [*ours, "--recognizer", model],
        "faster-whisper": [*other, "sequential"],
        "faster-whisper, batched": [*other, "batched"],
        "pocketsphinx": [*ours, "--recognizer", "sphinx"],
    }


def measure(command: list[str]) -> dict[str, float | str]:
    """Run a command; return its text, wall and CPU seconds, and its peak memory in MB."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command[:4]} ended with {status}")
    seconds = time.monotonic() - begin
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"text": text, "wall_s": seconds, "cpu_s": cpu_s, "peak_mb": usage.ru_maxrss / 1024}


def run(data: Path, output: Path, model: str, threads: int, rounds: int, names: list[str] | None) -> None:
    """Measure all systems in turns; append a line for each run to OUTPUT/speed.jsonl."""
    path = output / "joined.flac"
    reference = join(data, path)
    chosen = {name: command for name, command in commands(path, model, threads).items() if not names or name in names}
    with (output / "speed.jsonl").open("a", encoding="utf-8") as file:
        for number in range(rounds):
            for name, command in chosen.items():
                row = {"system": name, "model": model, "threads": threads, "round": number, **measure(command)}
                (counts,) = utterance_errors([reference], [str(row["text"])])
                row["wer"] = float(counts[:3].sum() / counts[3])
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    f"{name}: {row['wall_s']:.1f} s, {row['cpu_s']:.1f} CPU s, {row['peak_mb']:.0f} MB, "
                    f"WER {100 * row['wer']:.2f} %",
                    flush=True,
                )
