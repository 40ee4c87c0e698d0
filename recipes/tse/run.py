"""Target-speech hearing's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import data
import evaluate
import report
import teacher

from audio_llm.simulation.scene_plan import SceneConfig
from audio_llm.simulation.sources import read_sources
from audio_llm.training.config import load_config
from audio_llm.tse.models import load_hearing, load_model, load_separator
from audio_llm.tse.teacher_vectors import read_vectors
from audio_llm.tse.train_hearing import HearingTrainingConfig, train_hearing
from audio_llm.tse.train_separator import SeparatorTrainingConfig, train_separator

STAGES = ("pack", "teach", "separate", "choose", "hear", "evaluate", "report")


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
    parser.add_argument("--model", default="tse-small", help="evaluate: name or folder of the model")
    parser.add_argument("--scenes", type=int, default=1000, help="evaluate: how many")
    parser.add_argument("--part", default="0/1", help="evaluate: N/COUNT, this one of several processes")
    parser.add_argument("--measured-room", action="store_true", help="evaluate: in the real room")
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
    elif arguments.stage == "evaluate":
        measure(arguments, packed)
    elif arguments.stage == "report":
        write(arguments)
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


def measure(arguments: argparse.Namespace, packed: Path) -> None:
    """Measure a model on the test's scenes; rows that are there already stay."""
    sources = read_sources(packed / "test")
    people = read_vectors(packed / "test", sources.voices)
    judge = evaluate.Judge(load_model(arguments.model), teacher.read_teacher(packed), people)
    number, count = (int(part) for part in arguments.part.split("/"))
    scenes = SceneConfig(measured_room_share=1.0 if arguments.measured_room else 0.0)
    name = f"{'room' if arguments.measured_room else 'scenes'}-{number}.jsonl"
    path = arguments.output / "measures" / name
    evaluate.evaluate(judge, sources, scenes, arguments.scenes, path, (number, count))


def write(arguments: argparse.Namespace) -> None:
    """Write tables and pictures of what was measured."""
    folder = arguments.output / "measures"
    for name in ("scenes", "room"):
        rows = [row for path in sorted(folder.glob(f"{name}-*.jsonl")) for row in evaluate.read_rows(path)]
        if rows:
            report.write_report(rows, folder / f"{name}.md")
            report.draw(rows, folder / f"{name}.png")
    logs = {path.parent.name: path for path in sorted(arguments.output.glob("curve-*/train.jsonl"))}
    if logs:
        report.draw_curves(logs, folder / "curves.png")


if __name__ == "__main__":
    sys.exit(main())
