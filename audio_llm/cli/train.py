"""`audio-llm train`: train one of the package's own models on packed data."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audio_llm.cli.options import whole_number
from audio_llm.errors import UsageError

_DESCRIPTION = """Train on preprocessed shards that the recipes write. OUT/best is the best model, a model directory for
--model or --corrector-model. KEY=VALUE words override the config file: training.max_steps=2000."""
_GER = """Train a corrector of N-best lists on lists with references: files (HyPoradise JSON, JSON lines) or folders of
packed lists. By default trains LoRA and the noise adapter on a causal language model; --kind phrase trains the phrase
corrector, which needs no language model, in about a minute on a few thousand lists. OUT/best is the model."""
_TOUCHTTS = """Train a part of TouchTTS on the recipe's shards of utterances: its language model (lm), which synthesizes
and recognizes speech, or its flow, which maps tokens to mel spectra. The vocoder has its own command. With --llm
the language model extends a pretrained text model, a local Llama or Qwen folder: use a low learning rate,
such as that of the recipe's talk-llm.yaml."""


_SUMMARIES = {
    "dlm": "the Denoising LM, a corrector",
    "ctc": "the character CTC recognizer",
    "mask": "the mask network, which removes noise",
    "codec": "the codec: speech to one stream of codes and back",
    "vocoder": "the vocoder: mel spectra to waveforms",
    "tokenizer": "the supervised tokenizer of semantic tokens",
    "gense": "GenSE's language models, on shards of tokens",
}


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    train = commands.add_parser("train", help="train a model on packed data")
    models = train.add_subparsers(metavar="MODEL", required=True)
    for name in ("dlm", "ctc"):
        parser = models.add_parser(name, parents=[common], help=_SUMMARIES[name], description=_DESCRIPTION)
        parser.add_argument(
            "words", nargs="+", metavar="DATA|KEY=VALUE", help="folders of training shards, and settings"
        )
        _add_loop_options(parser)
        parser.add_argument("--init-from", metavar="NAME|DIR", help="model to initialize from")
        if name == "ctc":
            parser.add_argument("--dev", metavar="DIR", required=True, help="validation shards")
        parser.set_defaults(run=run, task=name, log_level=logging.INFO, words_anywhere="words")
    for name in ("mask", "codec", "vocoder", "tokenizer", "gense"):
        parser = models.add_parser(name, parents=[common], help=_SUMMARIES[name], description=_DESCRIPTION)
        parser.add_argument(
            "words", nargs="+", metavar="DATA|KEY=VALUE", help="folder of training shards, and settings"
        )
        _add_loop_options(parser)
        parser.add_argument("--init-from", metavar="NAME|DIR", help="model to initialize from")
        parser.add_argument("--dev", metavar="DIR", required=name != "tokenizer", help="validation shards")
        if name in ("mask", "codec", "vocoder"):
            help_ = "tokenizer used as a perceptual loss, to preserve content"
            parser.add_argument("--perceptual-loss", metavar="NAME|DIR", help=help_)
        if name == "tokenizer":
            parser.add_argument(
                "--teacher", metavar="DIR", help="shards with a recognizer's character outputs for DATA"
            )
            parser.add_argument("--ssl", metavar="DIR", help="instead, cluster a layer of this speech model (k-means)")
            parser.add_argument("--layer", type=whole_number(1), default=6, metavar="N", help="with --ssl (6)")
            parser.add_argument("--clusters", type=whole_number(2), default=1024, metavar="K", help="with --ssl (1024)")
        if name == "gense":
            parser.add_argument(
                "--tokenizer", metavar="NAME|DIR", required=True, help="tokenizer of the semantic tokens"
            )
            parser.add_argument("--codec", metavar="NAME|DIR", required=True, help="codec of the acoustic codes")
        chosen = run_tokenizer if name == "tokenizer" else run
        parser.set_defaults(run=chosen, task=name, log_level=logging.INFO, words_anywhere="words")
    touch = models.add_parser(
        "touchtts", parents=[common], help="TouchTTS, on shards of utterances", description=_TOUCHTTS
    )
    touch.add_argument("words", nargs="+", metavar="DATA|KEY=VALUE", help="folders of training shards, and settings")
    touch.add_argument("--part", choices=("lm", "flow"), required=True, help="text to tokens, or tokens to mel spectra")
    touch.add_argument("--dev", nargs="+", metavar="DIR", required=True, help="validation shards")
    touch.add_argument(
        "--tokenizer", metavar="NAME|DIR", required=True, help="tokenizer of the tokens, or its .onnx file"
    )
    touch.add_argument("--variant", metavar="NAME", help="S3Tokenizer variant of an .onnx file, such as v2_25hz")
    touch.add_argument("--init-from", metavar="NAME|DIR", help="model to initialize from")
    touch.add_argument(
        "--llm", metavar="DIR", help="lm: pretrained text model to extend, a Hugging Face model directory"
    )
    _add_loop_options(touch)
    touch.set_defaults(run=run_touchtts, log_level=logging.INFO, words_anywhere="words")
    ger = models.add_parser("ger", parents=[common], help="a corrector of N-best lists", description=_GER)
    ger.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings")
    ger.add_argument("--data", nargs="+", metavar="LISTS", required=True, help="lists with references, packed or not")
    ger.add_argument("--dev", nargs="+", metavar="LISTS", help="validation lists (default: a part of --data)")
    ger.add_argument("--kind", choices=("neural", "phrase"), default="neural", help="corrector (default: neural)")
    ger.add_argument("--llm", metavar="NAME|DIR", help="language model to fine-tune, or a ger model that contains one")
    _add_loop_options(ger)
    ger.set_defaults(run=run_ger, log_level=logging.INFO, words_anywhere="words")


def _add_loop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML settings file (default: built-in settings)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="output folder of the training")
    parser.add_argument("--max-minutes", type=_minutes, metavar="N", help="time limit; continue with --resume")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUT")


def run(arguments: argparse.Namespace) -> int:
    """Train the model that the command names; return the exit status."""
    folders, settings = _folders_and_settings(arguments)
    return _train(arguments, arguments.task, folders, settings)


def run_touchtts(arguments: argparse.Namespace) -> int:
    """Train a part of TouchTTS; return the exit status."""
    if arguments.llm and arguments.part != "lm":
        raise UsageError("--llm is for --part lm", remedy="leave it out")
    arguments.words += [word for word in arguments.dev if "=" in word]  # argparse takes them for folders
    arguments.dev = [word for word in arguments.dev if "=" not in word]
    folders, settings = _folders_and_settings(arguments)
    return _train(arguments, f"touchtts-{arguments.part}", folders, settings)


def run_tokenizer(arguments: argparse.Namespace) -> int:
    """Train the supervised tokenizer, or cluster a speech model; return the exit status."""
    if arguments.ssl:
        return _fit_ssl(arguments)
    if not arguments.dev:
        raise UsageError("no validation data are named", remedy="give --dev DIR, or --ssl DIR for k-means")
    return run(arguments)


def _train(arguments: argparse.Namespace, task: str, data: Sequence[str | Path], settings: Sequence[str]) -> int:
    """Train and print how it ended."""
    from audio_llm.pipeline.train import RunOptions, TrainingParts, train_model

    output = Path(arguments.output)
    names = ("tokenizer", "variant", "codec", "llm", "perceptual_loss", "teacher")
    parts = TrainingParts(**{name: getattr(arguments, name, None) or None for name in names})
    options = RunOptions(
        max_minutes=arguments.max_minutes,
        resume=arguments.resume,
        device=arguments.device,
        init_from=getattr(arguments, "init_from", None),
        overwrite=arguments.overwrite,
    )
    dev = getattr(arguments, "dev", None) or ()
    result = train_model(task, data, output, arguments.config, dev, settings, parts, options)
    _leave_other_processes()
    how = "all steps are done" if result.stopped_by == "steps" else "time limit reached; continue with --resume"
    print(f"{output / 'best'}: best at step {result.best_step} with {result.best_value:.4f}")
    print(f"{result.steps} steps in {result.minutes:.1f} minutes: {how}")
    return 0


def _fit_ssl(arguments: argparse.Namespace) -> int:
    """Cluster a layer of a speech model; the model directory is OUT/best, as of a training."""
    from audio_llm import __version__
    from audio_llm.simulation.speech_pack import SpeechPack
    from audio_llm.tokenizer.ssl_kmeans import fit_ssl_kmeans

    for name in ("teacher", "dev", "max_minutes", "resume", "init_from", "config"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for k-means", remedy="leave it out")
    folder, overrides = _one_folder_and_settings(arguments)
    if overrides:
        raise UsageError(f"k-means has no setting {overrides[0]!r}", remedy="use --layer and --clusters")
    output = Path(arguments.output) / "best"
    if output.exists() and not arguments.overwrite:
        raise UsageError("a model already exists", path=output, remedy="give --overwrite or another folder")
    pack = SpeechPack(folder)
    clustering = fit_ssl_kmeans(
        (pack.pcm(number).astype("float32") / 32768.0 for number in range(len(pack))),
        arguments.ssl,
        output,
        arguments.layer,
        arguments.clusters,
        device=arguments.device,
        provenance={"audio_llm": __version__, "data": [folder.name]},
    )
    used = arguments.clusters - clustering.unused
    print(f"{output}: {used} of {arguments.clusters} clusters in use, {clustering.frames} frames")
    print(f"{clustering.skipped} sounds were too short", file=sys.stderr)
    return 0


def run_ger(arguments: argparse.Namespace) -> int:
    """Train a corrector of N-best lists; return the exit status."""
    settings = [*arguments.words, *arguments.set]
    if arguments.kind == "phrase":
        return _train_phrase(arguments, settings)
    if not arguments.llm:
        raise UsageError("no language model is named", remedy="give --llm NAME|DIR, or --kind phrase")
    return _train(arguments, "ger", arguments.data, settings)


def _train_phrase(arguments: argparse.Namespace, words: list[str]) -> int:
    from audio_llm import __version__
    from audio_llm.ger.phrase import PhraseSettings
    from audio_llm.ger.phrase_training import train_phrase_corrector
    from audio_llm.nbest import read_nbest
    from audio_llm.training.config import load_config

    for name in ("llm", "dev", "max_minutes", "resume"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for --kind phrase", remedy="leave it out")
    folder = Path(arguments.output) / "best"
    if folder.exists() and not arguments.overwrite:
        raise UsageError("a model already exists", path=folder, remedy="give --overwrite or another folder")
    settings = load_config(PhraseSettings, arguments.config, words)
    lists = [nbest for path in arguments.data for nbest in read_nbest(path)]
    corrector = train_phrase_corrector(lists, settings=settings)
    data = [Path(path).name for path in arguments.data]
    corrector.save(folder, {"audio_llm": __version__, "data": data, "lists": len(lists)})
    print(f"{folder}: {len(corrector.knowledge.table)} phrases, margin {corrector.margin:g}")
    return 0


def _one_folder_and_settings(arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    folders, overrides = _folders_and_settings(arguments)
    if len(folders) != 1:
        raise UsageError(f"{len(folders)} folders of data are named", remedy="name the one that holds the data")
    return folders[0], overrides


def _folders_and_settings(arguments: argparse.Namespace) -> tuple[list[Path], list[str]]:
    folders = [Path(word) for word in arguments.words if "=" not in word]
    if not folders:
        raise UsageError("no folder of training data is named", remedy="name it after the model")
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                "no such folder of training data", path=folder, remedy="the recipe's README tells how to make it"
            )
    return folders, [*(word for word in arguments.words if "=" in word), *arguments.set]


def _leave_other_processes() -> None:
    """Close the process group of a distributed training; an open one can abort the program at exit."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of minutes")
    return value
