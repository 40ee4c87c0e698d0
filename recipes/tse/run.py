"""Target-speech hearing's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import data

from audio_llm.training.config import load_config
from audio_llm.tse.train_separator import SeparatorTrainingConfig, train_separator

STAGES = ("pack", "separate")


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="separate: settings of the training")
    parser.add_argument("--data", type=Path, help="pack: folder with audio/speech, audio/noise and audio/rir")
    parser.add_argument("--output", type=Path, default=Path("exp/tse"))
    parser.add_argument("--config", type=Path, help="separate: YAML file")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    packed = arguments.output / "packed"
    if arguments.stage == "pack":
        data.pack(arguments.data, packed)
    elif arguments.stage == "separate":
        config = load_config(SeparatorTrainingConfig, arguments.config, arguments.set)
        limits = {"max_minutes": arguments.max_minutes, "resume": arguments.resume}
        parts = packed / "train", packed / "tune"
        logging.info("%s", train_separator(*parts, arguments.output / "separator", config, **limits))
    return 0


if __name__ == "__main__":
    sys.exit(main())
