"""Evaluation sets of the recognizer: recordings with texts, clean and with added noise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import noisy_sets
import speech_sets

from audio_llm import audio
from audio_llm.simulation.mono import add_noise

SEED = 0
WINDOW_S = 30.0  # of Whisper
PAUSE_S = 0.5  # between joined utterances
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


def packed(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Join neighbors, with pauses of 0.5 s between them, to windows of up to 30 s."""
    held: list[Utterance] = []
    for utterance in utterances:
        if held and _length_s([*held, utterance]) > WINDOW_S:
            yield _joined(held)
            held = []
        held.append(utterance)
    if held:
        yield _joined(held)


def _length_s(utterances: Sequence[Utterance]) -> float:
    samples = sum(utterance.waveform.size for utterance in utterances)
    return samples / audio.SAMPLE_RATE + PAUSE_S * (len(utterances) - 1)


def _joined(utterances: Sequence[Utterance]) -> Utterance:
    pause = np.zeros(round(PAUSE_S * audio.SAMPLE_RATE), np.float32)
    parts = [part for utterance in utterances for part in (pause, utterance.waveform)][1:]
    text = " ".join(utterance.text for utterance in utterances)
    return Utterance(f"{utterances[0].id} and {len(utterances) - 1} more", text, np.concatenate(parts))


def _common_voice(data: Path) -> Iterator[Utterance]:
    path = data / "audio" / "speech" / "common_voice_v1_dev" / "manifest.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "dev" and row["text"].strip():
            yield Utterance(row["id"], row["text"], audio.read(data / "audio" / row["path"]))
