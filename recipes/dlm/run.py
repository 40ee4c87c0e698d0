"""The Denoising LM's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import data

from audio_llm.dlm.generate import GenerationConfig, Plan, generate, plan_recordings, plan_speech, read_pairs
from audio_llm.dlm.pack import pack
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


def stage_generate(folder: Path, output: Path, sets: list[str] | None, workers: int, max_minutes: float | None) -> None:
    """Make the pairs of the named sets, in that order."""
    everything = plans(folder)
    for name in sets or everything:
        report = generate(
            everything[name],
            output / "pairs" / name,
            workers,
            max_minutes,
            progress=lambda done, planned, name=name: logging.info("%s: %d of %d shards", name, done, planned),
        )
        logging.info("%s: %s", name, report)


def stage_pack(folder: Path, output: Path, max_texts: int | None) -> None:
    """Pack the training and tuning pairs that are there, and the other training sentences."""
    pairs = [*_pairs(output, "synthetic-train"), *_pairs(output, "real-train")]
    tune = [pair for name in ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean") for pair in _pairs(output, name)]
    texts = [sentence.words for sentence in data.sentences(folder)["train"]][:max_texts]
    data.check_no_leak([*texts, *(pair["reference"] for pair in pairs)], folder)
    pack(pairs, texts, tune, output / "packed")
    logging.info("packed %d pairs, %d texts, %d tuning pairs", len(pairs), len(texts), len(tune))


def _pairs(output: Path, name: str) -> list[dict[str, Any]]:
    folder = output / "pairs" / name
    return [row for row in read_pairs(folder) if "error" not in row] if any(folder.glob("*.ok")) else []


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["generate", "pack"])
    parser.add_argument("--data", type=Path, required=True, help="folder with text/, audio/ and nbest/")
    parser.add_argument("--output", type=Path, default=Path("exp/dlm"))
    parser.add_argument("--sets", nargs="*", help="generate: which sets of pairs, in this order (default: all)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--max-texts", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.stage == "generate":
        stage_generate(arguments.data, arguments.output, arguments.sets, arguments.workers, arguments.max_minutes)
    elif arguments.stage == "pack":
        stage_pack(arguments.data, arguments.output, arguments.max_texts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
