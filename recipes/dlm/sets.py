"""The sets of pairs: their plans and their generated pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import data

from audio_llm.dlm.generate import GenerationConfig, Plan, plan_recordings, plan_speech, read_pairs
from audio_llm.simulation.augment import CLEAN

TUNE_SETS = ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean")
TUNE_NAME = "+".join(TUNE_SETS)
TRAIN_SETS = ("synthetic-train", "touchtts-train", "real-train")  # any of them may be missing
ON_REQUEST = "touchtts-train"  # generated only when it is named
TOUCHTTS_VOICES = ("touchtts:kathleen",)  # a neural voice
SYNTHETIC_TESTS = ("tune", "book", "voice")
LISTED = 100  # hypotheses stored per utterance; the baselines use the first 20


def plans(folder: Path) -> dict[str, Plan]:
    """Return the plans of all sets of pairs: synthetic speech and recordings, for training, tuning and reporting."""
    config = GenerationConfig(nbest=LISTED)
    parts = data.sentences(folder)
    result = {"synthetic-train": plan_speech(parts["train"], config)}
    clean = replace(config, augmentation=CLEAN)
    for name in SYNTHETIC_TESTS:
        voices = (data.HELD_OUT_VOICE,) if name == "voice" else config.voices
        result[f"synthetic-{name}"] = plan_speech(parts[name], replace(clean, voices=voices))
    for name, rows in data.recordings(folder).items():
        result[f"real-{name}"] = plan_recordings([(r.id, r.path, r.text) for r in rows], clean)
    result[ON_REQUEST] = plan_speech(parts["train"], replace(config, voices=TOUCHTTS_VOICES, seed=1))
    return result


def tuning_pairs(output: Path) -> list[dict[str, Any]]:
    """Return the pairs of all tuning sets."""
    return [pair for name in TUNE_SETS for pair in read_set(output, name)]


def read_set(output: Path, name: str) -> list[dict[str, Any]]:
    """Return the generated pairs of a set, without those that failed."""
    folder = output / "pairs" / name
    return [row for row in read_pairs(folder) if "error" not in row] if any(folder.glob("*.ok")) else []
