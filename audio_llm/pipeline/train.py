"""Trainings by name: what each needs, its configuration, and the function that runs it."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm import __version__
from audio_llm.errors import UsageError
from audio_llm.training.config import config_from_dict, load_config

if TYPE_CHECKING:
    from audio_llm.training.loop import TrainingResult

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class RunOptions:
    """How a training runs.

    Attributes:
        max_minutes: Time limit in minutes; `resume` continues after it. None: all steps.
        resume: Continue from the last checkpoint in the output folder.
        device: `auto`, `cpu` or `cuda`.
        init_from: Model to initialize from, a directory or a name; None: random weights.
        overwrite: Remove the models and the log of an earlier training in the output folder.

    Raises:
        UsageError: `resume` and `overwrite` contradict each other.
    """

    max_minutes: float | None = None
    resume: bool = False
    device: str = "auto"
    init_from: PathLike | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite contradict each other", remedy="give one of them")


@dataclass(frozen=True)
class TrainingParts:
    """Models and data that some trainings need in addition to their shards.

    Attributes:
        tokenizer: Semantic tokenizer of `gense` and `touchtts-*`: a directory, a name, or an .onnx file.
        variant: S3Tokenizer variant of an .onnx file, such as `v2_25hz`.
        codec: Codec of `gense`.
        llm: Pretrained language model of `ger`, or that `touchtts-lm` extends.
        perceptual_loss: Tokenizer used as a perceptual loss of `mask`, `codec` and `vocoder`.
        teacher: Shards with a recognizer's character outputs, for `tokenizer`.
    """

    tokenizer: PathLike | None = None
    variant: str | None = None
    codec: PathLike | None = None
    llm: PathLike | None = None
    perceptual_loss: PathLike | None = None
    teacher: PathLike | None = None


@dataclass(frozen=True)
class _Call:
    """A checked call of `train_model`."""

    data: list[Path]
    dev: list[Path]
    output: Path
    config: Any
    parts: TrainingParts
    options: dict[str, Any]
    overwrite: bool

    def begin(self) -> None:
        """Clear the output folder if asked; called when everything that the training needs has been loaded."""
        for name in ("best", "last") if self.overwrite else ():
            shutil.rmtree(self.output / name, ignore_errors=True)
        if self.overwrite:
            (self.output / "train.jsonl").unlink(missing_ok=True)


@dataclass(frozen=True)
class TrainingTask:
    """One training.

    Attributes:
        config: Its configuration, as "module:Class".
        run: Runs it.
        needs: Fields of `TrainingParts` that must be given.
        takes: Further fields of `TrainingParts` that may be given.
        dev: Validation data: `needed`, `optional` or `none`.
        several: Takes more than one folder of data.
    """

    config: str
    run: Callable[[_Call], TrainingResult]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    dev: str = "needed"
    several: bool = False


def train_model(
    task: str,
    data: PathLike | Sequence[PathLike],
    output: PathLike,
    config: PathLike | Mapping[str, Any] | None = None,
    dev: PathLike | Sequence[PathLike] = (),
    settings: Sequence[str] = (),
    parts: TrainingParts | None = None,
    run: RunOptions | None = None,
) -> TrainingResult:
    """Train a model; OUTPUT/best becomes its directory.

    Args:
        task: One of `TASKS`.
        data: Folders of training shards; for `ger` files or folders of N-best lists with references.
        output: Folder of the training: checkpoints, log, and the best model.
        config: YAML file, or plain values by key; None: the built-in settings.
        dev: Validation data of the same form.
        settings: Settings that override the configuration, `training.max_steps=2000`, say.
        parts: Models and further data that the task needs.
        run: Time limit, device and so on.

    Raises:
        UsageError: No task has that name, or data or parts are missing, or given to a task that does not take them.
        ConfigError: The configuration has an unknown key or a value of the wrong kind.
        ModelNotFoundError: There is no such model among the parts.
    """
    if task not in TASKS:
        raise UsageError(f"unknown training {task!r}", remedy=f"use one of {', '.join(TASKS)}")
    chosen, parts, run = TASKS[task], parts or TrainingParts(), run or RunOptions()
    _check_parts(task, chosen, parts)
    paths, dev_paths = _checked_data(task, chosen, _paths(data), _paths(dev))
    cls = _named(chosen.config)
    if isinstance(config, Mapping):
        if settings:
            raise UsageError("settings override a YAML file", remedy="put them into the mapping")
        values = config_from_dict(cls, config)
    else:
        values = load_config(cls, None if config is None else Path(config), settings)
    options: dict[str, Any] = {"max_minutes": run.max_minutes, "resume": run.resume, "device": run.device}
    options["provenance"] = {"audio_llm": __version__, "data": [path.name for path in paths]}
    if task != "ger":
        options["start_from"] = run.init_from
    elif run.init_from is not None:
        raise UsageError("ger starts from its language model", remedy="leave init_from out")
    return chosen.run(_Call(paths, dev_paths, Path(output), values, parts, options, run.overwrite))


def _paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]


def _check_parts(task: str, chosen: TrainingTask, parts: TrainingParts) -> None:
    given = {field.name for field in fields(parts) if getattr(parts, field.name) is not None}
    for name in chosen.needs:
        if name not in given:
            raise UsageError(f"the training {task} needs --{name}", remedy=f"name its {name}")
    for name in sorted(given - {*chosen.needs, *chosen.takes}):
        option = name.replace("_", "-")
        raise UsageError(f"--{option} is not for the training {task}", remedy="leave it out")


def _checked_data(task: str, chosen: TrainingTask, data: list[Path], dev: list[Path]) -> tuple[list[Path], list[Path]]:
    if not data:
        raise UsageError("no folder of training data is named", remedy="name it after the model")
    if len(data) > 1 and not chosen.several:
        raise UsageError(f"{len(data)} folders of data are named", remedy="name the one that holds the data")
    for folder in data if task != "ger" else ():
        if not folder.is_dir():
            remedy = "the recipe's README tells how to make it"
            raise UsageError("no such folder of training data", path=folder, remedy=remedy)
    if not dev and chosen.dev == "needed":
        raise UsageError("no validation data are named", remedy="give --dev DIR")
    if dev and chosen.dev == "none":
        raise UsageError(f"the training {task} takes no validation data", remedy="leave --dev out")
    return data, dev


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _on_pack(function: str) -> Callable[[_Call], TrainingResult]:
    """Return what calls a training function of a pack, a validation pack, an output folder and a configuration."""

    def run(call: _Call) -> TrainingResult:
        options = dict(call.options)
        if call.parts.perceptual_loss is not None:
            from audio_llm.tokenizer.s3 import load_perceptual_loss

            options["perceptual_loss"] = load_perceptual_loss(call.parts.perceptual_loss)
        if call.parts.teacher is not None:
            options["teacher"] = Path(call.parts.teacher)
        if call.parts.codec is not None and call.parts.tokenizer is not None:
            from audio_llm.gense.models import load_parts

            options["parts"] = load_parts(call.parts.tokenizer, call.parts.codec)
        call.begin()
        result: TrainingResult = _named(function)(
            call.data[0], call.dev[0], output=call.output, config=call.config, **options
        )
        return result

    return run


def _dlm(call: _Call) -> TrainingResult:
    from audio_llm.dlm.train import train_dlm

    options = {name: value for name, value in call.options.items() if name != "provenance"}  # it records its own
    call.begin()
    return train_dlm(call.data[0], call.output, call.config, **options)


def _ctc(call: _Call) -> TrainingResult:
    from audio_llm.asr.ctc_train import train_ctc

    seed = call.config.training.seed
    options = {**call.options, "provenance": {**call.options["provenance"], "seed": seed}}
    call.begin()
    return train_ctc(call.data, call.dev[0], call.output, call.config, **options)


def _on_utterances(function: str) -> Callable[[_Call], TrainingResult]:
    """Return what calls a training function of TouchTTS."""

    def run(call: _Call) -> TrainingResult:
        from audio_llm.tokenizer.load import load_tokenizer
        from audio_llm.touchtts.models import tokenizer_name

        assert call.parts.tokenizer is not None  # it is needed
        tokenizer = load_tokenizer(call.parts.tokenizer, variant=call.parts.variant)
        options = {**call.options, **({"llm": call.parts.llm} if call.parts.llm is not None else {})}
        call.begin()
        result: TrainingResult = _named(function)(
            call.data, call.dev, tokenizer, tokenizer_name(call.parts.tokenizer), call.output, call.config, **options
        )
        return result

    return run


def _ger(call: _Call) -> TrainingResult:
    from audio_llm.ger.data import read_data
    from audio_llm.ger.train import train_ger

    lists, dev = (read_data(paths, call.config.normalizer) if paths else None for paths in (call.data, call.dev))
    assert lists is not None  # data are needed
    assert call.parts.llm is not None
    call.begin()
    return train_ger(lists, os.fspath(call.parts.llm), call.output, call.config, tuning=dev, **call.options)


_LOSS = ("perceptual_loss",)
TASKS: dict[str, TrainingTask] = {
    "dlm": TrainingTask("audio_llm.dlm.train:DlmTrainConfig", _dlm, dev="none"),
    "ctc": TrainingTask("audio_llm.asr.ctc_train:CtcTrainingConfig", _ctc, several=True),
    "mask": TrainingTask(
        "audio_llm.gense.mask_train:MaskTrainingConfig",
        _on_pack("audio_llm.gense.mask_train:train_mask"),
        takes=_LOSS,
    ),
    "codec": TrainingTask(
        "audio_llm.codec.train:CodecTrainingConfig",
        _on_pack("audio_llm.codec.train:train_codec"),
        takes=_LOSS,
    ),
    "vocoder": TrainingTask(
        "audio_llm.codec.vocoder_train:VocoderTrainingConfig",
        _on_pack("audio_llm.codec.vocoder_train:train_vocoder"),
        takes=_LOSS,
    ),
    "tokenizer": TrainingTask(
        "audio_llm.tokenizer.s3_train:S3TrainingConfig",
        _on_pack("audio_llm.tokenizer.s3_train:train_s3"),
        takes=("teacher",),
    ),
    "gense": TrainingTask(
        "audio_llm.gense.train:GenseTrainingConfig",
        _on_pack("audio_llm.gense.train:train_gense"),
        needs=("tokenizer", "codec"),
    ),
    "touchtts-lm": TrainingTask(
        "audio_llm.touchtts.speech_text_lm_train:SpeechTextLmTrainingConfig",
        _on_utterances("audio_llm.touchtts.speech_text_lm_train:train_speech_text_lm"),
        needs=("tokenizer",),
        takes=("variant", "llm"),
        several=True,
    ),
    "touchtts-flow": TrainingTask(
        "audio_llm.touchtts.flow_train:FlowTrainingConfig",
        _on_utterances("audio_llm.touchtts.flow_train:train_flow"),
        needs=("tokenizer",),
        takes=("variant",),
        several=True,
    ),
    "ger": TrainingTask(
        "audio_llm.ger.train:GerTrainConfig",
        _ger,
        needs=("llm",),
        dev="optional",
        several=True,
    ),
}
