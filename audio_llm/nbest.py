"""Hypotheses and N-best lists, with readers and writers of common formats."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from audio_llm.errors import DataError

_REMEDY = "give objects with 'hypotheses' [{text, score}] or with 'input' [texts] and 'output'"
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*([{\]]|$)")

OnError = Callable[[DataError], None]


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis of a recognizer.

    Attributes:
        text: The words as the recognizer wrote them.
        score: Natural-log score of the whole hypothesis, higher is better; None where the engine gives none.
    """

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Word:
    """One word with its times.

    Attributes:
        text: The word.
        start_s: Start in seconds from the beginning of the recording.
        end_s: End in seconds.
        confidence: 0 to 1, or None where the engine gives none.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None


@dataclass(frozen=True)
class NBest:
    """A ranked list of hypotheses for one speech segment.

    Attributes:
        id: Name of the utterance.
        hypotheses: Hypotheses, best first, duplicates included; empty for silence.
        reference: Reference text, or None where it is unknown.
        words: Words of the best hypothesis with timestamps, if the recognizer gives them.
    """

    id: str
    hypotheses: tuple[Hypothesis, ...]
    reference: str | None = None
    words: tuple[Word, ...] = field(default=())

    @property
    def best(self) -> str:
        """Text of the first hypothesis, or an empty string."""
        return self.hypotheses[0].text if self.hypotheses else ""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts of all hypotheses in order."""
        return tuple(hypothesis.text for hypothesis in self.hypotheses)


def read_nbest(path: str | Path, on_error: OnError | None = None) -> Iterator[NBest]:
    """Read N-best lists, one after another.

    Reads a JSON array in HyPoradise's form (`input`, `output`, and optionally `id`, `am_score` or
    `score`), JSON lines with either those keys or this package's own (`hypotheses`, `reference`), and
    NeMo's beam files (`.tsv`: text, tab, score; an empty line between utterances).

    Args:
        path: The file; `-` reads JSON lines from standard input.
        on_error: Called for an invalid line or entry, which is then skipped; the number by which
            lists without an id are named counts it too. None raises the error.

    Raises:
        DataError: The file is invalid, or (without `on_error`) one of its entries is.
    """
    if on_error is None:
        on_error = _raise
    try:
        if str(path) == "-":
            yield from _read_json_lines(sys.stdin, "standard input", on_error)
            return
        path = Path(path)
        # An invalid UTF-8 byte makes its line invalid, not the file.
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            if path.suffix == ".tsv":
                yield from _read_nemo_beams(file, path, on_error)
            elif _starts_array(file, path.suffix == ".json"):
                yield from _read_json_array(file, path, on_error)
            else:
                yield from _read_json_lines(file, str(path), on_error)
    except FileNotFoundError:
        raise DataError("no such file", path=path, remedy="check the name") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"not a text file: {error}", path=path, remedy="give a JSON, JSONL or .tsv file") from None


def write_nbest(lists: Iterable[NBest], file: TextIO) -> int:
    """Write lists as JSON lines that `read_nbest` reads back; return how many were written."""
    count = 0
    for nbest in lists:
        file.write(json.dumps(nbest_to_dict(nbest), ensure_ascii=False) + "\n")
        count += 1
    return count


def nbest_to_dict(nbest: NBest) -> dict[str, Any]:
    """Return the list as plain JSON values: one line of a JSONL file."""
    row: dict[str, Any] = {"id": nbest.id, "hypotheses": [asdict(hypothesis) for hypothesis in nbest.hypotheses]}
    if nbest.reference is not None:
        row["reference"] = nbest.reference
    if nbest.words:
        row["words"] = [asdict(word) for word in nbest.words]
    return row


def nbest_from_dict(row: Any, where: str, number: int, unit: str = "entry") -> NBest:
    """Build a list from one JSON value in either form (see `read_nbest`).

    Args:
        row: The JSON value.
        where: Name of the file, for errors.
        number: Number of the entry from 1, for errors and as its name if it has none.
        unit: Unit of the number, for errors.

    Raises:
        DataError: The value is not an N-best list.
    """
    try:
        if not isinstance(row, dict):
            raise ValueError(f"it is {_kind(row)}, not an object")
        identity = _identity(row.get("id"), number)
        if "hypotheses" in row:
            return _from_json_form(row, identity)
        if "input" in row:
            return _from_hyporadise(row, identity)
        raise ValueError("neither 'hypotheses' nor 'input' is in it")
    except ValueError as error:
        raise DataError(f"{unit} {number} is not an N-best list: {error}", path=where, remedy=_REMEDY) from None


def _from_json_form(row: dict[str, Any], identity: str) -> NBest:
    hypotheses = []
    for number, item in enumerate(_array(row["hypotheses"], "'hypotheses'"), 1):
        item = _object(item, f"hypothesis {number}")
        text = _text(item.get("text"), f"the text of hypothesis {number}")
        hypotheses.append(Hypothesis(text, _score(item.get("score"), f"the score of hypothesis {number}")))
    words = []
    for number, item in enumerate(_array(row.get("words", []), "'words'"), 1):
        item, name = _object(item, f"word {number}"), f"of word {number}"
        start_s, end_s = (_number(item.get(key), f"{key} {name}") for key in ("start_s", "end_s"))
        confidence = _score(item.get("confidence"), f"the confidence {name}")
        words.append(Word(_text(item.get("text"), f"the text {name}"), start_s, end_s, confidence))
    return NBest(identity, tuple(hypotheses), _reference(row.get("reference")), tuple(words))


def _from_hyporadise(row: dict[str, Any], identity: str) -> NBest:
    texts = [row["input"]] if isinstance(row["input"], str) else _array(row["input"], "'input'")
    scores = row.get("am_score", row.get("score"))
    scores = [None] * len(texts) if scores in (None, []) else _array(scores, "'am_score' or 'score'")
    if len(scores) != len(texts):
        raise ValueError(f"{len(texts)} hypotheses but {len(scores)} scores")
    hypotheses = tuple(
        Hypothesis(_text(text, f"hypothesis {number}"), _score(score, f"the score of hypothesis {number}"))
        for number, (text, score) in enumerate(zip(texts, scores, strict=True), 1)
    )
    return NBest(identity, hypotheses, _reference(row.get("output", row.get("reference"))))


def _identity(value: Any, number: int) -> str:
    if value is None:
        return str(number)
    if not isinstance(value, str | int | float):
        raise ValueError(f"the id is {_kind(value)}, not text")
    return _text(str(value), "the id")


def _reference(value: Any) -> str | None:
    return None if value is None else _text(value, "the reference")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_kind(value)}, not text")
    if not _is_unicode(value):
        raise ValueError(f"{name} is not valid Unicode")
    return value


def _score(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name)


def _number(value: Any, name: str) -> float:
    try:
        number = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {_kind(value)}, not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, not a finite number")
    return number


def _array(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_kind(value)}, not an array")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_kind(value)}, not an object")
    return value


def _kind(value: Any) -> str:
    """Return the JSON type of a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; one with bytes that were no UTF-8, or half a pair, cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _raise(error: DataError) -> None:
    raise error


def _starts_array(file: TextIO, json_file: bool) -> bool:
    """Whether the file is one JSON array; in a file of lines, one that starts with a bracket may just be broken."""
    head = file.read(256).lstrip()
    file.seek(0)
    return head.startswith("[") and (json_file or bool(_ARRAY_OF_OBJECTS.match(head)))


def _read_json_array(file: TextIO, path: Path, on_error: OnError) -> Iterator[NBest]:
    try:
        rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", path=path, remedy="the file may be cut off") from None
    for number, row in enumerate(rows, 1):
        try:
            nbest = nbest_from_dict(row, str(path), number)
        except DataError as error:
            on_error(error)
        else:
            yield nbest


def _read_json_lines(file: TextIO, where: str, on_error: OnError) -> Iterator[NBest]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            nbest = nbest_from_dict(_parse(line, where, number), where, number, "line")
        except DataError as error:
            on_error(error)
        else:
            yield nbest


def _parse(line: str, where: str, number: int) -> Any:
    if not _is_unicode(line):
        raise DataError(f"line {number} is not UTF-8 text", path=where, remedy=_REMEDY)
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is not valid JSON: {error}", path=where, remedy=_REMEDY) from None


def _read_nemo_beams(file: TextIO, path: Path, on_error: OnError) -> Iterator[NBest]:
    number = 0
    beam: list[Hypothesis] = []
    broken: DataError | None = None
    for line_number, line in enumerate([*file, ""], 1):
        text, _, score = line.rstrip("\n").partition("\t")
        if text or score:
            try:
                beam.append(Hypothesis(_text(text, "the text"), _number(score, "what is behind the tab")))
            except ValueError as error:
                remedy = "give text, tab, score, and an empty line between utterances"
                broken = broken or DataError(f"line {line_number} is no hypothesis: {error}", path=path, remedy=remedy)
        elif beam or broken:
            number += 1
            if broken:  # the whole utterance is skipped, since a list without one of its hypotheses would look complete
                on_error(broken)
            else:
                yield NBest(str(number), tuple(beam))
            beam, broken = [], None
