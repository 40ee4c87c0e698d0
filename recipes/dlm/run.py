"""The Denoising LM's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import data

from audio_llm.dlm.generate import GenerationConfig, Plan, generate, plan_recordings, plan_speech
from audio_llm.dlm.pairs import CLEAN

SYNTHETIC_TESTS = ("tune", "book", "voice")


def plans(folder: Path) -> dict[str, Plan]:
    """Return the plan of every set of pairs: synthetic speech and recordings, for training, tuning and reporting."""
    config = GenerationConfig()
    parts = data.sentences(folder)
    result = {"synthetic-train": plan_speech(parts["train"], config)}
    clean = replace(config, augmentation=CLEAN)
    for name in SYNTHETIC_TESTS:
        voices = (data.HELD_OUT_VOICE,) if name == "voice" else config.voices
        result[f"synthetic-{name}"] = plan_speech(parts[name], replace(clean, voices=voices))
    for name, rows in data.recordings(folder).items():
        result[f"real-{name}"] = plan_recordings([(r.id, r.path, r.text) for r in rows], clean)
    return result


def main() -> int:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["generate"])
    parser.add_argument("--data", type=Path, required=True, help="folder with text/, audio/ and nbest/")
    parser.add_argument("--output", type=Path, default=Path("exp/dlm"))
    parser.add_argument("--sets", nargs="*", help="which sets of pairs, in this order (default: all)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-minutes", type=float)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    everything = plans(arguments.data)
    for name in arguments.sets or everything:
        plan = everything[name]
        report = generate(
            plan,
            arguments.output / "pairs" / name,
            arguments.workers,
            arguments.max_minutes,
            progress=lambda done, all_, name=name: logging.info("%s: %d of %d shards", name, done, all_),
        )
        logging.info("%s: %s", name, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
