"""What the recognizer's figures are measured on: recordings with texts, as they are and with noise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import noisy_sets
import speech_sets

from audio_llm import audio
from audio_llm.simulation.mono import add_noise

SEED = 0
SETS = ("test-other", "test-other-10db", "test-other-5db", "dev-clean-60", "kathleen", "speechocean", "common-voice")
TUNING = ("tune-kathleen", "tune-dev-clean")  # for choices, never reported


@dataclass(frozen=True)
class Utterance:
    """A recording with its text; `waveform` is (T,) float32 at 16 kHz."""

    id: str
    text: str
    waveform: np.ndarray


def utterances(data: Path, name: str) -> Iterator[Utterance]:
    """Yield the utterances of a set of `SETS` or `TUNING`, a pure function of the data."""
    if name == "common-voice":
        yield from _common_voice(data)
        return
    base, _, condition = name.partition("-10db") if name.endswith("-10db") else name.partition("-5db")
    snr_db = 10.0 if name.endswith("-10db") else 5.0 if name.endswith("-5db") else None
    del condition
    noises = list(noisy_sets.noises(data, "test")) if snr_db is not None else []
    rng = np.random.default_rng(SEED)
    for recording in speech_sets.recordings(data)[base]:
        waveform = audio.read(recording.path)
        if snr_db is not None:
            waveform = add_noise(waveform, noises[int(rng.integers(len(noises)))], snr_db)
        yield Utterance(recording.id, recording.text, waveform)


def _common_voice(data: Path) -> Iterator[Utterance]:
    path = data / "audio" / "speech" / "common_voice_v1_dev" / "manifest.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "dev" and row["text"].strip():
            yield Utterance(row["id"], row["text"], audio.read(data / "audio" / row["path"]))
