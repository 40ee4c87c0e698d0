"""Batch processing of files: outputs are atomic, failures do not stop the batch, interrupted runs resume."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from audio_llm.atomic import write_text
from audio_llm.errors import AudioLLMError, UsageError
from audio_llm.pipeline.files import AudioInput
from audio_llm.pipeline.formats import Transcript, render
from audio_llm.pipeline.subtitles import DEFAULT_SUBTITLES, SubtitleOptions

JOURNAL_NAME = ".audio-llm-journal.jsonl"

logger = logging.getLogger(__name__)


class FileWorker(Protocol):
    """Worker of a batch, such as `pipeline.transcribe.Transcriber`."""

    @property
    def ahead(self) -> int:
        """How many files may be started before the first of them is finished."""
        ...

    def ready(self) -> None:
        """Wait until all models are loaded."""
        ...

    def begin(
        self, source: str | Path, name: str = "", progress: Callable[[float], None] | None = None
    ) -> PendingResult:
        """Start one file."""
        ...


class PendingResult(Protocol):
    """Result of `FileWorker.begin`."""

    def done(self) -> bool:
        """Return whether `finish` returns without waiting."""
        ...

    def finish(self) -> Any:
        """Return the content to write, such as a transcript."""
        ...


class Finished(Protocol):
    """Summary of a file whose outputs are written."""

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the file, one line each."""
        ...


Write = Callable[[Any, Sequence[Path]], Finished]  # content and output paths -> summary


@dataclass(frozen=True)
class FileResult:
    """The outcome for one input.

    Attributes:
        path: The input.
        status: `done`, `skipped` (an earlier run with the same options did it) or `failed`.
        transcript: Transcript or another summary; None unless `done`.
        outputs: Output files.
        elapsed_s: Processing time in seconds.
        reason: Reason of a failure, in one line.
        error: The exception of a failure, for a traceback.
    """

    path: Path
    status: Literal["done", "skipped", "failed"]
    transcript: Any = None
    outputs: tuple[Path, ...] = ()
    elapsed_s: float = 0.0
    reason: str = ""
    error: Exception | None = None


def run_batch(
    inputs: Sequence[AudioInput],
    make_worker: Callable[[], FileWorker],
    out_dir: str | os.PathLike[str] | None = None,
    formats: Sequence[str] | Callable[[AudioInput], Sequence[str]] = ("txt",),
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
    write: Write | None = None,
) -> Iterator[FileResult]:
    """Process files one after another.

    Each output is written to a temporary name and renamed as its file finishes; a journal in the output folder
    records finished files, so that the same call resumes an interrupted run.

    Args:
        inputs: The files.
        make_worker: Called at most once, when the first file has to be processed.
        out_dir: Output folder, which mirrors the tree of the inputs; None writes nothing.
        formats: Names of the output formats, one file each; a function returns those of one input.
        options: Plain values that decide the outputs; a file done with other options is done again.
        overwrite: Process finished files again, and replace outputs that no earlier run has written.
        progress: Called with the seconds of sound just finished, several times per file.
        write: Writes the outputs of a file, each completely or not at all; default: of a transcript.

    Yields:
        One result per input, in order.

    Raises:
        UsageError: The output folder cannot be used.
    """
    formats_of = formats if callable(formats) else lambda _: formats
    write = write or write_transcript
    settings = _fingerprint({**(options or {}), "formats": None if callable(formats) else list(formats)})
    journal = _Journal(Path(out_dir), settings) if out_dir is not None else None
    worker: FileWorker | None = None
    begun: deque[_Job] = deque()
    try:
        for item, stem in zip(inputs, output_stems(inputs), strict=True):
            names = (f"{stem}.{kind}" for kind in formats_of(item))
            outputs = tuple(Path(out_dir) / name for name in names) if out_dir is not None else ()
            job = _Job(item.path, outputs, write, journal)
            begun.append(job)
            if not (journal and not overwrite and journal.is_done(item.path, outputs)):
                worker = worker or make_worker()
                job.begin(worker, overwrite, progress)
            while begun and (begun[0].done() or worker is None or len(begun) > worker.ahead):
                yield begun.popleft().finish()
        while begun:
            yield begun.popleft().finish()
    except BaseException:  # interruptions included
        for job in begun:
            if job.done():
                job.finish()
        raise


def output_stems(inputs: Sequence[AudioInput]) -> list[str]:
    """Return one distinct output path per input, without its suffix.

    `audio/a.wav` gives `audio/a`; if `audio/a.flac` exists too, both keep their suffix: `audio/a.wav`.
    """
    plain = [item.relative.with_suffix("").as_posix() for item in inputs]
    count = Counter(plain)
    stems = [p if count[p] == 1 else item.relative.as_posix() for p, item in zip(plain, inputs, strict=True)]
    taken: set[str] = set()
    for index, stem in enumerate(stems):
        number = 2
        while stems[index] in taken:
            stems[index] = f"{stem}-{number}"
            number += 1
        taken.add(stems[index])
    return stems


def write_transcript(
    transcript: Transcript, outputs: Sequence[Path], subtitles: SubtitleOptions = DEFAULT_SUBTITLES
) -> Transcript:
    """Write a transcript to files, each in the format that its suffix names."""
    for path in outputs:
        write_whole(path, render(transcript, path.suffix[1:], subtitles))
    return transcript


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line, with its type first where the message alone is unclear."""
    message = " ".join(str(error).split())
    if isinstance(error, AudioLLMError):
        return message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class _Job:
    """One file of a batch."""

    def __init__(self, path: Path, outputs: tuple[Path, ...], write: Write, journal: _Journal | None) -> None:
        self._path = path
        self._outputs = outputs
        self._write_outputs = write
        self._journal = journal
        self._result: FileResult | None = FileResult(path, "skipped", outputs=outputs)
        self._pending: PendingResult | None = None
        self._seconds = 0.0

    def begin(self, worker: FileWorker, overwrite: bool, progress: Callable[[float], None] | None) -> None:
        """Start the file; without this call it counts as `skipped`."""
        began = time.monotonic()
        self._worker, self._result = worker, None
        try:
            if self._journal:
                self._journal.claim(self._path, self._outputs, overwrite)
            self._pending = worker.begin(self._path, progress=progress)
        except Exception as error:  # a failure of one file must not end the batch
            self._fail(error)
        self._seconds = time.monotonic() - began

    def done(self) -> bool:
        """Return whether `finish` returns without waiting."""
        return self._result is not None or (self._pending is not None and self._pending.done())

    def finish(self) -> FileResult:
        """Write the outputs; return the result of the file."""
        if self._result is None:
            assert self._pending is not None
            self._worker.ready()  # a missing model fails every file
            began = time.monotonic()
            try:
                self._result = self._write(self._pending.finish())
            except Exception as error:
                self._fail(error)
            self._seconds += time.monotonic() - began
        assert self._result is not None
        return replace(self._result, elapsed_s=self._seconds)

    def _write(self, finished: Any) -> FileResult:
        known = self._write_outputs(finished, self._outputs)
        if self._journal:
            self._journal.add(self._path, self._outputs, "done", duration_s=round(known.duration_s, 3))
        return FileResult(self._path, "done", known, self._outputs)

    def _fail(self, error: Exception) -> None:
        reason = one_line(error)
        logger.debug("%s failed", self._path, exc_info=True)
        if self._journal:
            self._journal.add_failure(self._path, reason)
        self._result = FileResult(self._path, "failed", reason=reason, error=error)


class _Journal:
    """Record of earlier runs in an output folder: JSON lines, of which the last one about a file is valid."""

    def __init__(self, folder: Path, settings: str) -> None:
        self._folder = folder
        self._settings = settings
        self._path = folder / JOURNAL_NAME
        self._done: dict[str, dict[str, Any]] = {}
        self._ours: set[str] = set()  # outputs that a run has written or started
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
            if text and not text.endswith("\n"):  # the last run was killed while it wrote this line
                self._append("")
        except OSError as error:
            remedy = "choose another folder with -o"
            raise UsageError(f"cannot be written to: {error.strerror}", path=folder, remedy=remedy) from None
        for line in text.splitlines():
            self._take(line)

    def is_done(self, path: Path, outputs: Sequence[Path]) -> bool:
        """Return whether the same file gave these outputs with the same settings, and they still exist."""
        row = self._done.get(_key(path))
        return (
            row is not None
            and row.get("settings") == self._settings
            and _stamp(path) == (row.get("size"), row.get("mtime_ns"))
            and self._relative(outputs) == row.get("outputs")
            and all(output.is_file() for output in outputs)
        )

    def claim(self, path: Path, outputs: Sequence[Path], overwrite: bool) -> None:
        """Record that the outputs are about to be written; refuse to replace files of no earlier run."""
        for output, name in zip(outputs, self._relative(outputs), strict=True):
            if output.exists() and name not in self._ours and not overwrite:
                remedy = "give --overwrite, or another folder"
                raise UsageError("exists and was not written by an earlier run", path=output, remedy=remedy)
        self.add(path, outputs, "started")

    def add(self, path: Path, outputs: Sequence[Path], status: str, **more: Any) -> None:
        """Append one line about a file."""
        size, mtime_ns = _stamp(path) or (None, None)
        row = {"input": _key(path), "size": size, "mtime_ns": mtime_ns, "settings": self._settings, "status": status}
        line = json.dumps({**row, "outputs": self._relative(outputs), **more})
        self._append(line)
        self._take(line)

    def add_failure(self, path: Path, reason: str) -> None:
        """Append a failure; an error of the journal itself must not hide the reason."""
        try:
            self.add(path, (), "failed", reason=reason)
        except OSError as error:
            logger.warning("%s: %s", self._path, error)

    def _append(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            key, status, outputs = str(row["input"]), row["status"], list(row["outputs"])
        except (ValueError, TypeError, KeyError):
            return  # incomplete line of a killed run: the file counts as not done
        self._ours.update(outputs)
        if status == "done":
            self._done[key] = row
        else:
            self._done.pop(key, None)

    def _relative(self, outputs: Sequence[Path]) -> list[str]:
        return [output.relative_to(self._folder).as_posix() for output in outputs]


def _key(path: Path) -> str:
    return os.path.abspath(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _fingerprint(options: Mapping[str, Any]) -> str:
    text = json.dumps(options, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
