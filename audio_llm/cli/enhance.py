"""`audio-llm enhance`: noisy speech in, clean speech out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.cli.options import fraction, whole_number
from audio_llm.errors import UsageError

if TYPE_CHECKING:
    from audio_llm.gense.chunks import ChunkReport

_DESCRIPTION = """Remove noise from recordings. Duration, sample rate, channels and, where it can be written, format
(else wav) stay the same; names mirror the input tree. To resume an interrupted run, give the same command again.
Enhancement often raises the word error rate of recognizers: see `transcribe --enhance`."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "enhance", parents=[common], help="noisy speech in, clean speech out", description=_DESCRIPTION
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="sound file, folder, glob, or - for standard input")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder of the enhanced files")
    parser.add_argument("--model", metavar="NAME|DIR", default="mask-small", help="model (default: mask-small)")
    parser.add_argument(
        "--mode",
        choices=("safe", "balanced", "generative"),
        help="safe: mask the noise; generative: resynthesize the speech; balanced: resynthesize only what is too noisy "
        "(default: balanced where the model supports it, else safe)",
    )
    parser.add_argument(
        "--no-guards", action="store_true", help="output every generated chunk, even if a check rejects it"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--mix",
        type=fraction,
        default=0.0,
        metavar="0..1",
        help="fraction of the original recording in the output: 0 (default) none, 1 only the recording",
    )
    parser.add_argument("--report", metavar="FILE", help="write the method and metrics of each chunk as JSON lines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Enhance; return the exit status."""
    from audio_llm.cli.console import Progress, total_seconds
    from audio_llm.gense.enhance import Enhancer
    from audio_llm.hub import model_stamp
    from audio_llm.pipeline.batch import run_batch
    from audio_llm.pipeline.enhance import EnhanceWorker, formats_of, write_enhanced
    from audio_llm.pipeline.files import find_audio

    inputs = find_audio(arguments.inputs)
    total_s = total_seconds(inputs) if sys.stderr.isatty() and not arguments.quiet else None
    names = ("mix", "mode", "no_guards", "seed")
    settings = {"enhance": model_stamp(arguments.model), **{name: getattr(arguments, name) for name in names}}
    options = (arguments.mode, not arguments.no_guards, arguments.seed, arguments.device)
    count: Counter[str] = Counter()
    report = _Report(Path(arguments.report)) if arguments.report else None
    with Progress(len(inputs), total_s, arguments.quiet, arguments.verbose > 0, lines=True) as progress:
        for result in run_batch(
            inputs,
            lambda: EnhanceWorker(Enhancer.load(arguments.model, *options), arguments.mix),
            arguments.output,
            formats_of,
            settings,
            arguments.overwrite,
            progress.advance,
            write_enhanced,
        ):
            count[result.status] += 1
            progress.finished(result)
            if result.status == "done":
                progress.show(str(result.outputs[0]))
                if report is not None:
                    report.add(str(result.path), str(result.outputs[0]), result.transcript.chunks)
    progress.summary(count["done"], count["skipped"], count["failed"])
    return 1 if count["failed"] else 0


class _Report:
    """The file of `--report`, written as files are finished; rows of earlier runs about other files stay in it.

    Args:
        path: JSON lines file; created if it does not exist.

    Raises:
        UsageError: The file is not such a report.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, dict[str, list[str]]()
        try:
            for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
                self._lines.setdefault(json.loads(line)["output"], []).append(line)
        except (ValueError, KeyError, TypeError):
            raise UsageError("is no report of this command", path=path, remedy="name another file") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def add(self, source: str, output: str, chunks: Iterable[ChunkReport]) -> None:
        """Write the rows of a file; they replace those of an earlier run."""
        from audio_llm.pipeline.batch import write_whole

        rows = ({"input": source, "output": output} | dataclasses.asdict(chunk) for chunk in chunks)
        known, self._lines[output] = output in self._lines, [json.dumps(row) for row in rows]
        if known:
            write_whole(self._path, "".join(f"{line}\n" for lines in self._lines.values() for line in lines))
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self._lines[output])
