"""A Whisper model in the transformers form: safe loading, and the special tokens of its prompts."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WhisperModel:
    """The three parts of a model.

    Attributes:
        name: Last part of its hub name or folder.
        network: WhisperForConditionalGeneration, ready for inference.
        feature_extractor: Waveform of a window to log-mel features.
        tokenizer: Text to tokens.
    """

    name: str
    network: Any
    feature_extractor: Any
    tokenizer: Any


@dataclass(frozen=True)
class Prompt:
    """Special token ids around a text.

    Attributes:
        tokens: Prompt of the decoder: start, language and task where multilingual, no timestamps.
        end: The end token.
        no_speech: The no-speech token, None where the vocabulary has none.
        never: Suppressed tokens.
        never_first: Tokens that are suppressed at the beginning.
    """

    tokens: list[int]
    end: int
    no_speech: int | None
    never: list[int]
    never_first: list[int]


def load_model(name_or_dir: str | os.PathLike[str], device: str, offline: bool) -> WhisperModel:
    """Read a model; safetensors only, and no code from it (arguments and errors: `WhisperRecognizer.load`)."""
    import torch
    from safetensors import SafetensorError
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    source = str(Path(name_or_dir).expanduser()) if Path(name_or_dir).expanduser().exists() else str(name_or_dir)
    _check_source(source, offline)
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        with _no_progress_bar():
            loaded: Any = WhisperForConditionalGeneration.from_pretrained(
                source, use_safetensors=True, local_files_only=offline, dtype=dtype, output_loading_info=True
            )
        network, loading = loaded
        feature_extractor = WhisperFeatureExtractor.from_pretrained(source, local_files_only=offline)
        tokenizer = WhisperTokenizer.from_pretrained(source, local_files_only=offline)
    except OSError as error:
        raise _missing_model(source, offline, error) from None
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        message = f"not a Whisper model that can be read: {error}"
        raise ModelFormatError(message, path=source, remedy="get the model again") from None
    if loading["missing_keys"]:  # transformers would leave them at random
        message = f"{len(loading['missing_keys'])} weights are missing, first {min(loading['missing_keys'])}"
        raise ModelFormatError(message, path=source, remedy="get the model again")
    return WhisperModel(Path(source).name, network.to(device).eval(), feature_extractor, tokenizer)


def make_prompt(model: WhisperModel, language: str) -> Prompt:
    """Return the prompt of a model.

    Args:
        model: English-only or multilingual.
        language: Code of the spoken language.

    Raises:
        UsageError: The model does not know the language.
        ModelFormatError: Its tokenizer is not Whisper's.
    """
    network, tokenizer = model.network, model.tokenizer
    settings = network.generation_config
    vocabulary = {**tokenizer.get_vocab(), **tokenizer.get_added_vocab()}
    size = int(network.config.vocab_size)
    multilingual = getattr(settings, "is_multilingual", None)
    if multilingual is None:
        multilingual = size >= 51865  # as in openai/whisper
    start = vocabulary.get("<|startoftranscript|>", settings.decoder_start_token_id)
    no_timestamps, end = vocabulary.get("<|notimestamps|>"), vocabulary.get("<|endoftext|>", settings.eos_token_id)
    if start is None or end is None or no_timestamps is None:
        remedy = "get the model again, with its tokenizer"
        raise ModelFormatError("the tokenizer lacks Whisper's marks", path=tokenizer.name_or_path, remedy=remedy)
    if len(tokenizer.get_vocab()) == len(tokenizer.get_added_vocab()):  # what transformers makes of a missing file
        raise ModelFormatError("the tokenizer has no words", path=tokenizer.name_or_path, remedy="add tokenizer.json")
    tokens = [start]
    if multilingual:
        if f"<|{language}|>" not in vocabulary:
            raise UsageError(
                f"this Whisper model does not know the language {language!r}", remedy="give a code such as en"
            )
        tokens += [vocabulary[f"<|{language}|>"], vocabulary["<|transcribe|>"]]
    elif language != "en":
        raise UsageError(
            f"an English-only Whisper does not know {language!r}", remedy="use one without .en in its name"
        )
    never = {*(settings.suppress_tokens or ()), *tokenizer.all_special_ids, *range(no_timestamps, size)}
    never |= {number for name, number in vocabulary.items() if name.startswith("<|") and name.endswith("|>")}
    return Prompt(
        tokens=[*tokens, no_timestamps],
        end=end,
        no_speech=vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>")),
        never=sorted(number for number in never if number != end and 0 <= number < size),
        never_first=sorted({*(settings.begin_suppress_tokens or ()), end}),
    )


def alignment_heads(network: Any) -> list[tuple[int, int]]:
    """Return (layer, head) of the alignment heads; where they are unknown, those of the upper half of the layers."""
    named = getattr(network.generation_config, "alignment_heads", None)
    if named:
        return [(int(layer), int(head)) for layer, head in named]
    layers, heads = network.config.decoder_layers, network.config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Disable the progress bar of transformers while it reads weights."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _check_source(source: str, offline: bool) -> None:
    """Refuse a folder or hub name that is not a Whisper model, or whose weights are pickles."""
    from transformers import PreTrainedConfig

    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelNotFoundError("no config.json in the folder", path=source, remedy="give the folder of a model")
    if not folder.is_dir() and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
        raise ModelNotFoundError("no such folder", path=source, remedy="give a folder, or a hub name")
    try:
        settings, _ = PreTrainedConfig.get_config_dict(source, local_files_only=offline)
    except OSError as error:
        raise _missing_model(source, offline, error) from None
    if settings.get("model_type") != "whisper":
        model_type = settings.get("model_type") or "unknown"
        remedy = "use a model such as openai/whisper-tiny.en"
        raise ModelFormatError(f"a model of the type {model_type}, not whisper", path=source, remedy=remedy)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
            message = "weights in pickles, which can run code, instead of safetensors"
            raise ModelFormatError(
                message, path=source, remedy="convert them to model.safetensors where you trust them"
            )
        raise ModelNotFoundError("no weights in the folder", path=source, remedy="add model.safetensors")


def _missing_model(source: str, offline: bool, error: Exception) -> ModelNotFoundError:
    logger.debug("loading %s: %s", source, error)
    if Path(source).is_dir():
        first_line = (str(error).strip().splitlines() or ["unreadable"])[0]
        return ModelNotFoundError(f"incomplete: {first_line}", path=source, remedy="get the model again")
    if offline:
        remedy = f"download it once with `audio-llm models get {source}`, or run without --offline"
        return ModelNotFoundError(f"the Whisper model {source} is not on this machine", remedy=remedy)
    remedy = "check the name and the connection, or give a folder"
    return ModelNotFoundError(f"no Whisper model {source} with safetensors weights can be had", remedy=remedy)
