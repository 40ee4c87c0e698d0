"""Load recognizers, correctors and transcribers by name, and any model directory as its object."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from audio_llm import __version__, hub
from audio_llm.asr import engines
from audio_llm.asr.base import Recognizer
from audio_llm.correction import Corrector
from audio_llm.doctor import resolve_device
from audio_llm.errors import ModelFormatError
from audio_llm.installed import foreign_kind
from audio_llm.pipeline.correct import CORRECTORS, list_length, load_corrector
from audio_llm.pipeline.preprocess import Preprocessor
from audio_llm.pipeline.transcribe import Transcriber
from audio_llm.pipeline.worker import load_in_process
from audio_llm.registry import CTRANSLATE2_WHISPER

if TYPE_CHECKING:
    from audio_llm.asr.whisper import Compute, WhisperOptions


def load_transcriber(
    recognizer: str = engines.AUTO,
    model: str | None = None,
    correct: str = "none",
    correct_model: str | None = None,
    decode: str | None = None,
    nbest: int | None = None,
    words: Iterable[str] = (),
    device: str = "cpu",
    offline: bool = False,
    separate_process: bool = False,
    preprocessor: Preprocessor | None = None,
    options: WhisperOptions | None = None,
    compute: Compute = "auto",
) -> Transcriber:
    """Load a recognizer and a corrector by name.

    Args:
        recognizer: As for `asr.engines.load_recognizer`. With a corrector `auto` is pocketsphinx, for which the
            included correctors are trained.
        model: The recognizer's model; None uses its default.
        correct: `none` or one of `pipeline.correct.CORRECTORS`.
        correct_model: The corrector's model; None uses its default.
        decode: Decoding strategy of the corrector (see `load_corrector`).
        nbest: Number of hypotheses; None: 5 with a corrector, else 1. With more than one, Whisper decodes every stretch
            of speech separately, which takes longer.
        words: Names and terms to prefer; corrections do not remove them.
        device: `cpu`, `cuda` or `auto`.
        offline: Download nothing.
        separate_process: Correct in a separate process where that saves time: with pocketsphinx, on two or more cores.
            Programs that set it must guard their main module (see `multiprocessing`).
        preprocessor: Processes the sound before it is recognized.
        options: Options of Whisper.
        compute: Number format of Whisper.

    Raises:
        UsageError: A name is unknown, or the recognizer does not support `options`.
        ModelNotFoundError: There is no such model.
    """
    words = tuple(words)
    if correct != "none" and recognizer == engines.AUTO and model is None:
        recognizer = "sphinx"
    loaded = engines.load_recognizer(recognizer, model, device, offline, options, compute)
    corrector: Corrector | None = None
    if correct != "none" and separate_process and recognizer == "sphinx" and (os.cpu_count() or 1) > 1:
        hypotheses = list_length(correct, correct_model, loaded, decode)
        corrector = load_in_process(recognizer, words, correct, correct_model, decode, device, hypotheses)
    elif correct != "none":
        corrector = load_corrector(correct, correct_model, loaded, decode, device)
    refused = tuple(loaded.prefer(words)) if words else ()
    count = nbest or (5 if corrector is not None else 1)
    transcriber = Transcriber(loaded, corrector, count, protected=words, refused=refused, preprocessor=preprocessor)
    transcriber.about = _about(loaded, corrector, words, options)
    return transcriber


def _about(
    recognizer: Recognizer, corrector: Corrector | None, words: Sequence[str], options: WhisperOptions | None
) -> dict[str, Any]:
    """Return the recognizer, options and corrector of a transcript for its JSON form."""
    about: dict[str, Any] = {"recognizer": recognizer.version, "audio_llm": __version__}
    if options is not None:
        about["language"] = options.language or "auto"
        about["task"] = options.task
        if options.prompt:
            about["prompt"] = options.prompt
    if words:
        about["hotwords_sha256"] = hashlib.sha256("\n".join(words).encode()).hexdigest()
    if corrector is not None:
        about["corrector"] = corrector.name
    return about


def load_model_object(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Any:
    """Return the object of a model directory by its kind (see `audio_llm.load`)."""
    folder = hub.find_model(name_or_dir)
    if foreign_kind(folder) == CTRANSLATE2_WHISPER:
        return engines.load_recognizer(str(folder), device=device)
    kind = hub.model_kind(folder)
    name = {"ger-phrase": "phrase"}.get(kind, kind)
    if name in CORRECTORS:
        return load_corrector(name, str(folder), device=device)
    if kind == "touchtts":  # also a recognizer
        from audio_llm.touchtts.speech import TouchTTS

        return TouchTTS.load(folder, resolve_device(device))
    if kind in engines.ENGINES:
        return engines.load_recognizer(kind, str(folder), device)
    if kind in ("mask", "gense"):
        from audio_llm.gense.enhance import Enhancer

        return Enhancer.load(folder, device=device)
    if kind == "codec":
        from audio_llm.codec.codec import SpeechCodec

        return SpeechCodec.load(folder, resolve_device(device))
    if kind == "s3-tokenizer":
        from audio_llm.tokenizer.s3 import S3Tokenizer

        return S3Tokenizer.load(folder, resolve_device(device))
    kinds = [*CORRECTORS, "ctc", "mask", "gense", "codec", "s3-tokenizer", "touchtts"]
    remedy = f"supported kinds: {', '.join(kinds)}; hub.load_model reads any"
    raise ModelFormatError(f"no object can be loaded for the kind {kind!r}", path=folder, remedy=remedy)
