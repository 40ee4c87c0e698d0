"""Measures of enhanced speech: PESQ, STOI, ESTOI, SI-SDR and DNSMOS."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audio_llm import audio
from audio_llm.errors import DataError
from audio_llm.sound_metrics import dnsmos, pesq_wb, si_sdr_db, stoi

REPORTED = "voicebank_demand_few"  # never trained or tuned on


@dataclass(frozen=True)
class Pair:
    """A noisy recording and its clean reference.

    Attributes:
        id: Its name.
        noisy: (T,) float32 at 16 kHz.
        clean: (T,) float32 at 16 kHz.
        words: Text of the utterance.
    """

    id: str
    noisy: np.ndarray
    clean: np.ndarray
    words: str


@dataclass(frozen=True)
class Figures:
    """Figures of one pair, or means over several."""

    pesq_wb: float
    stoi: float
    estoi: float
    si_sdr_db: float
    sig: float
    bak: float
    ovrl: float


def reported_pairs(data: Path) -> list[Pair]:
    """Return the pairs of VoiceBank-DEMAND."""
    path = data / "audio" / "speech" / REPORTED / "manifest.jsonl"
    if not path.exists():
        raise DataError("no manifest", path=path, remedy="see the recipe's README for the layout of a data folder")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Pair(row["id"], *(audio.read(data / "audio" / row[key]) for key in ("noisy_path", "path")), row["text"] or "")
        for row in rows
    ]


def measure(pair: Pair, enhanced: np.ndarray) -> Figures:
    """Return the figures of one pair."""
    both = torch.from_numpy(np.stack([enhanced, pair.clean]))
    scores = dnsmos(enhanced)
    return Figures(
        pesq_wb(pair.clean, enhanced),
        stoi(pair.clean, enhanced),
        stoi(pair.clean, enhanced, extended=True),
        float(si_sdr_db(both[0], both[1])),
        scores.sig,
        scores.bak,
        scores.ovrl,
    )
