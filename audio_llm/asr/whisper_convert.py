"""Whisper weights from the CTranslate2 form to the transformers form, for training and for the torch recognizer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE
from audio_llm.asr.ctranslate2_file import MODEL_NAME, read_ctranslate2
from audio_llm.asr.whisper_features import HOP_LENGTH, N_FFT, WINDOW_FRAMES, WINDOW_S, WINDOW_SAMPLES
from audio_llm.errors import AudioLLMError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.hub import WEIGHTS_NAME, file_sha256

__all__ = ["read_ctranslate2", "to_transformers"]

_GELU = 3  # number of the activation in CTranslate2
_FLAGS = {  # scalars that a Whisper has, with their value; another one would change what the network computes
    "decoder/activation": _GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
_MULTILINGUAL_SIZE = 51865  # vocabularies of at least so many tokens are multilingual, as in openai/whisper
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_REMEDY = "get the model again"


def to_transformers(folder: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write a CTranslate2 Whisper as a folder that `WhisperForConditionalGeneration.from_pretrained` reads.

    Weights keep their precision where all are float16, else they are float32 (int8 is dequantized, and so carries
    the rounding of its quantization). Give `from_pretrained` the dtype to compute in: its default is that of the file,
    and float16 is slow on CPUs. The SHA-256 of `model.bin` is recorded in the metadata of the weights.

    Args:
        folder: Holds `model.bin`, `config.json`, `tokenizer.json` and `vocabulary.txt` or `vocabulary.json`.
        output: The folder to create; it is written completely or not at all.

    Returns:
        The output folder, with weights in safetensors, tokenizer, and the settings of network, decoding and features.

    Raises:
        ModelNotFoundError: A file is missing.
        ModelFormatError: A file is damaged, or the files do not belong to one Whisper model.
        UsageError: The output exists.
        AudioLLMError: The output cannot be written.
    """
    from safetensors.numpy import save_file

    folder, output = Path(folder), Path(output)
    _check_output(output)
    variables = _Variables(folder, read_ctranslate2(folder))
    weights, config = _convert_weights(variables)
    variables.check_nothing_is_left()
    tokens = _read_tokens(folder, config["vocab_size"])
    documents = {
        "config.json": config | _special_tokens(tokens),
        "generation_config.json": _generation_settings(folder, tokens, config),
        "preprocessor_config.json": _feature_settings(config["num_mel_bins"]),
        "tokenizer_config.json": _TOKENIZER_SETTINGS,
    }
    metadata = {"format": "pt", "source_sha256": file_sha256(folder / MODEL_NAME)}
    with _appears_whole(output) as temporary:
        save_file(weights, temporary / WEIGHTS_NAME, metadata=metadata)
        (temporary / WEIGHTS_NAME).chmod(0o644)  # safetensors lets only the owner read it
        shutil.copyfile(folder / "tokenizer.json", temporary / "tokenizer.json")
        for name, document in documents.items():
            (temporary / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return output


class _Variables:
    """The variables of a CTranslate2 model, each taken once with its expected shape."""

    def __init__(self, folder: Path, variables: dict[str, np.ndarray]) -> None:
        self._folder = folder
        self._left = dict(variables)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a variable without taking it; every dimension is at least 1."""
        dimensions = self._left.get(name, np.zeros(())).shape
        if len(dimensions) != rank or 0 in dimensions:
            raise self.unfit(f"{name} is missing or has the shape {dimensions}")
        return dimensions

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Take a variable and return it."""
        array = self._left.pop(name, None)
        if array is None:
            raise self.unfit(f"{name} is missing")
        if array.shape != shape:
            raise self.unfit(f"{name} has the shape {array.shape}, not {shape}")
        return array

    def count(self, prefix: str) -> int:
        """Return the number of variables prefix0, prefix1, ..."""
        names = {name[len(prefix) :].split("/")[0] for name in self._left if name.startswith(prefix)}
        return next(number for number in range(len(names) + 1) if str(number) not in names)

    def check_nothing_is_left(self) -> None:
        """Refuse weights that Whisper does not have; further scalars must be 0."""
        for name, array in sorted(self._left.items()):
            is_alignment = name in ("decoder/alignment_heads", "decoder/alignment_layer")  # of other kinds of models
            if not is_alignment and (array.ndim or array != 0):
                raise self.unfit(f"a Whisper has no {name}")

    def unfit(self, what: str) -> ModelFormatError:
        """Return the error of a model whose variables are not those of a Whisper."""
        return ModelFormatError(what, path=self._folder / MODEL_NAME, remedy=_REMEDY)


def _convert_weights(variables: _Variables) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return weights by transformers' names, and the network's settings derived from their shapes."""
    for name, expected in _FLAGS.items():
        if int(variables.take(name, ())) != expected:
            raise variables.unfit(f"{name} is not {expected}, as Whisper has it")
    vocabulary, width = variables.shape("decoder/embeddings/weight", 2)
    bands = variables.shape("encoder/conv1/weight", 3)[1]
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "d_model": width,
        "num_mel_bins": bands,
        "vocab_size": vocabulary,
        "max_source_positions": variables.shape("encoder/position_encodings/encodings", 2)[0],
        "max_target_positions": variables.shape("decoder/position_encodings/encodings", 2)[0],
    }
    if bands not in (80, 128) or config["max_source_positions"] != WINDOW_FRAMES // 2:
        message = f"takes {bands} bands and {2 * config['max_source_positions']} frames, not 80 or 128 and 3000"
        raise variables.unfit(message)
    weights: dict[str, np.ndarray] = {}
    for part in ("encoder", "decoder"):
        weights |= _convert_part(variables, part, config)
    for name, channels in (("conv1", bands), ("conv2", width)):
        weights[f"model.encoder.{name}.weight"] = variables.take(f"encoder/{name}/weight", (width, channels, 3))
        weights[f"model.encoder.{name}.bias"] = variables.take(f"encoder/{name}/bias", (width,))
    embeddings = variables.take("decoder/embeddings/weight", (vocabulary, width))
    projection = variables.take("decoder/projection/weight", (vocabulary, width))
    weights["model.decoder.embed_tokens.weight"] = embeddings
    config["tie_word_embeddings"] = projection is embeddings or np.array_equal(projection, embeddings)
    if not config["tie_word_embeddings"]:
        weights["proj_out.weight"] = projection
    is_half = all(array.dtype == np.float16 for array in weights.values())
    config["dtype"] = "float16" if is_half else "float32"
    return {name: array.astype(config["dtype"], copy=False) for name, array in weights.items()}, config


def _convert_part(variables: _Variables, part: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the weights of the encoder or the decoder, and add its size to the settings."""
    width = config["d_model"]
    layers = variables.count(f"{part}/layer_")
    heads = int(variables.take(f"{part}/num_heads", ()))
    if not layers or heads < 1 or width % heads:
        raise variables.unfit(f"the {part} has {layers} layers and {heads} heads at a width of {width}")
    inner = variables.shape(f"{part}/layer_0/ffn/linear_0/weight", 2)[0]
    config |= {f"{part}_layers": layers, f"{part}_attention_heads": heads, f"{part}_ffn_dim": inner}
    positions = config["max_source_positions" if part == "encoder" else "max_target_positions"]
    weights = {
        f"model.{part}.embed_positions.weight": variables.take(
            f"{part}/position_encodings/encodings", (positions, width)
        )
    }
    weights |= _norm(variables, f"{part}/layer_norm", f"model.{part}.layer_norm", width)
    for number in range(layers):
        source, target = f"{part}/layer_{number}", f"model.{part}.layers.{number}"
        weights |= _attention(variables, f"{source}/self_attention", f"{target}.self_attn", width, fused=(3,))
        if part == "decoder":
            weights |= _attention(variables, f"{source}/attention", f"{target}.encoder_attn", width, fused=(1, 2))
        weights |= _norm(variables, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", width)
        weights |= _linear(variables, f"{source}/ffn/linear_0", [f"{target}.fc1"], width, inner)
        weights |= _linear(variables, f"{source}/ffn/linear_1", [f"{target}.fc2"], inner, width)
    return weights


def _attention(
    variables: _Variables, source: str, target: str, width: int, fused: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return query, key, value and output; `fused` says how many of the first three each matrix joins."""
    weights = _norm(variables, f"{source}/layer_norm", f"{target}_layer_norm", width)
    names = iter([f"{target}.q_proj", f"{target}.k_proj", f"{target}.v_proj", f"{target}.out_proj"])
    for number, count in enumerate((*fused, 1)):
        targets = [next(names) for _ in range(count)]
        weights |= _linear(variables, f"{source}/linear_{number}", targets, width, width)
    # a bias of the keys adds the same to every position before the softmax, so it has no effect: Whisper has none
    del weights[f"{target}.k_proj.bias"]
    return weights


def _linear(variables: _Variables, source: str, targets: list[str], inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """Return the matrices of `outputs` rows each that are stacked in one CTranslate2 matrix."""
    rows = len(targets) * outputs
    matrices = np.split(variables.take(f"{source}/weight", (rows, inputs)), len(targets))
    biases = np.split(variables.take(f"{source}/bias", (rows,)), len(targets))
    weights = {f"{target}.weight": matrix for target, matrix in zip(targets, matrices, strict=True)}
    return weights | {f"{target}.bias": bias for target, bias in zip(targets, biases, strict=True)}


def _norm(variables: _Variables, source: str, target: str, width: int) -> dict[str, np.ndarray]:
    return {
        f"{target}.weight": variables.take(f"{source}/gamma", (width,)),
        f"{target}.bias": variables.take(f"{source}/beta", (width,)),
    }


def _read_tokens(folder: Path, size: int) -> dict[str, int]:
    """Return token -> number of tokenizer.json, where it agrees with the vocabulary of the weights."""
    document = _read_json(folder / "tokenizer.json")
    try:
        tokens = {str(token): int(number) for token, number in document["model"]["vocab"].items()}
        tokens |= {str(added["content"]): int(added["id"]) for added in document["added_tokens"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelFormatError("no tokenizer of Whisper", path=folder / "tokenizer.json", remedy=_REMEDY) from None
    vocabulary = _read_vocabulary(folder)
    if len(vocabulary) != size:
        message = f"a vocabulary of {len(vocabulary)} tokens, the weights have {size}"
        raise ModelFormatError(message, path=folder, remedy=_REMEDY)
    for token, number in tokens.items():
        if not 0 <= number < size or vocabulary[number] != token:
            message = f"belongs to another model: its token {token!r} is not number {number} of the vocabulary"
            raise ModelFormatError(message, path=folder / "tokenizer.json", remedy=_REMEDY)
    tasks = ("transcribe", "translate") if size >= _MULTILINGUAL_SIZE else ()
    for mark in ("endoftext", "startoftranscript", "startofprev", "notimestamps", *tasks):
        if f"<|{mark}|>" not in tokens:
            raise ModelFormatError(f"lacks Whisper's <|{mark}|>", path=folder / "tokenizer.json", remedy=_REMEDY)
    return tokens


def _read_vocabulary(folder: Path) -> list[str]:
    """Return the tokens by number from vocabulary.json, or from the older vocabulary.txt with one token per line."""
    if (folder / "vocabulary.json").is_file():
        document = _read_json(folder / "vocabulary.json", list)
        if not all(isinstance(token, str) for token in document):
            raise ModelFormatError("not a list of tokens", path=folder / "vocabulary.json", remedy=_REMEDY)
        return document
    path = folder / "vocabulary.txt"
    if not path.is_file():
        raise ModelNotFoundError("no vocabulary.json or vocabulary.txt in the folder", path=folder, remedy=_REMEDY)
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ModelFormatError("is not text in UTF-8", path=path, remedy=_REMEDY) from None


def _generation_settings(folder: Path, tokens: dict[str, int], config: dict[str, Any]) -> dict[str, Any]:
    """Return the generation settings of transformers from CTranslate2's config.json and the special tokens."""
    path = folder / "config.json"
    stored = _read_json(path)
    layers, heads = config["decoder_layers"], config["decoder_attention_heads"]
    settings = _special_tokens(tokens) | {
        "suppress_tokens": _numbers(stored.get("suppress_ids") or [], config["vocab_size"], path),
        "begin_suppress_tokens": _numbers(stored.get("suppress_ids_begin") or [], config["vocab_size"], path),
        "is_multilingual": config["vocab_size"] >= _MULTILINGUAL_SIZE,
        "max_initial_timestamp_index": 50,  # one second, as in openai/whisper
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "return_timestamps": False,
    }
    if settings["is_multilingual"]:
        settings["lang_to_id"] = {token: number for token, number in tokens.items() if _LANGUAGE.fullmatch(token)}
        settings["task_to_id"] = {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")}
    pairs = stored.get("alignment_heads") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ModelFormatError("alignment_heads are not pairs", path=path, remedy=_REMEDY)
    if pairs:
        layer_numbers = _numbers([pair[0] for pair in pairs], layers, path)
        head_numbers = _numbers([pair[1] for pair in pairs], heads, path)
        settings["alignment_heads"] = [list(pair) for pair in zip(layer_numbers, head_numbers, strict=True)]
    return settings


def _numbers(values: Any, limit: int, path: Path) -> list[int]:
    """Return a list of whole numbers from 0 to below the limit, or refuse it."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < limit for value in values):
        raise ModelFormatError(f"holds something else than numbers from 0 to {limit - 1}", path=path, remedy=_REMEDY)
    return values


def _special_tokens(tokens: dict[str, int]) -> dict[str, int]:
    end = tokens["<|endoftext|>"]
    marks: dict[str, int] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    return marks | {"decoder_start_token_id": tokens["<|startoftranscript|>"]}


def _feature_settings(bands: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": bands,
        "chunk_length": WINDOW_S,
        "hop_length": HOP_LENGTH,
        "n_fft": N_FFT,
        "n_samples": WINDOW_SAMPLES,
        "nb_max_frames": WINDOW_FRAMES,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": SAMPLE_RATE,
    }


_TOKENIZER_SETTINGS = {
    "tokenizer_class": "WhisperTokenizer",
    "add_prefix_space": False,
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
}


def _read_json(path: Path, kind: type = dict) -> Any:
    """Return the object or list that a JSON file holds."""
    if not path.is_file():
        raise ModelNotFoundError(f"no {path.name} in the folder", path=path.parent, remedy=_REMEDY)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelFormatError("not readable as JSON", path=path, remedy=_REMEDY) from None
    if not isinstance(document, kind):
        raise ModelFormatError("holds another JSON value than a model has", path=path, remedy=_REMEDY)
    return document


def _check_output(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise UsageError("exists already", path=output, remedy="remove it, or name another folder")


@contextlib.contextmanager
def _appears_whole(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to the output at the end, or removed after an error."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            os.rename(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise AudioLLMError(message, path=output, remedy="free space there, or name another folder") from None
