"""Model directories (config.json, model.safetensors, README.md): saving, lookup by name or path, verification."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from audio_llm.atomic import write_text
from audio_llm.errors import AudioLLMError, ConfigError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.installed import (
    MANIFEST_NAME,
    Manifest,
    checked_files,
    file_sha256,
    foreign_kind,
    read_manifest,
    weights_sha256,
)
from audio_llm.registry import MODELS, canonical_name

if TYPE_CHECKING:
    from torch import Tensor, nn

S = TypeVar("S")
N = TypeVar("N", bound="nn.Module")

FORMAT_VERSION = 1
CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "config.json", "model.safetensors", "README.md"
PRETRAINED = Path(__file__).parent / "pretrained"

_ASSET_SUFFIXES = (".json", ".txt")
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_PICKLE_STARTS = (b"\x80", b"PK")  # a bare pickle, and the zip that torch.save writes
_offline = False


@dataclass(frozen=True)
class LoadedModel:
    """One model directory in memory.

    Attributes:
        path: The folder, with further .json and .txt files of the model, whose hashes are checked.
        kind: What the model is, such as `dlm` or `ctc`.
        config: The settings the network is built from.
        tensors: Weights by name; half precision is widened to float32.
        provenance: How it was made: recipe, seed, commit, data, versions.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class LoadedArrays:
    """One model directory in memory, without torch.

    Attributes:
        path: As in `LoadedModel`.
        config: The settings.
        arrays: Weights by name; half precision is widened to float32.
    """

    path: Path
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class ModelInfo:
    """Summary of a model directory.

    Attributes:
        name: Name of the model.
        path: Its folder.
        kind: `dlm`, `ctc`, ...; `transformers:TYPE` for a folder in the transformers form; empty if unreadable.
        size_bytes: Size of all its files.
        provenance: How it was made.
        problem: Why it cannot be used, or None; hashes are checked by `verify_model` only.
    """

    name: str
    path: Path
    kind: str
    size_bytes: int
    provenance: dict[str, Any]
    problem: str | None = None


def set_offline(offline: bool) -> None:
    """Forbid (or allow again) every download, here and in huggingface_hub and transformers."""
    global _offline
    _offline = offline
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:  # it read the environment when it was imported
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def is_offline() -> bool:
    """Return whether downloads are forbidden, by `set_offline` or by AUDIO_LLM_OFFLINE or HF_HUB_OFFLINE."""
    return _offline or any(
        os.environ.get(name, "").lower() not in ("", "0", "no", "false")
        for name in ("AUDIO_LLM_OFFLINE", "HF_HUB_OFFLINE")
    )


def cache_folder() -> Path:
    """Return the folder of installed models: $AUDIO_LLM_CACHE, or `audio-llm/models` in the user's cache."""
    chosen = os.environ.get("AUDIO_LLM_CACHE")
    return Path(chosen).expanduser() if chosen else _user_cache() / "audio-llm" / "models"


def _user_cache() -> Path:
    """Return the folder that the platform provides for caches."""
    if sys.platform == "win32":
        variable, default = "LOCALAPPDATA", Path("~/AppData/Local")
    elif sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    else:
        variable, default = "XDG_CACHE_HOME", Path("~/.cache")
    chosen = os.environ.get(variable, "")
    return Path(chosen) if os.path.isabs(chosen) else default.expanduser()


def save_model(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kind: str,
    card: str,
    provenance: Mapping[str, Any] | None = None,
    assets: Mapping[str, str] | None = None,
) -> Path:
    """Write a model directory; a new one is written completely or not at all.

    In a folder that exists the files are replaced one by one, config.json with the hashes last, so that a
    kill in between is noticed when the model is loaded; other files in it stay.

    Args:
        folder: The directory to create.
        config: Settings of the network, plain JSON values.
        tensors: Weights by name, any shape; stored in the dtype given (`tensor.half()` halves the file).
        kind: Kind of the model, such as `dlm`.
        card: Text of README.md.
        provenance: Recipe, seed, commit, data, versions, fingerprints of models it depends on.
        assets: Further text files by name (.json or .txt).

    Returns:
        The folder.

    Raises:
        UsageError: An asset has a name or an ending that a model directory does not hold.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    for name in assets or {}:
        if Path(name).name != name or Path(name).suffix not in _ASSET_SUFFIXES or name == CONFIG_NAME:
            raise UsageError(f"{name!r} cannot lie in a model directory", remedy="name it NAME.json or NAME.txt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # clone: safetensors refuses tensors that share memory (tied weights)
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(plain, temporary / WEIGHTS_NAME)
        (temporary / WEIGHTS_NAME).chmod(0o644)  # safetensors lets only the owner read it
        for name, text in {**(assets or {}), CARD_NAME: card}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        hashes = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
        document = {"format_version": FORMAT_VERSION, "kind": kind, "config": dict(config), "sha256": hashes}
        _write_config(temporary, document | {"provenance": dict(provenance or {})})
        temporary.chmod(0o755)
        if folder.exists():
            for name in [*hashes, CONFIG_NAME]:
                os.replace(temporary / name, folder / name)
        else:
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_card(folder: str | os.PathLike[str], card: str) -> None:
    """Replace the README.md of a model directory and its hash."""
    folder = Path(folder)
    document = _read_config(folder)
    write_text(folder / CARD_NAME, card)
    document["sha256"][CARD_NAME] = file_sha256(folder / CARD_NAME)
    _write_config(folder, document)


def load_model(name_or_dir: str | os.PathLike[str], kind: str | None = None, device: str = "cpu") -> LoadedModel:
    """Read a model directory and check it (the hash of its card is left to `verify_model`).

    Args:
        name_or_dir: See `find_model`.
        kind: The expected kind; None accepts any.
        device: Device of the tensors.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelFormatError: It is damaged, of another kind or version, or holds pickles.
    """
    import torch
    from safetensors.torch import load_file

    folder, document = _open(name_or_dir, kind)
    tensors = _read_weights(folder, lambda path: load_file(path, device=device))
    half = (torch.float16, torch.bfloat16)
    tensors = {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}
    return LoadedModel(folder, document["kind"], document["config"], tensors, document["provenance"])


def load_network(
    name_or_dir: str | os.PathLike[str], kind: str, settings: type[S], build: Callable[[S], N], device: str = "cpu"
) -> N:
    """Return the network of a model directory, in eval mode.

    Args:
        name_or_dir: See `find_model`.
        kind: The expected kind.
        settings: Dataclass of the settings.
        build: Function from settings to network.
        device: Device of the network.

    Raises:
        ModelNotFoundError, ModelFormatError: As `load_model`, or the weights do not fit the settings.
    """
    from audio_llm.training.config import config_from_dict

    loaded = load_model(name_or_dir, kind, device)
    try:
        network = build(config_from_dict(settings, loaded.config, loaded.path / CONFIG_NAME))
        network.load_state_dict(loaded.tensors)
    except (ConfigError, RuntimeError) as error:
        remedy = "get the model again, or a version of audio-llm that knows it"
        raise ModelFormatError(
            f"its weights or settings do not fit: {error}", path=loaded.path, remedy=remedy
        ) from None
    return network.to(device).eval()


def load_arrays(name_or_dir: str | os.PathLike[str], kind: str | None = None) -> LoadedArrays:
    """Do as `load_model`, without torch: weights as arrays. Those in bfloat16 need the package ml_dtypes."""
    from safetensors.numpy import load_file

    folder, document = _open(name_or_dir, kind)
    arrays = _read_weights(folder, load_file)
    half = ("float16", "bfloat16")
    arrays = {name: a.astype(np.float32) if a.dtype.name in half else a for name, a in arrays.items()}
    return LoadedArrays(folder, document["config"], arrays)


def _open(name_or_dir: str | os.PathLike[str], kind: str | None) -> tuple[Path, dict[str, Any]]:
    """Return folder and config.json of a model directory, its files checked."""
    folder = find_model(name_or_dir)
    document = _read_config(folder, kind)
    _check_files(folder, document, except_for={CARD_NAME})
    return folder, document


def _read_weights(folder: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        return read(folder / WEIGHTS_NAME)
    except (SafetensorError, OSError, ValueError, TypeError) as error:  # numpy has no bfloat16
        raise _damaged(folder / WEIGHTS_NAME, f"not readable as safetensors: {error}") from None


def model_kind(name_or_dir: str | os.PathLike[str]) -> str:
    """Return the kind of a model directory without reading its weights."""
    return str(_read_config(find_model(name_or_dir))["kind"])


def model_settings(name_or_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings a model directory was saved with, without reading its weights."""
    return dict(_read_config(find_model(name_or_dir))["config"])


def fingerprint(name_or_dir: str | os.PathLike[str]) -> str:
    """Return the recorded SHA-256 of a model's weights, for models that depend on it."""
    folder = find_model(name_or_dir)
    manifest = read_manifest(folder)
    if manifest is not None and manifest.files and WEIGHTS_NAME not in manifest.files:
        return weights_sha256(manifest)
    return str(_read_config(folder)["sha256"][WEIGHTS_NAME])


def model_stamp(name: str | None) -> str | None:
    """Return the name and, for a local model, a hash of its config, which holds the hashes of its weights."""
    if name is None:
        return None
    try:
        folder = find_model(name)
        manifest = folder / MANIFEST_NAME
        config = (manifest if manifest.is_file() else folder / CONFIG_NAME).read_bytes()
    except (AudioLLMError, OSError):  # the error is raised where the model is loaded
        return name
    return f"{name}:{hashlib.sha256(config).hexdigest()[:16]}"


def find_companion(name_or_dir: str | os.PathLike[str], name: str, sha256: str | None = None) -> Path:
    """Return the folder of a model that another one needs: a sibling of that one's folder, or by name.

    Args:
        name_or_dir: The model that needs it.
        name: Name of the needed model.
        sha256: Expected fingerprint; None leaves the check to the caller.

    Raises:
        ModelNotFoundError: It is not there.
        ModelFormatError: The model of that name has another fingerprint.
    """
    folder = find_model(name_or_dir)
    sibling = folder.parent / name
    companion = find_model(sibling if sibling.is_dir() else name)
    if sha256 is not None and fingerprint(companion) != sha256:
        remedy = "tune it again, or get both again"
        raise ModelFormatError(
            f"its settings belong to another model than the {name!r} that is here", path=folder, remedy=remedy
        )
    return companion


def find_model(name_or_dir: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: a path, else a model shipped with the package, else one in the cache.

    Args:
        name_or_dir: A folder, a name, or an alias of a registered model such as `tiny.en`.

    Raises:
        ModelNotFoundError: None of these holds it; the message names the command that installs a registered model,
            else models with a similar name.
    """
    text = os.fspath(name_or_dir)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path
    if path.is_file():
        raise ModelFormatError("is a file", path=path, remedy=f"give the folder with {CONFIG_NAME} and {WEIGHTS_NAME}")
    is_name = bool(text) and not path.is_absolute() and ".." not in path.parts
    registered = canonical_name(text)
    for name in (text, registered) if registered not in (None, text) else (text,):
        for root in (PRETRAINED, cache_folder()):
            folder = root / str(name).replace("/", "--")
            if is_name and _is_model(folder):
                return folder
    if registered is not None:
        remedy = f"`audio-llm models get {registered}` downloads it, about {MODELS[registered].size_bytes / 1e6:.0f} MB"
        raise ModelNotFoundError(f"the model {registered} is not installed", remedy=remedy)
    names = list({model.name: None for model in list_models()} | dict.fromkeys(MODELS))
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known models: {', '.join(names) or 'none'}"
    remedy = f"{hint}; see `audio-llm models list` and `audio-llm models get`"
    raise ModelNotFoundError(f"no model is named {text!r} and there is no such folder", remedy=remedy)


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() or (folder / MANIFEST_NAME).is_file()


def list_models() -> list[ModelInfo]:
    """Return the models shipped with the package and those in the cache, by name, the shipped ones first."""
    models: dict[str, ModelInfo] = {}
    for root in (PRETRAINED, cache_folder()):
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        for folder in folders:
            name = folder.name.replace("--", "/")
            if _is_model(folder) and name not in models and not folder.name.startswith("."):
                models[name] = model_info(folder, name)
    return list(models.values())


def model_info(name_or_dir: str | os.PathLike[str], name: str | None = None) -> ModelInfo:
    """Describe a model without reading its weights; defects are described in `problem`."""
    folder = find_model(name_or_dir)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    name = name or folder.resolve().name.replace("--", "/")
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            return ModelInfo(
                name, folder, manifest.kind, size, _origin(manifest), problem=_missing_file(folder, manifest)
            )
        kind = foreign_kind(folder)
        if kind is not None:
            return ModelInfo(name, folder, kind, size, {})
        document = _read_config(folder)
    except AudioLLMError as error:
        return ModelInfo(name, folder, "", size, {}, problem=str(error))
    return ModelInfo(name, folder, document["kind"], size, document["provenance"])


def _origin(manifest: Manifest) -> dict[str, Any]:
    """Return the origin of an installed model from its record."""
    verified = "by this project" if manifest.verified_by_project else "not verified by the project"
    return {"source": manifest.source, "license": manifest.license, "files verified": verified, **manifest.origin}


def _missing_file(folder: Path, manifest: Manifest) -> str | None:
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    return f"{folder / missing[0]}: is missing" if missing else None


def verify_model(name_or_dir: str | os.PathLike[str]) -> ModelInfo:
    """Check every file of a model directory against its recorded hash.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelFormatError: A file is missing, changed, or a pickle.
    """
    folder = find_model(name_or_dir)
    if not checked_files(folder, full=True):
        _check_files(folder, _read_config(folder))
    return model_info(folder)


def _read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Return config.json after checking its form, its version and its kind."""
    path = folder / CONFIG_NAME
    _refuse_pickles(folder)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "give a folder with config.json and model.safetensors"
        raise ModelFormatError("is not a model directory: it has no config.json", path=folder, remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, f"not readable: {error}") from None
    version = document.get("format_version") if isinstance(document, dict) else None
    if version is None:
        remedy = "a transformers folder is for `--recognizer whisper`; other models come from `audio-llm train`"
        raise ModelFormatError("has no format_version: not a model of this package", path=path, remedy=remedy)
    if version != FORMAT_VERSION:
        remedy = "update audio-llm, or train the model again with this version"
        raise ModelFormatError(f"format version {version}, this one reads {FORMAT_VERSION}", path=path, remedy=remedy)
    for key, of_type in {"kind": str, "config": dict, "sha256": dict, "provenance": dict}.items():
        if not isinstance(document.get(key), of_type):
            raise _damaged(path, f"{key!r} is missing or not a {of_type.__name__}")
    if kind is not None and document["kind"] != kind:
        remedy = f"choose a model of kind {kind}: see `audio-llm models list`"
        raise ModelFormatError(f"is a model of kind {document['kind']}, not {kind}", path=folder, remedy=remedy)
    return document


def _refuse_pickles(folder: Path) -> None:
    """Raise if a pickle lies in the folder, under its own name or in place of the weights."""
    remedy = "pickles can run code and are never loaded: get or convert the model as model.safetensors"
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLE_SUFFIXES:
            raise ModelFormatError("is a pickle", path=path, remedy=remedy)
    weights = folder / WEIGHTS_NAME
    if weights.is_file():
        with weights.open("rb") as file:
            start = file.read(16)
        # a safetensors file opens with the length of its header and a brace
        if start.startswith(_PICKLE_STARTS) and start[8:9] != b"{":
            raise ModelFormatError("holds a pickle instead of safetensors", path=weights, remedy=remedy)


def _check_files(folder: Path, document: dict[str, Any], except_for: set[str] | None = None) -> None:
    if WEIGHTS_NAME not in document["sha256"]:
        raise _damaged(folder / CONFIG_NAME, f"records no sha256 for {WEIGHTS_NAME}")
    for name, expected in document["sha256"].items():
        path = folder / name
        if Path(name).name != name:
            raise _damaged(folder / CONFIG_NAME, f"{name!r} is not a plain file name")
        if name in (except_for or ()):
            continue
        if not path.is_file():
            raise _damaged(path, "is missing")
        if file_sha256(path) != expected:
            raise _damaged(path, "has another sha256 than config.json records: changed or cut off")


def _damaged(path: Path, what: str) -> ModelFormatError:
    return ModelFormatError(what, path=path, remedy="copy, download or train the model again")


def _write_config(folder: Path, document: dict[str, Any]) -> None:
    write_text(folder / CONFIG_NAME, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
