"""`audio-llm score`: error rates of texts, of N-best lists with references, and of corrections of such lists."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.errors import DataError

if TYPE_CHECKING:
    from audio_llm.list_metrics import CorrectionScores, ListScores
    from audio_llm.metrics import TextScores
    from audio_llm.nbest import NBest

NORMALIZERS = ("spoken", "letters")  # with one normalizer alone a difference may come from the normalizer
_JSON = (".json", ".jsonl")
_LISTS = re.compile(r"\s*(\[\s*)?\{")
_DESCRIPTION = """Compare two text files line by line (REF HYP); score N-best lists that contain references (LISTS):
first hypotheses and oracles; or score the corrections of such lists (LISTS CORRECTIONS: the JSON lines of
`audio-llm correct`, matched by id, or one text per line)."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("score", parents=[common], help="word error rates", description=_DESCRIPTION)
    parser.add_argument("reference", metavar="REF|LISTS", help="reference texts, one per line; or N-best lists")
    parser.add_argument("hypothesis", metavar="HYP|CORRECTIONS", nargs="?", help="texts to score")
    parser.add_argument(
        "--normalizer",
        metavar="NAME",
        action="append",
        help="raw, basic, spoken or letters; can be repeated (default: spoken and letters)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with a key per normalizer")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score; return the exit status."""
    from audio_llm.list_metrics import score_corrections, score_lists
    from audio_llm.metrics import score_texts
    from audio_llm.text import get_normalizer

    normalizers = [get_normalizer(name) for name in dict.fromkeys(arguments.normalizer or NORMALIZERS)]
    source, outputs = arguments.reference, arguments.hypothesis
    broken: list[DataError] = []
    scores: Sequence[TextScores | ListScores | CorrectionScores]
    if outputs is not None and not _holds_lists(source):
        references, hypotheses = _read_pair(source, outputs)
        scores = [score_texts(references, hypotheses, normalizer) for normalizer in normalizers]
    else:
        lists = _read_lists(source, broken)
        if broken and not arguments.quiet:
            print(f"{len(lists)} lists scored, {len(broken)} skipped", file=sys.stderr)
        if outputs is None:
            scores = [score_lists(lists, normalizer) for normalizer in normalizers]
        else:
            texts = _read_corrections(outputs, lists, source)
            scores = [score_corrections(lists, texts, normalizer) for normalizer in normalizers]
    if arguments.json:
        print(json.dumps({n.name: _to_json(row) for n, row in zip(normalizers, scores, strict=True)}))
    else:
        for normalizer, row in zip(normalizers, scores, strict=True):
            for line in _to_lines(row):
                print(f"{line}; normalizer {normalizer.name}")
    return 1 if broken else 0


def _to_lines(scores: TextScores | ListScores | CorrectionScores) -> list[str]:
    from audio_llm.list_metrics import CorrectionScores, ListScores

    if isinstance(scores, CorrectionScores):
        return [*_list_lines(scores.lists), _rate_line("output", scores.output), *_change_lines(scores)]
    return _list_lines(scores) if isinstance(scores, ListScores) else [_rate_line("text", scores)]


def _rate_line(name: str, scores: TextScores) -> str:
    counts, interval = scores.counts, scores.interval
    return (
        f"{name:<7} WER {100 * counts.rate:.2f} % "
        f"(95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f}): "
        f"{counts.words} words in {counts.utterances} utterances, {counts.substitutions} substituted, "
        f"{counts.deletions} deleted, {counts.insertions} inserted"
    )


def _list_lines(scores: ListScores) -> list[str]:
    lists = scores.first.counts.utterances
    return [
        _rate_line("first", scores.first),
        _rate_line("oracle", scores.oracle),
        f"compositional oracle {_percent(scores.compositional_oracle_rate)}: "
        f"{scores.missing_words} of {scores.first.counts.words} words are in no hypothesis of their list",
        f"already correct {_percent(scores.right_rate)}: {scores.right} of {lists} lists",
        f"distinct hypotheses {scores.distinct_hypotheses} of {scores.hypotheses}: "
        f"{scores.distinct_hypotheses / lists:.2f} of {scores.hypotheses / lists:.2f} per list",
    ]


def _change_lines(scores: CorrectionScores) -> list[str]:
    changes = scores.changes
    wrong = changes.utterances - changes.right_before
    ratio = "-" if scores.recovered is None else f"{scores.recovered:.3f}"
    return [
        f"change {_percent(scores.relative_change, '+')} relative (p {scores.p_value:.4f}, paired, one-sided); "
        f"fraction of the oracle gap closed (RIR) {ratio}",
        f"lists changed {_percent(scores.changed_rate)}: {changes.changed} of {changes.utterances}, "
        f"{changes.better} better, {changes.worse} worse",
        f"correct kept {_percent(scores.keep_correct_rate)}: {changes.right_before - changes.broken} of "
        f"{changes.right_before}; newly wrong {_percent(scores.broken_rate)} of all lists",
        f"fully corrected {_percent(scores.fix_wrong_rate)}, improved "
        f"{_percent(scores.improve_wrong_rate)}: {changes.fixed} and {changes.better} of {wrong} wrong lists",
        f"harmful edit rate (HER) {_percent(scores.harmful_edit_rate)}: {changes.harmful_edits} harmful, "
        f"{changes.helpful_edits} helpful, {changes.edits} in total",
        f"hallucinated words {_percent(scores.hallucinated_rate)}: {changes.novel_words} novel, "
        f"{changes.repeated_words} repeated of {changes.output_words}; length ratio {scores.length_ratio:.3f}",
    ]


def _percent(fraction: float | None, sign: str = "") -> str:
    return "-" if fraction is None else f"{100 * fraction:{sign}.2f} %"


def _to_json(scores: TextScores | ListScores | CorrectionScores) -> dict[str, Any]:
    from audio_llm.list_metrics import CorrectionScores, ListScores

    if isinstance(scores, CorrectionScores):
        return {
            **_to_json(scores.lists),
            "output": _rate_json(scores.output),
            "p_value": scores.p_value,
            "relative_change": scores.relative_change,
            "recovered": scores.recovered,
            "changed_rate": scores.changed_rate,
            "keep_correct_rate": scores.keep_correct_rate,
            "fix_wrong_rate": scores.fix_wrong_rate,
            "improve_wrong_rate": scores.improve_wrong_rate,
            "broken_rate": scores.broken_rate,
            "harmful_edit_rate": scores.harmful_edit_rate,
            "hallucinated_rate": scores.hallucinated_rate,
            "length_ratio": scores.length_ratio,
            "changes": asdict(scores.changes),
        }
    if isinstance(scores, ListScores):
        return {
            "first": _rate_json(scores.first),
            "oracle": _rate_json(scores.oracle),
            "compositional_oracle": {"wer": scores.compositional_oracle_rate, "missing_words": scores.missing_words},
            "lists": scores.first.counts.utterances,
            "right": scores.right,
            "right_rate": scores.right_rate,
            "hypotheses": scores.hypotheses,
            "distinct_hypotheses": scores.distinct_hypotheses,
        }
    return {"text": _rate_json(scores)}


def _rate_json(scores: TextScores) -> dict[str, Any]:
    counts, interval = scores.counts, scores.interval
    return {
        "wer": counts.rate,
        "low": interval.low,
        "high": interval.high,
        "words": counts.words,
        "utterances": counts.utterances,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
    }


def _read_pair(reference: str, hypothesis: str) -> tuple[list[str], list[str]]:
    references, hypotheses = _read_lines(reference), _read_lines(hypothesis)
    if len(references) != len(hypotheses):
        message = f"has {len(hypotheses)} lines, {reference} has {len(references)}"
        raise DataError(message, path=hypothesis, remedy="give one utterance a line, in the same order")
    return references, hypotheses


def _read_lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # JSON lines may hold what splitlines() splits at
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path, remedy="check the name") from None
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", path=path, remedy="give a text file, one utterance a line") from None
    return lines if lines[-1] else lines[:-1]


def _holds_lists(path: str) -> bool:
    """Whether the file is one of N-best lists, by its name or by its first characters."""
    if path == "-" or Path(path).suffix in _JSON:
        return True
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return bool(_LISTS.match(file.read(256)))
    except OSError:
        return False  # the error is raised where the file is read


def _read_lists(path: str, errors: list[DataError]) -> list[NBest]:
    """Read the lists; report invalid lines and add their errors to `errors`."""
    from audio_llm.nbest import read_nbest

    lists = []
    for number, nbest in enumerate(read_nbest(path, errors.append), 1):
        if nbest.reference is None:
            message = f"entry {number} ({nbest.id}) has no reference"
            raise DataError(message, path=path, remedy="add it as 'output' or 'reference'")
        lists.append(nbest)
    if errors and not lists:
        raise errors[0]
    for error in errors:
        print(f"audio-llm: error: {error}", file=sys.stderr)
    return lists


def _read_corrections(path: str, lists: Sequence[NBest], lists_path: str) -> list[str]:
    """Return the corrected text of each list: JSON lines are matched by id, plain texts by their order."""
    if Path(path).suffix not in _JSON and not _holds_lists(path):
        texts = _read_lines(path)
        if len(texts) != len(lists):
            message = f"has {len(texts)} lines, {lists_path} has {len(lists)} lists"
            raise DataError(message, path=path, remedy="give one text a line, in the order of the lists")
        return texts
    texts_by_id: defaultdict[str, deque[str]] = defaultdict(deque)  # lists may share an id: the first takes the first
    for number, line in enumerate(_read_lines(path), 1):
        if line.strip():
            correction = _parse_correction(line, path, number)
            texts_by_id[str(correction["id"])].append(correction["text"])
    outputs: list[str] = []
    missing: list[str] = []
    for nbest in lists:
        if texts_by_id[nbest.id]:
            outputs.append(texts_by_id[nbest.id].popleft())
        else:
            missing.append(nbest.id)
    unknown = [identity for identity, texts in texts_by_id.items() for _ in texts]
    if missing or unknown:
        reasons = [f"{len(missing)} lists of {lists_path} are not in it, first {missing[0]!r}"] if missing else []
        reasons += [f"{len(unknown)} of its lines belong to no list, first {unknown[0]!r}"] if unknown else []
        raise DataError("; ".join(reasons), path=path, remedy="give the corrections of these very lists")
    return outputs


def _parse_correction(line: str, path: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not isinstance(row.get("id"), str | int):
        remedy = "give objects with 'id' and 'text', as audio-llm correct writes them"
        raise DataError(f"line {number} is not a correction", path=path, remedy=remedy)
    return row
