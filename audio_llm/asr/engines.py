"""Recognisers by name: which there are, what each can give, and how to load one."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_llm import hub
from audio_llm.asr.base import Capabilities, Recognizer
from audio_llm.doctor import resolve_device
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError


@dataclass(frozen=True)
class Engine:
    """How one recogniser is reached.

    Attributes:
        name: Name for `load_recognizer` and `--asr`.
        summary: What it is, in a few words.
        module: Module that holds the class; imported when it is used.
        class_name: Name of the class in it.
        default_model: Model taken when none is named; None where there is none.
        model_needed: What `--model` has to name where there is no default.
    """

    name: str
    summary: str
    module: str
    class_name: str
    default_model: str | None = None
    model_needed: str | None = None


@dataclass(frozen=True)
class EngineReport:
    """One engine as it stands on this machine.

    Attributes:
        name: Name for `--asr`.
        summary: What it is.
        default_model: Model taken when none is named.
        capabilities: What it can give; None where the engine cannot be imported.
        problem: Why it cannot be used here, or None.
    """

    name: str
    summary: str
    default_model: str | None
    capabilities: Capabilities | None
    problem: str | None = None


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("sphinx", "pocketsphinx, US English, model inside", "audio_llm.asr.sphinx", "SphinxRecognizer"),
        Engine("ctc", "own character CTC network", "audio_llm.asr.ctc", "CtcRecognizer", default_model="ctc-small"),
        Engine(
            "touchtts",
            "the language model of TouchTTS, which also speaks",
            "audio_llm.touchtts.recognizer",
            "TouchRecognizer",
            default_model="touchtts-small",
        ),
        Engine(
            "whisper",
            "any Whisper of the transformers package",
            "audio_llm.asr.whisper",
            "WhisperRecognizer",
            model_needed="a hub name such as openai/whisper-tiny.en, or a folder",
        ),
        Engine(
            "espnet",
            "ESPnet Speech2Text",
            "audio_llm.asr.espnet",
            "EspnetRecognizer",
            model_needed="the folder of a trained ESPnet model",
        ),
    )
}


def load_recognizer(
    name: str = "sphinx", model: str | None = None, device: str = "cpu", offline: bool = False
) -> Recognizer:
    """Load a recogniser.

    Args:
        name: One of `ENGINES`.
        model: Name or folder of its model; None takes the engine's own.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one; pocketsphinx always runs on the CPU.
        offline: Download nothing; also in force where `hub.is_offline()`.

    Raises:
        UsageError: No engine has that name, or the engine takes no model, or needs one.
        ModelNotFoundError: There is no such model.
        MissingDependencyError: A package that the engine needs is not installed.
    """
    if name not in ENGINES:
        raise UsageError(f"no recogniser is named {name!r}", remedy=f"use one of {', '.join(ENGINES)}")
    engine = ENGINES[name]
    model = model or engine.default_model
    if model is None and engine.model_needed:
        raise UsageError(f"the recogniser {name} needs a model", remedy=f"give --model with {engine.model_needed}")
    if name == "sphinx":
        if model is not None:
            raise UsageError("the recogniser sphinx has its model inside", remedy="leave out --model, or choose --asr")
        return _recognizer_class(engine)()
    if name in ("ctc", "touchtts"):
        return _recognizer_class(engine).load(hub.find_model(str(model)), resolve_device(device))
    if name == "espnet":
        return _recognizer_class(engine).load(_espnet_folder(str(model)), resolve_device(device))
    source = _whisper_source(str(model), offline or hub.is_offline())
    return _recognizer_class(engine).load(source, resolve_device(device), offline or hub.is_offline())


def describe_engines() -> list[EngineReport]:
    """Return every engine with its capabilities, or with the reason why it cannot be used here."""
    return [describe_engine(name) for name in ENGINES]


def describe_engine(name: str) -> EngineReport:
    """Return one engine of `ENGINES` as `describe_engines` does."""
    engine = ENGINES[name]
    capabilities, problem = None, None
    try:
        capabilities = getattr(_recognizer_class(engine), "capabilities", None)
    except ImportError as error:
        problem = f"cannot be imported: {error}"
    if engine.name == "espnet" and importlib.util.find_spec("espnet2") is None:
        problem = "espnet is not installed: see requirements/espnet.txt"
    if engine.default_model is not None and problem is None:
        try:
            hub.find_model(engine.default_model)
        except (ModelNotFoundError, ModelFormatError):
            problem = f"its default model {engine.default_model} is not installed"
    return EngineReport(engine.name, engine.summary, engine.default_model, capabilities, problem)


def _recognizer_class(engine: Engine) -> Any:
    return getattr(importlib.import_module(engine.module), engine.class_name)


def _espnet_folder(model: str) -> Path:
    path = Path(model).expanduser()
    if not path.is_dir():
        remedy = "give the folder with config.yaml and the .pth file of an ESPnet training"
        raise ModelNotFoundError("no such folder", path=path, remedy=remedy)
    return path


def _whisper_source(model: str, offline: bool) -> str:
    """Return a folder where the model is already here, else the hub name as it is."""
    try:
        return str(hub.find_model(model))
    except ModelNotFoundError:
        looks_like_path = model.count("/") != 1 or model.startswith((".", "/", "~"))
        if looks_like_path and "/" in model:
            raise
        return model
