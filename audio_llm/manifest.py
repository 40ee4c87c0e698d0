"""JSONL manifests in NeMo's form: one utterance per line, read lazily and checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audio_llm.errors import DataError

_KNOWN = frozenset({"audio_filepath", "path", "duration", "text", "speaker", "split"})


@dataclass(frozen=True)
class Utterance:
    """One recorded utterance.

    Attributes:
        audio_filepath: The sound file.
        duration: Duration in seconds, or None where it is not given.
        text: Transcript, or None where it is unknown.
        speaker: Name of the speaker, or None.
        split: The part of the data it belongs to (`train`, `dev`, `test`), or None.
        extra: Every other key of the manifest.
    """

    audio_filepath: Path
    duration: float | None = None
    text: str | None = None
    speaker: str | None = None
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Iterator[Utterance]:
    """Read a manifest line by line; the sound files themselves are not opened.

    Args:
        path: A JSONL file whose objects have `audio_filepath` (or `path`) and optionally `duration`, `text`,
            `speaker`, `split` and other keys. Empty lines are skipped.
        root: Base folder of relative paths; None uses the manifest's folder.

    Raises:
        DataError: The file is missing, is not text, or has an invalid line; the message names file and line.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _utterance(line, folder, path, number)
    except FileNotFoundError:
        raise DataError("no such manifest", path=path, remedy="check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as a manifest: {error}", path=path, remedy="give a JSONL file") from None


def write_manifest(
    utterances: Iterable[Utterance], path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> int:
    """Write a manifest atomically; return the number of its lines.

    Args:
        utterances: Utterances, one per line.
        path: The file.
        root: Paths of sound files below this folder are written relative to it, others unchanged;
            None uses the folder of `path`. Give `read_manifest` the same.

    Raises:
        DataError: The file cannot be written.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for utterance in utterances:
                file.write(json.dumps(_row(utterance, folder), ensure_ascii=False) + "\n")
                count += 1
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path, remedy="check the folder") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _utterance(line: str, folder: Path, path: Path, number: int) -> Utterance:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not an object")
        name = row.get("audio_filepath", row.get("path"))
        if not isinstance(name, str) or not name:
            raise ValueError("neither 'audio_filepath' nor 'path' names a file")
        return Utterance(
            folder / name,
            _duration(row.get("duration")),
            _text(row, "text"),
            _text(row, "speaker"),
            _text(row, "split"),
            {key: value for key, value in row.items() if key not in _KNOWN},
        )
    except ValueError as error:
        raise DataError(
            f"line {number}: {error}",
            path=path,
            remedy='give one object per line: {"audio_filepath": "a.wav", "duration": 1.5, "text": "..."}',
        ) from None


def _duration(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"'duration' is {value!r}, not a number of seconds")
    return float(value)


def _text(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # speakers are often numbers
    raise ValueError(f"{key!r} is {value!r}, not text")


def _row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    name = utterance.audio_filepath
    row: dict[str, Any] = {
        "audio_filepath": name.relative_to(folder).as_posix() if name.is_relative_to(folder) else str(name)
    }
    for key in ("duration", "text", "speaker", "split"):
        value = getattr(utterance, key)
        if value is not None:
            row[key] = value
    return row | dict(utterance.extra)
