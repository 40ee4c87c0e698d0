"""Target-speech hearing's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import data
import teacher

from audio_llm.training.config import load_config
from audio_llm.tse.models import load_hearing, load_separator
from audio_llm.tse.train_hearing import HearingTrainingConfig, train_hearing
from audio_llm.tse.train_separator import SeparatorTrainingConfig, train_separator

STAGES = ("pack", "teach", "separate", "choose", "hear")


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of a training")
    parser.add_argument("--data", type=Path, help="pack: folder with audio/speech, audio/noise and audio/rir")
    parser.add_argument("--teacher", type=Path, help="teach: Resemblyzer's pretrained.pt; default: the installed one")
    parser.add_argument("--output", type=Path, default=Path("exp/tse"))
    parser.add_argument("--start", type=Path, help="separate, hear: model to start from")
    parser.add_argument("--config", type=Path, help="YAML file with settings of a training")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    packed = arguments.output / "packed"
    if arguments.stage == "pack":
        data.pack(arguments.data, packed)
    elif arguments.stage == "teach":
        teacher.teach(arguments.teacher, packed)
    elif arguments.stage in ("choose", "hear"):
        training = load_config(HearingTrainingConfig, arguments.config, arguments.set)
        train_choice(arguments, packed, training)
    elif arguments.stage == "separate":
        config = load_config(SeparatorTrainingConfig, arguments.config, arguments.set)
        limits = {"max_minutes": arguments.max_minutes, "resume": arguments.resume}
        parts = packed / "train", packed / "tune"
        start = load_separator(arguments.start) if arguments.start else None
        logging.info("%s", train_separator(*parts, arguments.output / "separator", config, start=start, **limits))
    return 0


def train_choice(arguments: argparse.Namespace, packed: Path, config: HearingTrainingConfig) -> None:
    """Train the choice on made streams (`choose`), or on the trunk's with the trunk or without (`hear`)."""
    output, stage = arguments.output, arguments.stage
    limits = {"max_minutes": arguments.max_minutes, "resume": arguments.resume}
    parts = packed / "train", packed / "tune", output / stage
    if stage == "choose":
        result = train_hearing(*parts, replace(config, streams="made"), teacher=teacher.read_teacher(packed), **limits)
    else:
        start = load_hearing(arguments.start or output / "choose" / "best")
        trunk = None if arguments.start else load_separator(output / "separator" / "best")
        result = train_hearing(*parts, config, start=start, trunk=trunk, **limits)
    logging.info("%s", result)


if __name__ == "__main__":
    sys.exit(main())
