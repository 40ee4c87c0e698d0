"""Hallucinated words in sound without speech: noise recordings, silence, white noise and hum."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm import audio
from audio_llm.asr.whisper import WhisperRecognizer

APART = {"babble": "babble", "public address": "announcements", "lets_go_fishin": "song"}  # which are speech
HUMAN = ("baby_cry", "person_sneeze")
SECONDS = 60.0  # of each generated sound


@dataclass(frozen=True)
class Sound:
    """A recording without speech, or of a `kind` that is reported separately."""

    id: str
    kind: str
    waveform: np.ndarray


def sounds(data: Path) -> Iterator[Sound]:
    """Yield all noise recordings and the generated sounds."""
    for path in sorted((data / "audio" / "noise").glob("*/manifest.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            kind = APART.get(row["label"]) or APART.get(row["id"])
            kind = kind or ("human" if row["label"] in HUMAN else "music" if row["label"] == "music" else "noise")
            yield Sound(row["id"], kind, audio.read(data / "audio" / row["path"]))
    rng = np.random.default_rng(0)
    size = round(SECONDS * audio.SAMPLE_RATE)
    time_s = np.arange(size) / audio.SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time_s) / k for k in (1, 2, 3, 5))
    yield Sound("silence", "silence", np.zeros(size, np.float32))
    yield Sound("white", "white noise", (0.05 * rng.standard_normal(size)).astype(np.float32))
    yield Sound("hum", "hum", (0.05 * hum).astype(np.float32))


def run(data: Path, recognizer: WhisperRecognizer) -> None:
    """Print seconds and words of every kind, and every text."""
    seconds: dict[str, float] = {}
    words: dict[str, int] = {}
    for sound in sounds(data):
        seconds[sound.kind] = seconds.get(sound.kind, 0.0) + len(sound.waveform) / audio.SAMPLE_RATE
        for stretch in recognizer.recognize_stream([sound.waveform]):
            print(f"{sound.kind}, {sound.id}: {stretch.nbest.best!r} {stretch.rejected} {stretch.notes}", flush=True)
            if not stretch.rejected:
                words[sound.kind] = words.get(sound.kind, 0) + len(stretch.nbest.best.split())
    print("\n| sound | minutes | words |\n|---|---|---|")
    for kind, total in sorted(seconds.items()):
        print(f"| {kind} | {total / 60:.1f} | {words.get(kind, 0)} |")
