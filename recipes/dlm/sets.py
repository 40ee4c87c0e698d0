"""The sets of pairs: the plan of each, and what has been made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import data

from audio_llm.dlm.generate import GenerationConfig, Plan, plan_recordings, plan_speech, read_pairs
from audio_llm.simulation.augment import CLEAN

TUNE_SETS = ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean")
TUNE_NAME = "+".join(TUNE_SETS)
TRAIN_SETS = ("synthetic-train", "touchtts-train", "real-train")  # of which any may be missing
ON_REQUEST = "touchtts-train"  # made where it is named alone
TOUCHTTS_VOICES = ("touchtts:kathleen",)  # a network's voice beside those of programs
SYNTHETIC_TESTS = ("tune", "book", "voice")
LISTED = 100  # hypotheses kept of each utterance; 20 of them are the list that the baselines choose from


def plans(folder: Path) -> dict[str, Plan]:
    """Return the plan of every set of pairs: synthetic speech and recordings, for training, tuning and reporting."""
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
    """Return the pairs of a set that were made, those that failed left out."""
    folder = output / "pairs" / name
    return [row for row in read_pairs(folder) if "error" not in row] if any(folder.glob("*.ok")) else []
