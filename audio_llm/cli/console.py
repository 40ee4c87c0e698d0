"""Console output of the commands: progress on stderr, marked word changes, one line per failure."""

from __future__ import annotations

import os
import sys
import time
import traceback
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from audio_llm.align import edits

if TYPE_CHECKING:
    from audio_llm.pipeline.batch import FileResult
    from audio_llm.pipeline.files import AudioInput

_RED = "\x1b[31;9m"  # and struck through
_GREEN = "\x1b[32m"
_PLAIN = "\x1b[0m"


def mark_changes(before: str, after: str, colors: bool) -> str:
    """Return the new text with what it replaced: `he [sat -> said] that`, or in colors.

    Args:
        before: The recognizer's text.
        after: The corrected text.
        colors: Use a terminal's colors instead of brackets.
    """
    old, new = before.split(), after.split()
    parts: list[str] = []
    done = 0
    for edit in edits(old, new):
        parts.extend(new[done : edit.target_start])
        removed = " ".join(old[edit.source_start : edit.source_end])
        added = " ".join(new[edit.target_start : edit.target_end])
        if colors:
            parts.append(" ".join(f"{c}{t}{_PLAIN}" for c, t in ((_RED, removed), (_GREEN, added)) if t))
        else:
            parts.append(f"[{removed} -> {added}]".replace("[ ", "[").replace(" ]", "]"))
        done = edit.target_end
    return " ".join([*parts, *new[done:]])


def use_colors(stream: IO[str]) -> bool:
    """True on a terminal, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def total_seconds(inputs: list[AudioInput]) -> float | None:
    """Return the total duration of all inputs in seconds, from their headers; None where one is unknown."""
    from audio_llm.audio import STDIN, probe
    from audio_llm.errors import AudioFileError

    total = 0.0
    for item in inputs:
        if str(item.path) == STDIN:
            return None
        try:
            total += probe(item.path).duration_s
        except AudioFileError:
            continue  # reported when the file is processed
    return total if total != float("inf") else None


class Progress:
    """Shows the progress of a batch on stderr: a bar with the real-time factor on a terminal, else a line per file.

    Args:
        files: Number of files.
        total_s: Total duration in seconds, for the bar; None where it is unknown.
        quiet: Show errors only.
        verbose: Show tracebacks of failures too.
        lines: Print a line per finished file where stderr is no terminal.
    """

    def __init__(self, files: int, total_s: float | None, quiet: bool, verbose: bool, lines: bool) -> None:
        self._files = files
        self._quiet = quiet
        self._verbose = verbose
        self._lines = lines
        self._count = 0
        self._within = False  # a line that `show_part` has begun
        self._sound_s = 0.0
        self._began = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of sound [{elapsed}<{remaining}]{postfix}"
            open_form = "{desc}: {n:.0f} s of sound [{elapsed}]{postfix}"
            self._bar = tqdm(total=total_s, bar_format=form if total_s else open_form, desc=f"0/{files}", leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, seconds: float) -> None:
        """Note that so many seconds of sound are finished."""
        self._sound_s += seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"real-time factor {self._factor()}", refresh=False)
            self._bar.update(seconds)

    def finished(self, result: FileResult) -> None:
        """Note that a file is finished, skipped or failed."""
        self._count += 1
        if self._bar is not None:
            self._bar.set_description_str(f"{self._count}/{self._files}")
        prefix = f"[{self._count}/{self._files}] {result.path}"
        if result.status == "failed":
            if self._verbose and result.error is not None:
                self.report("".join(traceback.format_exception(result.error)).rstrip())
            named = result.reason.startswith((str(result.path), "standard input"))
            self.report(f"audio-llm: error: {result.reason if named else f'{result.path}: {result.reason}'}")
            return
        if self._quiet:
            return
        if result.status == "skipped":
            if self._verbose:
                self.report(f"{prefix}: done by an earlier run")
            return
        transcript = result.transcript
        for warning in transcript.warnings if transcript else ():
            self.report(f"audio-llm: warning: {result.path}: {warning}")
        if transcript and self._lines and self._bar is None:
            factor = (
                f", real-time factor {result.elapsed_s / transcript.duration_s:.2f}" if transcript.duration_s else ""
            )
            self.report(f"{prefix}: {transcript.duration_s:.1f} s of sound in {result.elapsed_s:.1f} s{factor}")

    def report(self, line: str) -> None:
        """Print a line to stderr above the bar."""
        self._print(line, sys.stderr)

    def show(self, text: str) -> None:
        """Print a result to stdout above the bar."""
        self._print(text, sys.stdout)

    def show_part(self, text: str) -> None:
        """Print the next part of a result to stdout at once: a separate line on a terminal, else after a space."""
        if sys.stdout.isatty():
            self.show(text)
        else:
            print(" " * self._within + text, end="", flush=True)
            self._within = True

    def end_parts(self, failed: bool) -> None:
        """End the line that `show_part` printed; print an empty line where nothing was recognized."""
        if not sys.stdout.isatty() and (self._within or not failed):
            print(flush=True)
        self._within = False

    def summary(self, done: int, skipped: int, failed: int) -> None:
        """Print the counts and the speed to stderr."""
        if self._quiet:
            return
        elapsed = time.monotonic() - self._began
        parts = [f"{done} done"] if done or not skipped else []
        parts += [f"{skipped} done by an earlier run"] if skipped else []
        parts += [f"{failed} failed"] if failed else []
        speed = f"; {self._sound_s:.1f} s of sound in {elapsed:.1f} s, real-time factor {self._factor()}"
        self.report(", ".join(parts) + (speed if self._sound_s else ""))

    def _factor(self) -> str:
        return f"{(time.monotonic() - self._began) / self._sound_s:.2f}" if self._sound_s else "-"

    def _print(self, text: str, stream: IO[str]) -> None:
        if self._bar is not None:
            self._bar.write(text, file=stream)
        else:
            print(text, file=stream, flush=True)
