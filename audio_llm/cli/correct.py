"""`audio-llm correct`: N-best lists in, corrections out as JSON lines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from audio_llm.errors import UsageError

if TYPE_CHECKING:
    from audio_llm.nbest import NBest

_DESCRIPTION = """Correct N-best lists without the sound: HyPoradise JSON, JSON lines, NeMo .tsv, or - for JSON lines on
standard input. One JSON object a line comes out, in the order of the lists."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "correct", parents=[common], help="N-best lists in, corrections out", description=_DESCRIPTION
    )
    parser.add_argument("lists", metavar="LISTS", help="N-best lists, or - for standard input")
    parser.add_argument("--with", dest="corrector", choices=("dlm",), default="dlm", help="corrector (default: dlm)")
    parser.add_argument("--model", metavar="NAME|DIR", help="its model")
    parser.add_argument("--decode", choices=("greedy", "dlm-sum"), default="dlm-sum", help="how it decodes (dlm-sum)")
    parser.add_argument("-o", "--output", metavar="OUT.jsonl", help="write there instead of stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Correct the lists; return the exit status."""
    from audio_llm.nbest import read_nbest
    from audio_llm.pipeline.correct import correct_lists, correction_to_dict, load_corrector

    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.exists() and not arguments.overwrite:
        raise UsageError("exists already", path=output, remedy="give --overwrite or another name")
    # A bad line is found before hours of work, not after; standard input can be read only once.
    total = None if arguments.lists == "-" else sum(1 for _ in read_nbest(arguments.lists))
    corrector = load_corrector(arguments.corrector, arguments.model, decode=arguments.decode, device=arguments.device)
    corrections = correct_lists(_counted(read_nbest(arguments.lists), total, arguments.quiet), corrector)
    if output is None:
        _write(map(correction_to_dict, corrections), sys.stdout)
        return 0
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            _write(map(correction_to_dict, corrections), file)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return 0


def _write(rows: Iterator[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if file is sys.stdout:
            file.flush()


def _counted(lists: Iterator[NBest], total: int | None, quiet: bool) -> Iterator[NBest]:
    if quiet or not sys.stderr.isatty():
        yield from lists
        return
    from tqdm import tqdm

    yield from tqdm(lists, total=total, unit=" lists", leave=False)
