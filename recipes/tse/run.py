"""The recipe of target-speaker extraction: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import calibrate
import data
import device
import evaluate
import report
import smoke
import teacher

from audio_llm import cli, hub
from audio_llm.simulation.rendered import RenderConfig, render_rooms
from audio_llm.simulation.scene_plan import SceneConfig
from audio_llm.simulation.sources import read_sources
from audio_llm.training.config import config_to_dict, load_config
from audio_llm.tse.extract import extract
from audio_llm.tse.models import SEPARATOR, load_model, load_separator, load_speaker, load_target_speaker, save_model
from audio_llm.tse.teacher_vectors import read_vectors
from audio_llm.tse.train_joint import JointTrainingConfig, train_joint
from audio_llm.tse.train_separator import SeparatorTrainingConfig, train_separator
from audio_llm.tse.train_speaker import SpeakerTrainingConfig, train_speaker

SETTINGS = Path(__file__).parent / "config"
STORED = Path(__file__).parent / "separator"  # weights of the training in progress
_ON_DEVICE = 300  # scenes
_CALIBRATION_ENROLLMENTS = 300  # for the level below which no frontal speaker is reported
BINAURAL = Path(__file__).parents[2] / "samples" / "binaural"


def main() -> int:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--data", type=Path, help="pack: folder with audio/speech, audio/noise and audio/rir")
    parser.add_argument("--output", type=Path, default=Path("exp/tse"), help="folder of all outputs")
    parser.add_argument("--teacher", type=Path, help="teach: Resemblyzer's pretrained.pt; default: the installed one")
    parser.add_argument("--config", type=Path, help=f"settings of a training (default: {SETTINGS.name}/STAGE.yaml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that override the file's")
    parser.add_argument("--start", type=Path, help="speaker, separate, hear: model to initialize from")
    parser.add_argument(
        "--trunk", type=Path, help="hear: separator instead of that model's (default: the output of `separate`)"
    )
    parser.add_argument("--max-minutes", type=float, help="time limit of a training")
    parser.add_argument("--resume", action="store_true", help="resume a training")
    parser.add_argument(
        "--model", help="finish: default the output of `hear`; evaluate, device: default the output of `finish`"
    )
    parser.add_argument("--scenes", type=int, default=1000, help="evaluate: number of scenes")
    parser.add_argument("--part", default="0/1", help="evaluate: N/COUNT, part N of COUNT processes")
    parser.add_argument("--measured-room", action="store_true", help="evaluate: in a measured room")
    parser.add_argument("--shards", type=int, default=60, help="render: number of shards, 24 rooms each")
    parser.add_argument("--processes", type=int, default=1, help="render: number of worker processes")
    parser.add_argument("--smoke", action="store_true", help="all: tiny, on the sample recordings")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.stage != "all":
        STAGES[arguments.stage](arguments)
        return 0
    for name, run in STAGES.items():
        logging.info("stage %s", name)
        if arguments.smoke:
            arguments.config, arguments.set, arguments.scenes = smoke.CONFIG, smoke.SETTINGS.get(name, []), 3
        run(arguments)
    return 0


def pack(arguments: argparse.Namespace) -> None:
    """Pack speech, noise and heads of the training, development and test parts."""
    if arguments.smoke:
        smoke.pack(arguments.output / "packed")
    else:
        data.pack(arguments.data, arguments.output / "packed")


def render(arguments: argparse.Namespace) -> None:
    """Render rooms with talkers, from which `separate` mixes its scenes; existing shards are kept."""
    packed = arguments.output / "packed"
    config, shards = smoke.ROOMS, 1
    if not arguments.smoke:
        config = load_config(RenderConfig, _settings(arguments, "render"), arguments.set)
        shards = arguments.shards
    packs = [packed / name for name in ("train", "extra") if (packed / name).exists()]
    rooms = render_rooms(packs, config, arguments.output / "rendered", shards, arguments.processes)
    logging.info("%d rooms", rooms)


def teach(arguments: argparse.Namespace) -> None:
    """Add the teacher's vectors to the packs."""
    if not arguments.smoke:
        teacher.teach(arguments.teacher, arguments.output / "packed")


def learn_voices(arguments: argparse.Namespace) -> None:
    """Train the small speaker encoder."""
    config = load_config(SpeakerTrainingConfig, _settings(arguments, "speaker"), arguments.set)
    known = teacher.read_teacher(arguments.output / "packed")
    start = load_speaker(arguments.start) if arguments.start else None
    output = arguments.output / "speaker"
    logging.info("%s", train_speaker(*_parts(arguments), known, output, config, start=start, **_limits(arguments)))


def separate(arguments: argparse.Namespace) -> None:
    """Train the separator, on scenes mixed from rendered rooms if there are any."""
    config = load_config(SeparatorTrainingConfig, _settings(arguments, "separate"), arguments.set)
    rooms = arguments.output / "rendered"
    if config.rendered is None and not config.front_weight and rooms.is_dir():
        config = replace(config, rendered=rooms)
    start = load_separator(arguments.start) if arguments.start else None
    output = arguments.output / "separator"
    logging.info("%s", train_separator(*_parts(arguments), output, config, start=start, **_limits(arguments)))


def store(arguments: argparse.Namespace) -> None:
    """Store the best separator in the recipe's folder, in half precision, for `separate --start` elsewhere."""
    if arguments.smoke:
        return
    folder = arguments.output / "separator"
    best, trained = load_separator(folder / "best"), hub.model_info(folder / "best")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    validations = [row for row in rows if "validation" in row]
    reached = max(validations, key=lambda row: row["validation"]["si_sdri_db"])
    training = trained.provenance["training"]
    hours = reached["step"] * training["batch_scenes"] * training["scenes"]["seconds"] / 3600
    tensors = {name: tensor.half() for name, tensor in best.state_dict().items()}
    card = (
        "# A separator in training\n\nSeparates the talkers of a binaural mixture, one per stream. "
        f"{reached['step']} steps, {hours:.1f} hours of scenes; {reached['validation']['si_sdri_db']:.2f} dB SI-SDR "
        "improvement on the validation scenes of its settings. `separate --start` continues from it; the recipe's "
        "README names the data and their licenses.\n"
    )
    provenance = {
        **trained.provenance,
        "steps": reached["step"],
        "hours": round(hours, 2),
        "validation": validations[-40:],
    }
    hub.save_model(STORED, config_to_dict(best.config), tensors, SEPARATOR, card, provenance)


def train_selector(arguments: argparse.Namespace) -> None:
    """Train the speaker selection on synthetic streams."""
    config = load_config(JointTrainingConfig, _settings(arguments, "choose"), arguments.set)
    known = load_speaker(arguments.output / "speaker" / "best")
    output = arguments.output / "choose"
    config = replace(config, streams="synthetic")
    logging.info("%s", train_joint(*_parts(arguments), output, config, speaker=known, **_limits(arguments)))


def train_joint_stage(arguments: argparse.Namespace) -> None:
    """Train separation, enrollment and selection jointly."""
    config = load_config(JointTrainingConfig, _settings(arguments, "hear"), arguments.set)
    start = load_target_speaker(arguments.start or arguments.output / "choose" / "best")
    default_separator = None if arguments.start else arguments.output / "separator" / "best"
    separator = load_separator(arguments.trunk or default_separator) if arguments.trunk or default_separator else None
    output = arguments.output / "hear"
    logging.info(
        "%s", train_joint(*_parts(arguments), output, config, start=start, separator=separator, **_limits(arguments))
    )


def measure(arguments: argparse.Namespace) -> None:
    """Evaluate a model on the test scenes; existing rows are kept."""
    packed = arguments.output / "packed"
    sources = read_sources(packed / "test")
    speaker_vectors = read_vectors(packed / "test", sources.voices)
    named = arguments.model or arguments.output / "tse-small"
    model = load_model(named)
    evaluator = evaluate.Evaluator(model, teacher.read_teacher(packed), speaker_vectors)
    number, count = (int(part) for part in arguments.part.split("/"))
    scenes = SceneConfig(measured_room_prob=1.0 if arguments.measured_room else 0.0)
    name = f"{'room' if arguments.measured_room else 'scenes'}-{number}.jsonl"
    path = arguments.output / "measures" / name
    measures = functools.partial(evaluate.measure, evaluator)
    evaluate.evaluate(measures, hub.fingerprint(named), sources, scenes, arguments.scenes, path, (number, count))


def measure_device(arguments: argparse.Namespace) -> None:
    """Evaluate an exported model on the first test scenes with the realtime engine."""
    folder = Path(arguments.model or arguments.output / "tse-small")
    path = arguments.output / "measures" / f"device-{folder.name}.jsonl"
    sources = read_sources(arguments.output / "packed" / "test")
    measure_scene = device.Device(folder).measure
    fingerprint = json.loads((folder / "tse.json").read_text(encoding="utf-8"))["model"]["fingerprint"]
    evaluate.evaluate(measure_scene, fingerprint, sources, SceneConfig(), min(arguments.scenes, _ON_DEVICE), path)


def write(arguments: argparse.Namespace) -> None:
    """Write tables and figures of the evaluations, of `bench/*.json` and of the trainings in `curve-*`."""
    folder = arguments.output / "measures"
    for name in ("scenes", "room"):
        rows = [row for path in sorted(folder.glob(f"{name}-*.jsonl")) for row in evaluate.read_rows(path)]
        if rows:
            report.write_report(rows, folder / f"{name}.md")
            report.draw(rows, folder / f"{name}.png")
    devices = {path.stem.partition("-")[2]: evaluate.read_rows(path) for path in sorted(folder.glob("device-*.jsonl"))}
    if devices:
        report.write_devices(devices, folder / "device.md")
    sounds = {name: BINAURAL / f"{name}.flac" for name in ("mixture", "target", "enrollment")}
    sounds["extracted"] = folder / "extracted.flac"
    model = arguments.model or arguments.output / "tse-small"
    extract(sounds["mixture"], sounds.pop("enrollment"), sounds["extracted"], model=model)
    report.draw_spectrograms(sounds, folder / "spectrograms.png")
    runs = {path.stem.replace("-", " "): path for path in sorted((arguments.output / "bench").glob("*.json"))}
    if runs:
        report.draw_latency(runs, folder / "latency.png")
    logs = {path.parent.name: path for path in sorted(arguments.output.glob("curve-*/train.jsonl"))}
    if logs:
        report.draw_curves(logs, folder / "curves.png")


def finish(arguments: argparse.Namespace) -> None:
    """Package `tse-small`: the trained networks in half precision, and their ONNX files."""
    folder, trained = arguments.output / "tse-small", _model(arguments)
    minutes = {path.parent.name: _last_minutes(path) for path in sorted(arguments.output.glob("*/train.jsonl"))}
    provenance = {"recipe": "recipes/tse", "minutes": minutes, "training": hub.model_info(trained).provenance}
    network = load_target_speaker(trained)
    tuning = read_sources(arguments.output / "packed" / "tune")
    level_db = calibrate.least_frontal_level_db(network, tuning, min(_CALIBRATION_ENROLLMENTS, arguments.scenes))
    network.config = replace(network.config, least_front_db=round(level_db, 1))
    save_model(folder, network, "# tse-small\n", provenance)
    if cli.main(["export", "tse", "--model", str(folder), "-o", str(folder), "--overwrite"]):
        raise SystemExit(1)


def _last_minutes(path: Path) -> float:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return float(max(row.get("minutes", 0.0) for row in rows))


STAGES = {
    "pack": pack,
    "render": render,
    "teach": teach,
    "speaker": learn_voices,
    "separate": separate,
    "store": store,
    "choose": train_selector,
    "hear": train_joint_stage,
    "finish": finish,
    "evaluate": measure,
    "device": measure_device,
    "report": write,
}


def _settings(arguments: argparse.Namespace, stage: str) -> Path:
    return arguments.config or SETTINGS / f"{stage}.yaml"


def _parts(arguments: argparse.Namespace) -> tuple[Path, Path]:
    return arguments.output / "packed" / "train", arguments.output / "packed" / "tune"


def _limits(arguments: argparse.Namespace) -> dict[str, float | bool | None]:
    return {"max_minutes": arguments.max_minutes, "resume": arguments.resume}


def _model(arguments: argparse.Namespace) -> str | Path:
    return arguments.model or arguments.output / "hear" / "best"


if __name__ == "__main__":
    sys.exit(main())
