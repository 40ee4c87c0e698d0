"""`audio-llm score`: word error rates of texts, or of N-best lists with references."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.errors import DataError

if TYPE_CHECKING:
    from audio_llm.nbest import NBest
    from audio_llm.text import Normalizer

_DESCRIPTION = """Compare two text files line by line (REF HYP), or score N-best lists that hold their references:
the best hypotheses, and the best that could have been chosen (oracle)."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("score", parents=[common], help="word error rate", description=_DESCRIPTION)
    parser.add_argument("reference", metavar="REF|LISTS", help="true texts, one a line; or N-best lists")
    parser.add_argument("hypothesis", metavar="HYP", nargs="?", help="texts to score, one a line")
    parser.add_argument("--normalizer", metavar="NAME", default="spoken", help="raw, basic, spoken (default), letters")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score; return the exit status."""
    from audio_llm.text import get_normalizer

    normalizer = get_normalizer(arguments.normalizer)
    if arguments.hypothesis is not None:
        references, hypotheses = _read_pair(arguments.reference, arguments.hypothesis)
        rows = {"text": _score(references, hypotheses, normalizer)}
    else:
        from audio_llm.metrics import oracle

        lists = _read_lists(arguments.reference)
        references = [nbest.reference or "" for nbest in lists]
        rows = {
            "first": _score(references, [nbest.best for nbest in lists], normalizer),
            "oracle": _score(references, [oracle(nbest, normalizer) for nbest in lists], normalizer),
        }
    if arguments.json:
        print(json.dumps({"normalizer": normalizer.name, **{name: asdict(row) for name, row in rows.items()}}))
        return 0
    for name, row in rows.items():
        print(
            f"{name:<7} WER {100 * row.wer:.2f} % (95 % interval {100 * row.low:.2f} to {100 * row.high:.2f}): "
            f"{row.words} words in {row.utterances} utterances, {row.substitutions} substituted, "
            f"{row.deletions} deleted, {row.insertions} inserted; normaliser {normalizer.name}"
        )
    return 0


@dataclass(frozen=True)
class _Row:
    wer: float
    low: float
    high: float
    words: int
    utterances: int
    substitutions: int
    deletions: int
    insertions: int


def _score(references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer) -> _Row:
    from audio_llm.metrics import bootstrap_interval, utterance_errors, word_errors

    counts = word_errors(references, hypotheses, normalizer)
    if not counts.words:
        raise DataError("the references hold no words", remedy="there is nothing to score")
    interval = bootstrap_interval(utterance_errors(references, hypotheses, normalizer))
    errors = (counts.substitutions, counts.deletions, counts.insertions)
    return _Row(counts.rate, interval.low, interval.high, counts.words, counts.utterances, *errors)


def _read_pair(reference: str, hypothesis: str) -> tuple[list[str], list[str]]:
    references, hypotheses = _read_lines(reference), _read_lines(hypothesis)
    if len(references) != len(hypotheses):
        message = f"has {len(hypotheses)} lines, {reference} has {len(references)}"
        raise DataError(message, path=hypothesis, remedy="give one utterance a line, in the same order")
    return references, hypotheses


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path, remedy="check the name") from None
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", path=path, remedy="give a text file, one utterance a line") from None


def _read_lists(path: str) -> list[NBest]:
    from audio_llm.nbest import read_nbest

    lists = []
    for number, nbest in enumerate(read_nbest(path), 1):
        if nbest.reference is None:
            message = f"entry {number} ({nbest.id}) has no reference"
            raise DataError(message, path=path, remedy="add it as 'output' or 'reference'")
        lists.append(nbest)
    return lists
