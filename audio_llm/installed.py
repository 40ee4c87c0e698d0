"""Records of installed models: their files, their origin, and the check that they are unchanged."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audio_llm.atomic import write_text
from audio_llm.errors import ModelFormatError, ModelNotFoundError
from audio_llm.registry import CTRANSLATE2_WHISPER, MODELS

MANIFEST_NAME = "audio-llm.json"
STAMP_NAME = ".checked.json"
MANIFEST_VERSION = 1

_HASH_BLOCK = 1 << 20  # bytes
_PICKLE_STARTS = (b"\x80", b"PK")  # a bare pickle, and the zip that torch.save writes
_SPEC_BYTES = 64  # the name of the network stands within so many bytes of a CTranslate2 file
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstalledFile:
    """Size and SHA-256 of one file, as recorded when it was installed."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The record that `audio-llm models get` writes into a model's folder.

    Attributes:
        name: Name of the model.
        kind: Form of its files, such as `ctranslate2-whisper` or `transformers:whisper`.
        license: SPDX identifier; empty where the source states none.
        source: `index` or `hub`.
        origin: Wheels with hashes and uploaders, or the repository with its commit.
        verified_by_project: Every file has the SHA-256 that this package pins, or was converted from one that has.
        files: Recorded files by name.
    """

    name: str
    kind: str
    license: str
    source: str
    origin: dict[str, Any]
    verified_by_project: bool
    files: dict[str, InstalledFile]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the record of an installed model, or None for a folder without one.

    Raises:
        ModelFormatError: The record is damaged or of another version.
    """
    path = folder / MANIFEST_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format_version"] != MANIFEST_VERSION:
            remedy = "update audio-llm, or get the model again with --overwrite"
            raise ModelFormatError(f"has format version {document['format_version']}", path=path, remedy=remedy)
        files = {name: InstalledFile(int(f["size_bytes"]), str(f["sha256"])) for name, f in document["files"].items()}
        strings = {key: str(document[key]) for key in ("name", "kind", "license", "source")}
        origin, verified = dict(document["origin"]), document["verified_by_project"] is True
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _changed(path, f"is not readable: {error!r}") from None
    if any(Path(name).name != name or name.startswith(".") for name in files):
        raise _changed(path, "records a file outside its folder")
    return Manifest(**strings, origin=origin, verified_by_project=verified, files=files)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the record of an installed model."""
    text = json.dumps({"format_version": MANIFEST_VERSION, **asdict(manifest)}, indent=2, ensure_ascii=False)
    write_text(folder / MANIFEST_NAME, text + "\n")


def checked_files(folder: str | os.PathLike[str], full: bool = False) -> dict[str, Path]:
    """Return the files of an installed model after comparing them with their record.

    The SHA-256 of every file is computed when `full` is set, or when a file has another size or time than at the
    last complete check; otherwise sizes and times suffice, which takes no measurable time.

    Args:
        folder: A model's folder.
        full: Compute every SHA-256 in any case.

    Returns:
        Recorded files by name; empty for a folder that `audio-llm models get` did not write.

    Raises:
        ModelNotFoundError: The folder does not exist, or was removed.
        ModelFormatError: A file is missing or differs from its record; the error names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        remedy = f"it was removed: `audio-llm models get {folder.name.replace('--', '/')}`"
        raise ModelNotFoundError("there is no such folder", path=folder, remedy=remedy)
    manifest = read_manifest(folder)
    if manifest is None:
        return {}
    _compare_with_registry(folder, manifest)
    state = _state(folder, manifest)
    if full or _read_stamp(folder) != state:
        for name, recorded in manifest.files.items():
            if file_sha256(folder / name) != recorded.sha256:
                raise _changed(folder / name, "has another SHA-256 than the one recorded when it was installed")
        _write_stamp(folder, state)
    return {name: folder / name for name in manifest.files}


def weights_sha256(manifest: Manifest) -> str:
    """Return the SHA-256 of the largest file of a model: its weights."""
    return max(manifest.files.values(), key=lambda file: file.size_bytes).sha256


def is_ctranslate2(path: Path) -> bool:
    """Return whether a file begins like CTranslate2's format: a version and the name of a network, not a pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(_SPEC_BYTES)
    except OSError:
        return False
    version = int.from_bytes(start[:4], "little")
    return not start.startswith(_PICKLE_STARTS) and 0 < version < 1000 and b"Spec\0" in start


def foreign_kind(folder: Path) -> str | None:
    """Return the kind of a folder in the form of transformers or CTranslate2, or None for any other folder."""
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = None
    if isinstance(document, dict) and "format_version" not in document and "model_type" in document:
        return f"transformers:{document['model_type']}"
    return CTRANSLATE2_WHISPER if is_ctranslate2(folder / "model.bin") else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _compare_with_registry(folder: Path, manifest: Manifest) -> None:
    """Refuse a record that claims pinned files but has other hashes than this package pins."""
    model = MODELS.get(manifest.name)
    if model is None or model.index is None or manifest.source != "index" or not manifest.verified_by_project:
        return
    pinned = [wheel.sha256 for wheel in model.index.wheels]
    if [wheel.get("sha256") for wheel in manifest.origin.get("wheels", ())] != pinned or model.index.convert:
        return  # from other wheels, as an earlier version of this package pinned them; or not the files themselves
    for file in model.index.files:
        recorded = manifest.files.get(file.name)
        if recorded is None or recorded.sha256 != file.sha256:
            raise _changed(folder / MANIFEST_NAME, f"records {file.name} otherwise than this package pins it")


def _state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the content of a stamp, the record's SHA-256 with size and times of every file, after checking sizes."""
    files = {}
    for name, recorded in manifest.files.items():
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            raise _changed(folder / name, "is missing") from None
        if status.st_size != recorded.size_bytes:
            raise _changed(folder / name, f"has {status.st_size} bytes instead of {recorded.size_bytes}")
        files[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return {"manifest": file_sha256(folder / MANIFEST_NAME), "files": files}


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_stamp(folder: Path, state: dict[str, Any]) -> None:
    temporary = folder / f"{STAMP_NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, folder / STAMP_NAME)
    except OSError as error:  # a read-only folder: the next start computes the hashes again
        _log.debug("%s: the result of the check could not be stored: %s", folder, error)


def _changed(path: Path, what: str) -> ModelFormatError:
    remedy = f"get it again: `audio-llm models get {path.parent.name.replace('--', '/')} --overwrite`"
    return ModelFormatError(what, path=path, remedy=remedy)
