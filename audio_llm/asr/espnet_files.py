"""The files of a trained ESPnet model: finding them, and reading them without executing code."""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.errors import ModelFormatError, ModelNotFoundError

if TYPE_CHECKING:
    import torch

# What may be built from config.yaml: ESPnet's own layers. The rest of its choices (s3prl, fairseq, Hugging Face,
# OpenAI Whisper, BEATs...) download or unpickle further checkpoints that the configuration names; transducers need a
# package for their training loss even to decode.
_ALLOWED: dict[str, frozenset[str | None]] = {
    "frontend": frozenset({None, "default", "sliding_window"}),
    "specaug": frozenset({None, "specaug"}),
    "normalize": frozenset({None, "global_mvn", "utterance_mvn"}),
    "model": frozenset({None, "espnet"}),
    "preencoder": frozenset({None, "sinc", "linear"}),
    "encoder": frozenset(
        {
            "conformer",
            "transformer",
            "contextual_block_conformer",
            "contextual_block_transformer",
            "branchformer",
            "e_branchformer",
            "multiconv_conformer",
            "vgg_rnn",
            "rnn",
        }
    ),
    "postencoder": frozenset({None, "length_adaptor"}),
    "decoder": frozenset({None, "transformer", "rnn", "lightweight_conv", "dynamic_conv"}),
    "token_type": frozenset({"char", "bpe", "word"}),
}
_PREFERRED_WEIGHTS = (
    "model.safetensors",
    "valid.acc.ave.pth",
    "valid.acc.ave_10best.pth",
    "valid.acc.best.pth",
    "valid.cer_ctc.ave.pth",
    "valid.loss.ave.pth",
    "valid.loss.best.pth",
    "model.pth",
    "latest.pth",
)


@dataclass(frozen=True)
class EspnetFiles:
    """Paths of the parts of one model.

    Attributes:
        folder: The model folder.
        config: Its config.yaml with the arguments of the training.
        weights: Its .safetensors or .pth file.
    """

    folder: Path
    config: Path
    weights: Path


def find_files(model_dir: str | os.PathLike[str]) -> EspnetFiles:
    """Find configuration and weights in a training folder, or in an unpacked model zoo archive with meta.yaml.

    Raises:
        ModelNotFoundError: The folder, its config.yaml or its weights are missing.
        ModelFormatError: meta.yaml names files in another form than ESPnet writes.
    """
    folder = Path(model_dir).expanduser()
    remedy = "give the folder with config.yaml and the .pth file of an ESPnet training"
    if not folder.is_dir():
        raise ModelNotFoundError("no such folder", path=folder, remedy=remedy)
    if (folder / "meta.yaml").is_file():
        config, weights = _files_of_archive(folder)
    else:
        config, weights = folder / "config.yaml", _weights_in(folder)
    for path in (config, weights):
        if not path.is_file():
            raise ModelNotFoundError("no such file in the model", path=path, remedy=remedy)
    return EspnetFiles(folder, config, weights)


def read_config(files: EspnetFiles) -> dict[str, Any]:
    """Read config.yaml; the files that it names are located even if the model was moved.

    Raises:
        ModelFormatError: It is no mapping, or a file that it names is not there.
    """
    config = _read_yaml(files.config)
    token_list = config.get("token_list")
    if isinstance(token_list, str):
        lines = _locate(token_list, files).read_text(encoding="utf-8").splitlines()
        config["token_list"] = [line.rstrip() for line in lines]
    elif not isinstance(token_list, list) or not all(isinstance(token, str) for token in token_list):
        raise ModelFormatError("it has no token_list", path=files.config, remedy="take the one the training wrote")
    if config.get("token_type") == "bpe":
        config["bpemodel"] = str(_locate(config.get("bpemodel"), files))
    if config.get("normalize") == "global_mvn":
        settings = dict(config.get("normalize_conf") or {})
        settings["stats_file"] = str(_locate(settings.get("stats_file"), files))
        config["normalize_conf"] = settings
    return config


def check_config(config: dict[str, Any], path: Path) -> None:
    """Refuse a configuration that makes ESPnet fetch or unpickle anything beyond the model itself.

    Raises:
        ModelFormatError: A part of the network is not one of ESPnet's own.
    """
    for key, allowed in _ALLOWED.items():
        value = config.get(key)
        if value not in allowed:
            names = ", ".join(sorted(name for name in allowed if name))
            message = f"{key} {value!r} is not supported, because it may load code or files from elsewhere"
            raise ModelFormatError(message, path=path, remedy=f"use a model with one of: {names}")
    if config.get("use_adapter"):
        raise ModelFormatError("adapters are not supported", path=path, remedy="merge the adapter into the model")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, or from ESPnet's own .pth with an unpickler that knows only tensors.

    Raises:
        ModelFormatError: The file is damaged, or holds anything but tensors.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelFormatError(f"damaged: {error}", path=path, remedy="copy the model again") from None
    try:
        # weights_only: a pickle that names any other class or function is an error, and nothing of it is run
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named[1]}" if named else "it is no pickle of tensors"
        message = f"not a plain state dict, so reading it could run code: {what}"
        remedy = "save model.state_dict() alone, or convert it to model.safetensors where you trust it"
        raise ModelFormatError(message, path=path, remedy=remedy) from None
    except (EOFError, OSError, RuntimeError) as error:
        raise ModelFormatError(f"damaged: {error}", path=path, remedy="copy the model again") from None
    if isinstance(state, dict) and isinstance(state.get("module"), dict):  # as deepspeed writes it
        state = state["module"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        remedy = "give the model file of the training, not checkpoint.pth"
        raise ModelFormatError("holds no state dict of tensors", path=path, remedy=remedy)
    return state


def _files_of_archive(folder: Path) -> tuple[Path, Path]:
    meta = _read_yaml(folder / "meta.yaml")
    try:
        config, weights = meta["yaml_files"]["asr_train_config"], meta["files"]["asr_model_file"]
        return folder / config, folder / weights
    except (KeyError, TypeError):
        message = "names no asr_train_config and asr_model_file"
        raise ModelFormatError(message, path=folder / "meta.yaml", remedy="give a recognition model") from None


def _weights_in(folder: Path) -> Path:
    for name in _PREFERRED_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    candidates = sorted(path for path in folder.glob("*.pth") if path.name != "checkpoint.pth")
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        message = f"{len(candidates)} ambiguous weight files: {', '.join(path.name for path in candidates[:5])}"
        raise ModelNotFoundError(message, path=folder, remedy="name the right one model.pth")
    return folder / "model.pth"


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"not YAML: {error}", path=path, remedy="take the one the training wrote") from None
    if not isinstance(content, dict):
        raise ModelFormatError("not a mapping", path=path, remedy="take the one the training wrote")
    return content


def _locate(named: Any, files: EspnetFiles) -> Path:
    """Find a file that config.yaml names relative to the recipe it was trained in."""
    if isinstance(named, str) and named:
        recipe = files.config.parent.parent.parent  # <recipe>/exp/<model>/config.yaml
        for base in (Path(), files.folder, files.config.parent, recipe):
            if (base / named).is_file():
                return (base / named).resolve()
        matches = sorted(files.folder.rglob(Path(named).name))
        if len(matches) == 1:
            return matches[0].resolve()
    raise ModelFormatError(f"names {named!r}, which is not there", path=files.config, remedy="copy it into the folder")
