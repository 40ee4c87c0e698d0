"""`audio-llm extract`: one enrolled speaker out of a binaural mixture."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audio_llm.cli.options import fraction
from audio_llm.errors import UsageError

_DESCRIPTION = """Extract one enrolled speaker from a binaural recording; the output is binaural, with the same duration
and sample rate. The enrollment is recorded while facing the speaker; it may contain noise and other speakers."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "extract",
        parents=[common],
        help="extract one enrolled speaker from a binaural mixture",
        description=_DESCRIPTION,
    )
    parser.add_argument("mixture", metavar="MIX", help="binaural sound file, left ear first")
    parser.add_argument("--enrollment", metavar="FILE", required=True, help="binaural sound file of 1 to 10 s")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="sound file to write")
    parser.add_argument(
        "--mix",
        type=fraction,
        default=0.0,
        metavar="0..1",
        help="fraction of the original mixture in the output: 0 (default) none, 1 only the mixture",
    )
    parser.add_argument("--model", metavar="NAME|DIR", default="tse-small", help="model (default: tse-small)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Extract; return the exit status."""
    if Path(arguments.output).exists() and not arguments.overwrite:
        raise UsageError("already exists", path=arguments.output, remedy="add --overwrite to replace it")
    from audio_llm.tse.extract import extract

    began = time.monotonic()
    with _bar(arguments.quiet) as progress:
        done = extract(
            arguments.mixture,
            arguments.enrollment,
            arguments.output,
            arguments.mix,
            arguments.model,
            arguments.device,
            progress,
        )
    elapsed_s = time.monotonic() - began
    if not arguments.quiet:
        for warning in done.warnings:
            print(f"audio-llm: warning: {warning}", file=sys.stderr)
        print(
            f"{done.duration_s:.1f} s of sound in {elapsed_s:.1f} s, real-time factor "
            f"{elapsed_s / done.duration_s:.2f}; enrollment of {done.enrollment_s:.1f} s",
            file=sys.stderr,
        )
    print(done.output)
    return 0


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """Yield a function that shows the processed seconds in a bar on a terminal."""
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of sound [{elapsed}<{remaining}]"
    with tqdm(total=1.0, bar_format=form, leave=False, disable=quiet or not sys.stderr.isatty()) as bar:

        def show(done_s: float, whole_s: float) -> None:
            bar.total = max(whole_s, done_s)
            bar.update(done_s - bar.n)

        yield show
