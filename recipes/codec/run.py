"""The recipe of the shared tokenizer and codec; each stage is a function."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import evaluate
import noisy_sets
from finish import finish

from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.codec.train import CodecTrainingConfig, train_codec
from audio_llm.tokenizer.s3 import load_perceptual_loss
from audio_llm.tokenizer.s3_train import S3TrainingConfig, pack_teacher, train_s3
from audio_llm.training.config import load_config

HERE = Path(__file__).parent
RECIPE = "recipes/codec"
TEACHER = "ctc-small"  # teacher of the tokenizer
NEVER_DEGRADED = {"clean_prob": 1.0, "silent_prob": 0.0, "room_prob": 0.0, "clipped_prob": 0.0, "narrow_prob": 0.0}


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="pack: folder with audio/speech and audio/noise")
    parser.add_argument("--output", type=Path, default=Path("exp/codec"), help="folder of all outputs")
    parser.add_argument("--name", help="folder of this training (default: named after the stage)")
    parser.add_argument("--config", type=Path, help="settings of a training (default: config/STAGE.yaml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that override the file")
    parser.add_argument("--start", type=Path, help="model to initialize from")
    parser.add_argument("--listener", help="codec: tokenizer used as a perceptual loss, to preserve content")
    parser.add_argument("--max-minutes", type=float, help="time limit of a training")
    parser.add_argument("--resume", action="store_true", help="continue a training")
    parser.add_argument("--models", nargs="+", default=[], help="codec-report, tokenizer-report: models to compare")
    parser.add_argument("--limit", type=int, default=200, help="reports: maximum number of utterances")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    STAGES[arguments.stage](arguments)
    return 0


def pack(arguments: argparse.Namespace) -> None:
    """Pack speech and noise of the training, validation and test parts (half a minute)."""
    noisy_sets.pack(arguments.data, arguments.output / "packed")


def teach(arguments: argparse.Namespace) -> None:
    """Store a recognizer's frame-level character probabilities, as the teacher of the tokenizer."""
    recognizer = CtcRecognizer.load(TEACHER, search=False)
    count = pack_teacher(arguments.output / "packed" / "train", recognizer, arguments.output / "teacher")
    logging.info("character probabilities of %d utterances", count)


def tokenizer(arguments: argparse.Namespace) -> None:
    """Train the tokenizer on clean and degraded speech."""
    _train_tokenizer(arguments, arguments.name or "tokenizer", [])


def tokenizer_clean(arguments: argparse.Namespace) -> None:
    """Train the same tokenizer without noise and reverberation, for comparison."""
    never = [f"degraded.{key}={value}" for key, value in NEVER_DEGRADED.items()]
    _train_tokenizer(arguments, arguments.name or "tokenizer-clean", never)


def codec(arguments: argparse.Namespace) -> None:
    """Train a codec; `--set model.quantizer=vq --name codec-vq` trains another variant."""
    config = load_config(CodecTrainingConfig, arguments.config or HERE / "config" / "codec.yaml", arguments.set)
    output = arguments.output / (arguments.name or "codec")
    train, tune = (arguments.output / "packed" / part for part in ("train", "tune"))
    perceptual_loss = load_perceptual_loss(arguments.listener) if arguments.listener else None
    train_codec(
        train, tune, output, config, start_from=arguments.start, perceptual_loss=perceptual_loss, **_limits(arguments)
    )


def finish_tokenizer(arguments: argparse.Namespace) -> None:
    """Write `tokenizer-s3-small` from the trained tokenizer: half precision, with its card."""
    trained = arguments.output / (arguments.name or "tokenizer") / "best"
    card = HERE / "cards" / "tokenizer-s3-small.md"
    finish(trained, arguments.output / "tokenizer-s3-small", card, RECIPE)


def finish_codec(arguments: argparse.Namespace) -> None:
    """Write `codec-small` from the trained codec: half precision, with its card."""
    trained = arguments.output / (arguments.name or "codec") / "best"
    finish(trained, arguments.output / "codec-small", HERE / "cards" / "codec-small.md", RECIPE)


def report_tokenizer(arguments: argparse.Namespace) -> None:
    """Print the robustness of tokenizers to noise: word error rate, changed ids, entropy."""
    models = arguments.models or [str(arguments.output / name / "best") for name in ("tokenizer", "tokenizer-clean")]
    for line in evaluate.tokenizer_table(models, arguments.output / "packed" / "test", arguments.limit):
        print(line, flush=True)


def report_codec(arguments: argparse.Namespace) -> None:
    """Print the quality of codecs on unseen speakers, and the use of their codes."""
    models = arguments.models or [str(arguments.output / "codec" / "best")]
    for line in evaluate.codec_table(models, arguments.output / "packed", arguments.limit):
        print(line, flush=True)


STAGES = {
    "pack": pack,
    "teach": teach,
    "tokenizer": tokenizer,
    "tokenizer-clean": tokenizer_clean,
    "codec": codec,
    "tokenizer-finish": finish_tokenizer,
    "codec-finish": finish_codec,
    "tokenizer-report": report_tokenizer,
    "codec-report": report_codec,
}


def _train_tokenizer(arguments: argparse.Namespace, name: str, more: list[str]) -> None:
    path = arguments.config or HERE / "config" / "tokenizer.yaml"
    config = load_config(S3TrainingConfig, path, [*more, *arguments.set])
    teacher = arguments.output / "teacher"
    if not teacher.exists():
        config = replace(config, teacher_weight=0.0)
    train_s3(
        arguments.output / "packed" / "train",
        arguments.output / "packed" / "tune",
        arguments.output / name,
        config,
        teacher=teacher if teacher.exists() else None,
        start_from=arguments.start,
        **_limits(arguments),
    )


def _limits(arguments: argparse.Namespace) -> dict[str, float | bool | None]:
    return {"max_minutes": arguments.max_minutes, "resume": arguments.resume}


if __name__ == "__main__":
    raise SystemExit(main())
