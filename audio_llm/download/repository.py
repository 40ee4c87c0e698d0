"""Models on the Hugging Face hub: data files only, each compared with the hash that the hub states for it."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_llm.errors import DownloadError, ModelFormatError
from audio_llm.installed import file_sha256, is_ctranslate2
from audio_llm.registry import HubSource

_TIMEOUT_S = 5.0  # timeout of the first request to the hub
_TEXT_PATTERNS = ("*.json", "*.txt", "*.md")
_TRANSFORMERS_PATTERNS = (*_TEXT_PATTERNS, "*.safetensors")
_CTRANSLATE2_PATTERNS = (*_TEXT_PATTERNS, "model.bin")
_NO_PICKLES = "choose a revision or a model that is published as safetensors; pickles are never loaded"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: Its path in the repository.
        size_bytes: Its size, or None where the hub states none.
        sha256: SHA-256 that the hub states, for large files.
        git_sha1: Hash of the git object, for the others.
    """

    name: str
    size_bytes: int | None
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Repository:
    """One commit of a repository on the hub."""

    repo_id: str
    commit: str
    license: str
    files: tuple[RemoteFile, ...]


def fetch(source: HubSource, staging: Path) -> dict[str, Any]:
    """Download the files of a model into `staging/files`; partial files of an earlier attempt are continued.

    Args:
        source: Repository, revision and names of files.
        staging: Folder to work in.

    Returns:
        The origin to record: repository, commit, license, and the hashes that the hub stated.

    Raises:
        DownloadError: The hub cannot be reached, or has no such repository or revision.
        ModelFormatError: The repository holds no weights in a safe form, or a file differs from the hub's hash.
    """
    repository = describe(source.repo_id, source.revision)
    chosen = _choose(repository, source.patterns)
    folder = staging / "files"
    for path in folder.iterdir():  # of another revision
        if path.is_file() and path.name not in {file.name for file in chosen}:
            path.unlink()
    _require_space(chosen, staging)
    for file in chosen:
        download_file(repository, file.name, folder)
        _compare(file, folder / file.name)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # metadata of huggingface_hub
    if any(file.name == "model.bin" for file in chosen) and not is_ctranslate2(folder / "model.bin"):
        raise ModelFormatError(f"model.bin of {source.repo_id} is not a CTranslate2 file", remedy=_NO_PICKLES)
    stated = {file.name: file.sha256 for file in chosen if file.sha256}
    origin = {"repo_id": repository.repo_id, "commit": repository.commit, "license": repository.license}
    return {**origin, "stated_sha256": stated}


def describe(repo_id: str, revision: str | None) -> Repository:
    """Return the files of a repository on the hub.

    Raises:
        DownloadError: It cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except Exception as error:  # errors of the client and of its network library have no common base
        raise _hub_error(repo_id, error) from error
    files = []
    for item in info.siblings or ():
        sha256 = item.lfs.sha256 if item.lfs else None
        files.append(RemoteFile(item.rfilename, item.size, sha256, None if sha256 else item.blob_id))
    license_name = info.card_data.get("license") if info.card_data else None
    return Repository(repo_id, str(info.sha), str(license_name or ""), tuple(files))


def download_file(repository: Repository, name: str, folder: Path) -> None:
    """Download one file of a repository into a folder.

    Raises:
        DownloadError: The connection failed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()  # a library prints nothing
    try:
        hf_hub_download(repository.repo_id, name, revision=repository.commit, local_dir=folder)
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):  # error of the disk
            raise
        raise _hub_error(repository.repo_id, error) from error
    except Exception as error:
        raise _hub_error(repository.repo_id, error) from error
    finally:
        if not silent:
            enable_progress_bars()


def _choose(repository: Repository, patterns: tuple[str, ...]) -> list[RemoteFile]:
    """Return the files to download, from the top folder only: text, and weights in a form without code."""
    files = [file for file in repository.files if "/" not in file.name and not file.name.startswith(".")]
    names = {file.name for file in files}
    if not patterns:
        has_safetensors = any(name.endswith(".safetensors") for name in names)
        has_vocabulary = any(name.startswith("vocabulary.") for name in names)  # as CTranslate2 writes it
        if not has_safetensors and not ("model.bin" in names and has_vocabulary):
            raise ModelFormatError(f"{repository.repo_id} holds no safetensors weights", remedy=_NO_PICKLES)
        patterns = _TRANSFORMERS_PATTERNS if has_safetensors else _CTRANSLATE2_PATTERNS
    chosen = [file for file in files if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in patterns)]
    if "model.bin" in patterns and "model.bin" not in names:
        raise ModelFormatError(
            f"{repository.repo_id} holds no model.bin", remedy="give a repository in CTranslate2 form"
        )
    return chosen


def _require_space(files: list[RemoteFile], folder: Path) -> None:
    needed = sum(file.size_bytes or 0 for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def _compare(file: RemoteFile, path: Path) -> None:
    """Compare a downloaded file with the hash that the hub states for it."""
    if file.sha256 is not None:
        same = file_sha256(path) == file.sha256
    elif file.git_sha1 is not None:
        content = path.read_bytes()
        same = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == file.git_sha1
    else:
        same = file.size_bytes is None or path.stat().st_size == file.size_bytes
    if not same:
        path.unlink()
        raise ModelFormatError(f"{file.name} differs from the hash that the hub states", remedy="get it again")


def _hub_error(repo_id: str, error: Exception) -> DownloadError:
    """Return the meaning of an error of the hub's client in one line."""
    kind = type(error).__name__
    known = {
        "RepositoryNotFoundError": ("the hub has no such repository, or it is private", "check the name"),
        "RevisionNotFoundError": ("the hub has no such revision of it", "check --revision"),
        "GatedRepoError": ("its license must be accepted first", "accept it on its page, then `hf auth login`"),
    }
    if kind in known:
        reason, remedy = known[kind]
        return DownloadError(f"{repo_id}: {reason}", remedy=remedy)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else kind
    endpoint = os.environ.get("HF_ENDPOINT", "")
    remedy = "check the name and the network" + (f", and HF_ENDPOINT ({endpoint})" if endpoint else "")
    return DownloadError(f"{repo_id} could not be downloaded: {reason}", remedy=remedy)
