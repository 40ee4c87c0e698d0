"""Recognizers by name: which exist, what each supports, and how to load one."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm import hub
from audio_llm.asr.base import Capabilities, Recognizer
from audio_llm.doctor import resolve_device
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.installed import foreign_kind
from audio_llm.registry import CTRANSLATE2_WHISPER, MODELS, canonical_name

if TYPE_CHECKING:
    from audio_llm.asr.whisper import Compute, WhisperOptions

logger = logging.getLogger(__name__)

AUTO = "auto"
DEFAULT_MODELS = ("whisper-base", "whisper-tiny.en")  # of `auto`, the first that is installed


@dataclass(frozen=True)
class Engine:
    """Registry entry of a recognizer.

    Attributes:
        name: Name for `load_recognizer` and `--recognizer`.
        summary: Short description.
        module: Module that holds the class; imported when it is used.
        class_name: Name of the class in it.
        default_model: Model that is used when none is named; None where there is none.
        model_needed: What `--model` must name where there is no default.
    """

    name: str
    summary: str
    module: str
    class_name: str
    default_model: str | None = None
    model_needed: str | None = None


@dataclass(frozen=True)
class EngineReport:
    """State of a recognizer on this machine.

    Attributes:
        name: Name for `--recognizer`.
        summary: Short description.
        default_model: Model that is used when none is named.
        capabilities: What it supports; None where the engine cannot be imported.
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
            "Whisper on CTranslate2",
            "audio_llm.asr.whisper",
            "WhisperRecognizer",
            default_model="whisper-base",
        ),
        Engine(
            "whisper-torch",
            "any Whisper of the transformers package",
            "audio_llm.asr.whisper_torch",
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
    name: str = AUTO,
    model: str | None = None,
    device: str = "cpu",
    offline: bool = False,
    options: WhisperOptions | None = None,
    compute: Compute = "auto",
) -> Recognizer:
    """Load a recognizer.

    Args:
        name: `auto` for the best one that is installed, one of `ENGINES`, or the name or folder of a Whisper model:
            `whisper-base`, `tiny.en`, `openai/whisper-small`, a CTranslate2 or transformers folder.
        model: Name or folder of the engine's model; None takes the engine's own.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one; pocketsphinx always runs on the CPU.
        offline: Download nothing; implied by `hub.is_offline()`.
        options: Options of Whisper; other engines refuse those that they do not support.
        compute: Number format of Whisper.

    Raises:
        UsageError: No engine has that name, the engine takes no model, or needs one, or cannot do what `options` asks.
        ModelNotFoundError: There is no such model.
        MissingDependencyError: A package that the engine needs is not installed.
    """
    chosen = resolve_recognizer(name, model, options)
    engine, model = ENGINES[chosen.engine], chosen.model
    if engine.name != "whisper":
        _refuse(engine, options, compute)
    if engine.name == "sphinx":
        if name == AUTO:
            _warn_of_sphinx()
        return _recognizer_class(engine)()
    if engine.name == "whisper":
        on = _ctranslate2_device(device)
        return _recognizer_class(engine).load(hub.find_model(str(model)), on, compute, options=options)
    if engine.name in ("ctc", "touchtts"):
        return _recognizer_class(engine).load(hub.find_model(str(model)), resolve_device(device))
    if engine.name == "espnet":
        return _recognizer_class(engine).load(_espnet_folder(str(model)), resolve_device(device))
    offline = offline or hub.is_offline()
    source = _whisper_source(str(model), offline)
    language = (options.language if options else None) or "en"
    return _recognizer_class(engine).load(source, resolve_device(device), offline, language)


@dataclass(frozen=True)
class ResolvedRecognizer:
    """Engine, one of `ENGINES`, and the name or folder of its model, if any, for a recognizer's name."""

    engine: str
    model: str | None


def resolve_recognizer(
    name: str, model: str | None = None, options: WhisperOptions | None = None
) -> ResolvedRecognizer:
    """Return the engine and model of a name of `load_recognizer`.

    Raises:
        UsageError: No recognizer has that name, or the engine takes no model, or needs one.
        ModelNotFoundError: A Whisper model is not installed, or a folder does not exist.
    """
    if name == AUTO and model is None:
        return _best_installed(options)
    if name in ENGINES or (name == AUTO and model is not None):
        return _with_model("whisper" if name == AUTO else name, model)
    if model is not None:
        remedy = f"leave out --model, or give --recognizer one of {', '.join(ENGINES)}"
        raise UsageError(f"{name!r} is a model already", remedy=remedy)
    if canonical_name(name) is not None or "/" in name or Path(name).expanduser().exists() or _is_installed(name):
        return _with_model("whisper", name)
    names = [AUTO, *ENGINES, *(each.name for each in MODELS.values() if each.kind == CTRANSLATE2_WHISPER)]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}, or the folder of a Whisper model"
    raise UsageError(f"unknown recognizer {name!r}", remedy=hint)


def _best_installed(options: WhisperOptions | None) -> ResolvedRecognizer:
    """Return the installed Whisper, else pocketsphinx."""
    english = options is None or (
        options.language in (None, "en") and not options.multilingual and options.task == "transcribe"
    )
    for name in DEFAULT_MODELS if english else DEFAULT_MODELS[:1]:
        if _is_installed(name):
            return ResolvedRecognizer("whisper", name)
    if _beyond(ENGINES["sphinx"], options):
        hub.find_model(DEFAULT_MODELS[0])  # pocketsphinx cannot do that: the error names the command
    return ResolvedRecognizer("sphinx", None)


def _warn_of_sphinx() -> None:
    logger.warning(
        "no Whisper model is installed: pocketsphinx recognizes, with about four times as many word errors; "
        "`audio-llm models get %s` downloads one",
        DEFAULT_MODELS[0],
    )


def _with_model(name: str, model: str | None) -> ResolvedRecognizer:
    engine = ENGINES[name]
    model = model or engine.default_model
    if model is None and engine.model_needed:
        raise UsageError(f"the recognizer {name} needs a model", remedy=f"give --model with {engine.model_needed}")
    if model is not None and name == "sphinx":
        remedy = "leave out --model, or choose another --recognizer"
        raise UsageError("the recognizer sphinx has its model inside", remedy=remedy)
    if name == "whisper" and model is not None:
        folder = _whisper_folder(model)
        if foreign_kind(folder) != CTRANSLATE2_WHISPER and (folder / "model.safetensors").is_file():
            return ResolvedRecognizer("whisper-torch", str(folder))
    return ResolvedRecognizer(name, model)


def _whisper_folder(model: str) -> Path:
    path = Path(model).expanduser()
    if model.startswith((".", "/", "~")) and not path.exists():
        raise ModelNotFoundError("no such folder", path=path, remedy="give the folder of a Whisper model, or a name")
    return hub.find_model(model)


def _is_installed(name: str) -> bool:
    try:
        hub.find_model(name)
    except (ModelNotFoundError, ModelFormatError):
        return False
    return True


def _refuse(engine: Engine, options: WhisperOptions | None, compute: Compute) -> None:
    """Raise where options ask for what only Whisper can do: an option without effect would mislead."""
    if beyond := _beyond(engine, options) or ("compute" if compute != "auto" else ""):
        what = f"the recognizer {engine.name} has no option {beyond}"
        raise UsageError(what, remedy="leave it out, or use --recognizer whisper-base")


def _beyond(engine: Engine, options: WhisperOptions | None) -> str:
    """Return a given option that the engine does not support, or an empty string."""
    if options is None:
        return ""
    plain = type(options)()
    able = {"hotwords"} | ({"language"} if engine.name == "whisper-torch" else set())
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        english = field.name == "language" and value == "en"
        if field.name not in able and value != getattr(plain, field.name) and not english:
            return field.name.replace("_", " ")
    return ""


def _ctranslate2_device(device: str) -> str:
    """Return `cpu` or `cuda` according to CTranslate2."""
    if device == "cpu":
        return device
    import ctranslate2

    count = ctranslate2.get_cuda_device_count()
    if device == "auto":
        return "cuda" if count else "cpu"
    if not count:
        raise UsageError("CTranslate2 finds no CUDA device", remedy="use --device cpu")
    return "cuda"


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
    """Return the folder of a local model, else the hub name unchanged."""
    try:
        return str(hub.find_model(model))
    except ModelNotFoundError:
        is_path = model.count("/") != 1 or model.startswith((".", "/", "~"))
        if is_path and "/" in model:
            raise
        return model
