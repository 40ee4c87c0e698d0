"""Checkpoints of neural correctors: the trained weights, and the language model they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audio_llm import hub
from audio_llm.errors import ConfigError, ModelFormatError, ModelNotFoundError
from audio_llm.ger.batches import Collator
from audio_llm.ger.encoders import EmbeddingEncoder, HashNgramEncoder, SentenceEncoder, TextEncoder
from audio_llm.ger.model import GerSettings, RobustGer
from audio_llm.ger.prompt import PromptEncoder
from audio_llm.ger.settings import GerDecoding
from audio_llm.lm.causal import INSIDE, CausalLm, build_inside, load_causal_lm
from audio_llm.training.config import config_from_dict, config_to_dict

KIND = "ger"
_SAFE_DOWNLOADS = ["*.json", "*.safetensors", "*.txt", "*.model"]


@dataclass(frozen=True)
class GerCheckpoint:
    """A neural corrector in memory.

    Attributes:
        model: The network.
        collator: Builds its batches.
        llm: Name or folder of the language model; empty if its weights are in the model directory.
        fingerprint: See `llm_fingerprint`.
        llm_config: The language model's configuration, plain JSON values.
        tokenizer: The transformers tokenizer and the contents of its files by name.
        fresh_adapter: Whether the adapter is still untrained.
        normalizer: Name of the normalizer of the hypotheses.
        decoding: Decoding settings.
    """

    model: RobustGer
    collator: Collator
    llm: str
    fingerprint: str
    llm_config: dict[str, Any]
    tokenizer: tuple[Any, dict[str, str]]
    fresh_adapter: bool
    normalizer: str = "spoken"
    decoding: GerDecoding = field(default_factory=GerDecoding)


def build(llm: str | Path, settings: GerSettings) -> GerCheckpoint:
    """Build a corrector on a language model.

    Args:
        llm: A transformers folder, a name on the hub, or a `ger` model directory that holds its language model.
        settings: Prompt, adapter and LoRA that are added to it.

    Raises:
        ModelNotFoundError: There is no such language model.
        ModelFormatError: It has no tokenizer, or is not a decoder.
    """
    folder = _find_llm(str(llm))
    if _is_ger(folder):
        return _go_on_from(folder, settings)
    network, tokenizer, files = load_causal_lm(folder)
    return _put_together(network, tokenizer, files, settings, str(llm), llm_fingerprint(network))


def save(folder: Path, checkpoint: GerCheckpoint, provenance: Mapping[str, Any], card: str = "") -> Path:
    """Write a model directory; it holds the language model only if that was trained too or already inside."""
    config, tensors, assets = to_parts(checkpoint)
    return hub.save_model(folder, config, tensors, KIND, card or _CARD, provenance, assets)


def load(name_or_dir: str | Path, llm: str | Path | None = None, device: str = "cpu") -> GerCheckpoint:
    """Read a model directory that `save` wrote.

    Args:
        name_or_dir: See `hub.find_model`.
        llm: The language model, if it was moved since the training.
        device: Device of the network.

    Raises:
        ModelNotFoundError: It or its language model is missing.
        ModelFormatError: It is damaged, or was trained on another language model.
    """
    loaded = hub.load_model(name_or_dir, KIND)
    return from_parts(loaded.config, loaded.tensors, loaded.path, device, llm)


def to_parts(checkpoint: GerCheckpoint) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, str]]:
    """Return configuration, weights and text files of a corrector, to store in a model directory of any kind."""
    model = checkpoint.model
    inside = model.settings.tune == "all" or not checkpoint.llm
    tensors = dict(model.state_dict()) if inside else model.adapter_tensors()
    if inside and checkpoint.llm_config.get("tie_word_embeddings"):  # the output layer is the input's once more
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    config = {
        "settings": config_to_dict(model.settings),
        "llm": "" if inside else checkpoint.llm,
        "llm_fingerprint": checkpoint.fingerprint,
        "normalizer": checkpoint.normalizer,
        "decoding": config_to_dict(checkpoint.decoding),
    }
    assets = dict(checkpoint.tokenizer[1]) | {INSIDE: json.dumps(checkpoint.llm_config)} if inside else {}
    return config, tensors, assets


def from_parts(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor | np.ndarray],
    folder: Path,
    device: str = "cpu",
    llm: str | Path | None = None,
) -> GerCheckpoint:
    """Build a corrector from the parts that `to_parts` returned; errors as for `load`.

    Args:
        config: Its configuration.
        tensors: Its weights by name.
        folder: The model directory that holds its text files.
        device: Device of the network.
        llm: See `load`.
    """
    try:
        settings = config_from_dict(GerSettings, config["settings"], folder / hub.CONFIG_NAME)
        decoding = config_from_dict(GerDecoding, config["decoding"], folder / hub.CONFIG_NAME)
        name, expected, normalizer = str(config["llm"]), str(config["llm_fingerprint"]), str(config["normalizer"])
    except KeyError as error:
        raise ModelFormatError(f"its config.json lacks {error}", path=folder, remedy="train it again") from None
    if name:
        network, tokenizer, files = load_causal_lm(_find_llm(str(llm or name)))
        fingerprint = llm_fingerprint(network)
        if fingerprint != expected:
            message = f"was trained on another language model than {llm or name}"
            raise ModelFormatError(message, path=folder, remedy="give its own with --llm")
    else:
        network, tokenizer, files = build_inside(folder)
    checkpoint = _put_together(network, tokenizer, files, settings, name, expected, normalizer)
    _fill(checkpoint.model, {name: torch.as_tensor(tensor).float() for name, tensor in tensors.items()}, folder)
    checkpoint.model.to(device).eval()
    return replace(checkpoint, decoding=decoding)


def llm_fingerprint(network: Any) -> str:
    """Return the SHA-256 over the shapes and a sample of every weight of a language model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _is_ger(folder: Path) -> bool:
    try:
        return hub.model_kind(folder) == KIND
    except ModelFormatError:
        return False


def _go_on_from(folder: Path, settings: GerSettings) -> GerCheckpoint:
    """Return a corrector on the language model inside a model directory, with the trained weights that still fit.

    LoRA of other settings is merged into the language model's weights.
    """
    old = load(folder)
    if old.llm:
        raise ModelFormatError("holds no language model", path=folder, remedy="name the language model itself")
    before = old.model.settings
    same_lora = (before.lora, before.tune) == (settings.lora, settings.tune)
    old.model.detach()
    network, tokenizer, files = build_inside(folder) if same_lora else (_merged(old.model.llm), *old.tokenizer)
    checkpoint = _put_together(network, tokenizer, files, settings, "", llm_fingerprint(network))
    state = checkpoint.model.state_dict()
    same_adapter = (before.adapter, before.noise) == (settings.adapter, settings.noise)
    fitting = {
        name: tensor
        for name, tensor in old.model.state_dict().items()
        if name in state
        and state[name].shape == tensor.shape
        and (same_lora if name.startswith("llm.") else same_adapter or name.startswith("segments."))
    }
    checkpoint.model.load_state_dict(fitting, strict=False)
    fresh = not any(name.startswith("adapter.") for name in fitting)
    return replace(checkpoint, fresh_adapter=fresh)


def _merged(llm: Any) -> Any:
    return llm.merge_and_unload() if hasattr(llm, "merge_and_unload") else llm


def _put_together(
    network: Any,
    tokenizer: Any,
    files: dict[str, str],
    settings: GerSettings,
    llm: str,
    fingerprint: str,
    normalizer: str = "spoken",
) -> GerCheckpoint:
    if settings.use_noise and settings.noise.encoder == "llm" and settings.tune == "all":
        remedy = "use noise.encoder=hash, or tune=adapters"
        raise ConfigError("the embeddings that encode the noise would change in training", remedy=remedy)
    encoder = _encoder(settings, tokenizer, network) if settings.use_noise else None
    llm_config = CausalLm(network, tokenizer, files).config()
    model = RobustGer(network, encoder.width if encoder else 1, settings)
    collator = Collator(PromptEncoder(tokenizer, settings.prompt), encoder, settings.noise)
    return GerCheckpoint(model, collator, llm, fingerprint, llm_config, (tokenizer, files), True, normalizer)


def _encoder(settings: GerSettings, tokenizer: Any, network: Any) -> TextEncoder:
    if settings.noise.encoder == "hash":
        return HashNgramEncoder(settings.noise.width)
    if settings.noise.encoder == "llm":
        return EmbeddingEncoder(tokenizer, network.get_input_embeddings().weight.detach().float().cpu().numpy())
    return SentenceEncoder(settings.noise.encoder)


def _find_llm(llm: str) -> Path:
    """Return the folder of a language model: a path, a model of this package, one in huggingface's cache or its hub."""
    if Path(llm).is_dir():
        return Path(llm)
    try:
        return hub.find_model(llm)
    except ModelNotFoundError:
        pass
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(llm, local_files_only=hub.is_offline(), allow_patterns=_SAFE_DOWNLOADS))
    except Exception as error:  # the client's own errors and those of its network library have no common base
        remedy = "check --llm" + (", or allow downloads" if hub.is_offline() else " and the network")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(f"no language model named {llm!r}: {reason}", remedy=remedy) from None


def _fill(model: RobustGer, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    state = model.state_dict()
    config = model.llm.config
    tied = (
        {n for n in state if n.endswith("lm_head.weight")} if getattr(config, "tie_word_embeddings", False) else set()
    )
    wrong = [name for name, tensor in tensors.items() if name not in state or state[name].shape != tensor.shape]
    inside = any(name.startswith("llm.") and "lora_" not in name for name in tensors)
    missing = set(state if inside else model.adapter_tensors()) - set(tensors) - tied
    if wrong or missing:
        raise ModelFormatError(f"its weights do not fit its settings: {sorted([*wrong, *missing])[:3]}", path=path)
    model.load_state_dict(dict(tensors), strict=False)


_CARD = """# Neural corrector of N-best lists

Trained by `audio-llm train ger`; use it with `audio-llm correct LISTS --corrector ger --model FOLDER`. Its config.json
names the language model it belongs to and the data it was trained on.
"""
