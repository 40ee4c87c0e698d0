"""Partial results of a recording on disk, so that the same command resumes after a crash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from audio_llm.asr.base import Stretch
from audio_llm.atomic import write_text
from audio_llm.audio import STDIN
from audio_llm.audio_channels import Excerpt
from audio_llm.errors import DataError
from audio_llm.nbest import nbest_from_dict, nbest_to_dict

_PREFIX = ".audio-llm-unfinished-"
_LEAD_S = 1.0  # before the stretch that is recognized again, as context of the voice activity detector
_NO_SOUND = np.zeros(0, np.float32)

logger = logging.getLogger(__name__)


class UnfinishedFolder:
    """Partial results of recordings, one file each in an output folder.

    Args:
        folder: The folder; created when a result is stored.
        settings: Plain values that decide the text; results of other settings are not resumed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)

    def begin(self, source: str | os.PathLike[str], excerpt: Excerpt) -> UnfinishedRecording | None:
        """Start or resume a recording; return None for standard input, which cannot be read again."""
        if os.fspath(source) == STDIN:
            return None
        try:
            status = os.stat(source)
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None  # the error is raised where the recording is read or the transcript is written
        about = [self._settings, status.st_size, status.st_mtime_ns, asdict(excerpt)]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        path = self._folder / f"{self._stem(source)}-{excerpt.channel}.jsonl"
        return UnfinishedRecording(path, key, excerpt.start_s)

    def remove(self, source: str | os.PathLike[str]) -> None:
        """Remove the partial results of a recording whose transcript is written."""
        for path in self._folder.glob(f"{self._stem(source)}-*.jsonl"):
            path.unlink(missing_ok=True)

    def _stem(self, source: str | os.PathLike[str]) -> str:
        name = os.path.abspath(source).encode(errors="surrogateescape")
        return _PREFIX + hashlib.sha256(name).hexdigest()[:16]


class UnfinishedRecording:
    """Partial results of one recording, or of one of its channels.

    Args:
        path: The file.
        key: Hash of recording and settings; results with another key are discarded.
        start_s: Start of the transcription, seconds of the recording.

    Attributes:
        stretches: Results of an earlier run without waveforms and without the last stretch, which is recognized again.
        start_s: Where to resume, seconds of the recording.
    """

    def __init__(self, path: Path, key: str, start_s: float) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.stretches: list[Stretch] = []
        self.start_s = start_s
        earlier = _read(path, key)
        if len(earlier) > 1:
            *self.stretches, last = earlier
            self.start_s = max(self.stretches[-1].end_s, last.start_s - _LEAD_S)
        try:
            write_text(path, "".join(json.dumps(row) + "\n" for row in ({"key": key}, *map(_row, self.stretches))))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            self._give_up(error)

    def __enter__(self) -> UnfinishedRecording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, stretch: Stretch) -> None:
        """Store a stretch, with times of the recording; a killed process does not lose it."""
        try:
            if self._file is not None:
                self._file.write(json.dumps(_row(stretch)) + "\n")
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Store nothing more: a full disk costs partial results, not the transcript."""
        logger.warning("%s: %s; if this run is interrupted, the next one starts further back", self._path, error)
        self._file = None


def _row(stretch: Stretch) -> dict[str, Any]:
    return {
        "start_s": stretch.start_s,
        "end_s": stretch.end_s,
        "nbest": nbest_to_dict(stretch.nbest),
        "language": stretch.language,
        "language_probability": stretch.language_probability,
        "notes": list(stretch.notes),
        "rejected": stretch.rejected,
    }


def _read(path: Path, key: str) -> list[Stretch]:
    """Return the stretches in a file up to an incomplete line; none if it belongs to another key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    stretches: list[Stretch] = []
    try:
        if not lines or json.loads(lines[0]).get("key") != key:
            return []
        for number, line in enumerate(lines[1:], 2):
            stretches.append(_stretch(json.loads(line), str(path), number))
    except (ValueError, KeyError, TypeError, AttributeError, DataError):
        return stretches  # the earlier run ended within this line
    return stretches


def _stretch(row: Mapping[str, Any], where: str, number: int) -> Stretch:
    return Stretch(
        start_s=float(row["start_s"]),
        end_s=float(row["end_s"]),
        nbest=nbest_from_dict(row["nbest"], where, number, "line"),
        waveform=_NO_SOUND,
        language=str(row["language"]),
        language_probability=row["language_probability"],
        notes=tuple(row["notes"]),
        rejected=str(row["rejected"]),
    )
