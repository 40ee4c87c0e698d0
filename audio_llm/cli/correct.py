"""`audio-llm correct`: N-best lists in, corrections out as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from audio_llm.atomic import replacing
from audio_llm.errors import DataError, UsageError

if TYPE_CHECKING:
    from audio_llm.nbest import NBest

_DESCRIPTION = """Correct N-best lists without audio: HyPoradise JSON, JSON lines, NeMo .tsv, or - for JSON lines on
standard input. Prints one JSON object per list, in the same order. Invalid lines are reported and skipped."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "correct", parents=[common], help="N-best lists in, corrections out", description=_DESCRIPTION
    )
    parser.add_argument("lists", metavar="LISTS", help="N-best lists, or - for standard input")
    correctors = ("dlm", "ger", "phrase")
    parser.add_argument("--corrector", choices=correctors, default="dlm", help="corrector (default: dlm)")
    parser.add_argument("--model", metavar="NAME|DIR", help="the corrector's model")
    parser.add_argument("--llm", metavar="NAME|DIR", help="ger: path of its language model, if that was moved")
    parser.add_argument(
        "--decoding",
        choices=("greedy", "dlm-sum", "free", "list", "slots"),
        help="dlm: greedy or dlm-sum (default); ger: free text, or words of the list only (list, slots)",
    )
    parser.add_argument("-o", "--output", metavar="OUT.jsonl", help="file to write instead of stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Correct the lists; return the exit status."""
    from audio_llm.nbest import read_nbest
    from audio_llm.pipeline.correct import correct_lists, correction_to_dict, load_corrector

    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.exists() and not arguments.overwrite:
        raise UsageError("exists already", path=output, remedy="give --overwrite or another name")
    broken: list[DataError] = []
    total = None if arguments.lists == "-" else _count(arguments.lists, broken)

    def note(error: DataError) -> None:
        if total is None:  # standard input can be read only once; of a file the count has named the broken lines
            broken.append(error)
            _name(error)

    corrector = load_corrector(
        arguments.corrector, arguments.model, decode=_decoding(arguments), device=arguments.device, llm=arguments.llm
    )
    lists = _counted(read_nbest(arguments.lists, note), total, arguments.quiet)
    rows = map(correction_to_dict, correct_lists(lists, corrector))
    done = _write(rows, sys.stdout) if output is None else _write_file(rows, output)
    if broken and not arguments.quiet:
        print(f"{done} done, {len(broken)} failed", file=sys.stderr)
    return 1 if broken else 0


def _count(path: str, broken: list[DataError]) -> int:
    """Count the lists of a file and report its invalid lines before a long run rather than after it.

    Raises:
        DataError: All lines are invalid, so this is probably not a file of N-best lists.
    """
    from audio_llm.nbest import read_nbest

    total = sum(1 for _ in read_nbest(path, broken.append))
    if broken and not total:
        raise broken[0]
    for error in broken:
        _name(error)
    return total


def _name(error: DataError) -> None:
    from tqdm import tqdm

    tqdm.write(f"audio-llm: error: {error}", file=sys.stderr)  # above the bar, if there is one


def _write_file(rows: Iterator[dict[str, Any]], output: Path) -> int:
    """Write rows under a temporary name, then rename; return how many."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        return _write(rows, file)


def _decoding(arguments: argparse.Namespace) -> str | None:
    """Return the decoding strategy; the default of dlm may need audio, which lists do not have."""
    known = {"dlm": ("greedy", "dlm-sum"), "ger": ("free", "list", "slots")}.get(arguments.corrector, ())
    decoding: str | None = arguments.decoding or ("dlm-sum" if arguments.corrector == "dlm" else None)
    if decoding is not None and decoding not in known:
        remedy = f"use one of {', '.join(known)}" if known else "leave it out"
        raise UsageError(f"--decoding {decoding} is not of --corrector {arguments.corrector}", remedy=remedy)
    return decoding


def _write(rows: Iterator[dict[str, Any]], file: TextIO) -> int:
    """Write rows as they come; return how many."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
        if file is sys.stdout:
            file.flush()
    return count


def _counted(lists: Iterator[NBest], total: int | None, quiet: bool) -> Iterator[NBest]:
    if quiet or not sys.stderr.isatty():
        yield from lists
        return
    from tqdm import tqdm

    yield from tqdm(lists, total=total, unit=" lists", leave=False)
