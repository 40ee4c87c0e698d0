"""`audio-llm train`: train one of the package's own models on packed data."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.cli.options import whole_number
from audio_llm.errors import UsageError

if TYPE_CHECKING:
    from audio_llm.training.loop import TrainingResult
    from audio_llm.training.perceptual import PerceptualLoss

_DESCRIPTION = """Train on preprocessed shards that the recipes write. OUT/best is the best model, a model directory for
--model or --corrector-model. KEY=VALUE words override the config file: training.max_steps=2000."""
_GER = """Train a corrector of N-best lists on lists with references: files (HyPoradise JSON, JSON lines) or folders of
packed lists. By default trains LoRA and the noise adapter on a causal language model; --kind phrase trains the phrase
corrector, which needs no language model, in about a minute on a few thousand lists. OUT/best is the model."""
_TOUCHTTS = """Train a part of TouchTTS on the recipe's shards of utterances: its language model (lm), which synthesizes
and recognizes speech, or its flow, which maps tokens to mel spectra. The vocoder has its own command. With --llm
the language model extends a pretrained text model, a local Llama or Qwen folder: use a low learning rate,
such as that of the recipe's talk-llm.yaml."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    train = commands.add_parser("train", help="train a model on packed data")
    models = train.add_subparsers(metavar="MODEL", required=True)
    for name, run, summary in (
        ("dlm", run_dlm, "the Denoising LM, a corrector"),
        ("ctc", run_ctc, "the character CTC recognizer"),
    ):
        parser = models.add_parser(name, parents=[common], help=summary, description=_DESCRIPTION)
        parser.add_argument(
            "words", nargs="+", metavar="DATA|KEY=VALUE", help="folders of training shards, and settings"
        )
        _add_loop_options(parser)
        parser.add_argument("--init-from", metavar="NAME|DIR", help="model to initialize from")
        if name == "ctc":
            parser.add_argument("--dev", metavar="DIR", required=True, help="validation shards")
        parser.set_defaults(run=run, log_level=logging.INFO, words_anywhere="words")
    for name, run, summary in (
        ("mask", run_mask, "the mask network, which removes noise"),
        ("codec", run_codec, "the codec: speech to one stream of codes and back"),
        ("vocoder", run_vocoder, "the vocoder: mel spectra to waveforms"),
        ("tokenizer", run_tokenizer, "the supervised tokenizer of semantic tokens"),
        ("gense", run_gense, "GenSE's language models, on shards of tokens"),
    ):
        parser = models.add_parser(name, parents=[common], help=summary, description=_DESCRIPTION)
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
        parser.set_defaults(run=run, log_level=logging.INFO, words_anywhere="words")
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


def run_dlm(arguments: argparse.Namespace) -> int:
    """Train the Denoising LM; return the exit status."""
    from audio_llm.dlm.train import DlmTrainConfig, train_dlm
    from audio_llm.training.config import load_config

    folder, overrides = _one_folder_and_settings(arguments)
    config = load_config(DlmTrainConfig, arguments.config, overrides)
    options = _loop_options(arguments)
    return _finish(arguments, lambda: train_dlm(folder, Path(arguments.output), config, **options))


def run_ctc(arguments: argparse.Namespace) -> int:
    """Train the CTC recognizer; return the exit status."""
    from audio_llm import __version__
    from audio_llm.asr.ctc_train import CtcTrainingConfig, train_ctc
    from audio_llm.training.config import load_config

    folders, overrides = _folders_and_settings(arguments)
    config = load_config(CtcTrainingConfig, arguments.config, overrides)
    provenance = {"audio_llm": __version__, "seed": config.training.seed, "data": [str(path) for path in folders]}
    options = {**_loop_options(arguments), "provenance": provenance}
    tuning, output = Path(arguments.dev), Path(arguments.output)
    return _finish(arguments, lambda: train_ctc(folders, tuning, output, config, **options))


def run_mask(arguments: argparse.Namespace) -> int:
    """Train the mask network; return the exit status."""
    from audio_llm.gense.mask_train import MaskTrainingConfig, train_mask

    return _run_on_pack(arguments, MaskTrainingConfig, train_mask, perceptual_loss=_perceptual_loss(arguments))


def run_codec(arguments: argparse.Namespace) -> int:
    """Train the codec; return the exit status."""
    from audio_llm.codec.train import CodecTrainingConfig, train_codec

    return _run_on_pack(arguments, CodecTrainingConfig, train_codec, perceptual_loss=_perceptual_loss(arguments))


def run_vocoder(arguments: argparse.Namespace) -> int:
    """Train the vocoder; return the exit status."""
    from audio_llm.codec.vocoder_train import VocoderTrainingConfig, train_vocoder

    return _run_on_pack(arguments, VocoderTrainingConfig, train_vocoder, perceptual_loss=_perceptual_loss(arguments))


def run_touchtts(arguments: argparse.Namespace) -> int:
    """Train a part of TouchTTS; return the exit status."""
    from audio_llm import __version__
    from audio_llm.tokenizer.load import load_tokenizer
    from audio_llm.touchtts.flow_train import FlowTrainingConfig, train_flow
    from audio_llm.touchtts.models import tokenizer_name
    from audio_llm.touchtts.speech_text_lm_train import SpeechTextLmTrainingConfig, train_speech_text_lm
    from audio_llm.training.config import load_config

    arguments.words += [word for word in arguments.dev if "=" in word]  # argparse takes them for folders
    folders, overrides = _folders_and_settings(arguments)
    tuning, output = [Path(word) for word in arguments.dev if "=" not in word], Path(arguments.output)
    tokenizer = load_tokenizer(arguments.tokenizer, variant=arguments.variant)
    parts = tokenizer, tokenizer_name(arguments.tokenizer)
    provenance = {"audio_llm": __version__, "data": [path.name for path in folders]}
    options = {**_loop_options(arguments), "provenance": provenance}
    if arguments.part == "lm":
        lm_config = load_config(SpeechTextLmTrainingConfig, arguments.config, overrides)
        options["llm"] = arguments.llm
        return _finish(arguments, lambda: train_speech_text_lm(folders, tuning, *parts, output, lm_config, **options))
    if arguments.llm:
        raise UsageError("--llm is for --part lm", remedy="leave it out")
    flow_config = load_config(FlowTrainingConfig, arguments.config, overrides)
    return _finish(arguments, lambda: train_flow(folders, tuning, *parts, output, flow_config, **options))


def _perceptual_loss(arguments: argparse.Namespace) -> PerceptualLoss | None:
    """Return the perceptual loss, if one is given."""
    from audio_llm.tokenizer.s3 import load_perceptual_loss

    return load_perceptual_loss(arguments.perceptual_loss) if arguments.perceptual_loss else None


def run_tokenizer(arguments: argparse.Namespace) -> int:
    """Train the supervised tokenizer; return the exit status."""
    from audio_llm.tokenizer.s3_train import S3TrainingConfig, train_s3

    if arguments.ssl:
        return _fit_ssl(arguments)
    if not arguments.dev:
        raise UsageError("no validation data are named", remedy="give --dev DIR, or --ssl DIR for k-means")
    teacher = Path(arguments.teacher) if arguments.teacher else None
    return _run_on_pack(arguments, S3TrainingConfig, train_s3, teacher=teacher)


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


def run_gense(arguments: argparse.Namespace) -> int:
    """Train GenSE's language models; return the exit status."""
    from audio_llm.gense.models import load_parts
    from audio_llm.gense.train import GenseTrainingConfig, train_gense

    parts = load_parts(arguments.tokenizer, arguments.codec)
    return _run_on_pack(arguments, GenseTrainingConfig, train_gense, parts=parts)


def _run_on_pack(
    arguments: argparse.Namespace, cls: type[Any], train: Callable[..., TrainingResult], **more: Any
) -> int:
    """Call a training function that takes a pack, a validation pack, an output folder and a configuration."""
    from audio_llm import __version__
    from audio_llm.training.config import load_config

    folder, overrides = _one_folder_and_settings(arguments)
    config = load_config(cls, arguments.config, overrides)
    provenance = {"audio_llm": __version__, "data": [folder.name]}
    options = {**_loop_options(arguments), "provenance": provenance, **more}
    tuning, output = Path(arguments.dev), Path(arguments.output)
    return _finish(arguments, lambda: train(folder, tuning, output=output, config=config, **options))


def run_ger(arguments: argparse.Namespace) -> int:
    """Train a corrector of N-best lists; return the exit status."""
    if arguments.kind == "phrase":
        return _train_phrase(arguments)
    from audio_llm import __version__
    from audio_llm.ger.data import read_data
    from audio_llm.ger.train import GerTrainConfig, train_ger
    from audio_llm.training.config import load_config

    if not arguments.llm:
        raise UsageError("no language model is named", remedy="give --llm NAME|DIR, or --kind phrase")
    config = load_config(GerTrainConfig, arguments.config, [*arguments.words, *arguments.set])
    data = read_data([Path(path) for path in arguments.data], config.normalizer)
    tuning = read_data([Path(path) for path in arguments.dev], config.normalizer) if arguments.dev else None
    options = {name: getattr(arguments, name) for name in ("max_minutes", "resume", "device")}
    options["provenance"] = {"audio_llm": __version__, "data": [Path(path).name for path in arguments.data]}
    output = Path(arguments.output)
    return _finish(arguments, lambda: train_ger(data, arguments.llm, output, config, tuning=tuning, **options))


def _train_phrase(arguments: argparse.Namespace) -> int:
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
    settings = load_config(PhraseSettings, arguments.config, [*arguments.words, *arguments.set])
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


def _loop_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(arguments, name) for name in ("max_minutes", "resume", "device")}
    return {**options, "start_from": arguments.init_from}


def _finish(arguments: argparse.Namespace, train: Callable[[], TrainingResult]) -> int:
    """Run the training and print how it ended."""
    output = Path(arguments.output)
    if arguments.resume and arguments.overwrite:
        raise UsageError("--resume and --overwrite contradict each other", remedy="give one of them")
    if arguments.overwrite:
        for name in ("best", "last"):
            shutil.rmtree(output / name, ignore_errors=True)
        (output / "train.jsonl").unlink(missing_ok=True)
    result = train()
    _leave_other_processes()
    how = "all steps are done" if result.stopped_by == "steps" else "time limit reached; continue with --resume"
    print(f"{output / 'best'}: best at step {result.best_step} with {result.best_value:.4f}")
    print(f"{result.steps} steps in {result.minutes:.1f} minutes: {how}")
    return 0


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
