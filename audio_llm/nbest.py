"""Hypotheses and N-best lists, with readers and writers for the forms in use."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from audio_llm.errors import DataError


@dataclass(frozen=True)
class Hypothesis:
    """One text a recogniser considered.

    Attributes:
        text: The words as the recogniser wrote them.
        score: Natural-log score of the whole hypothesis, higher is better; None where the engine gives none.
    """

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Word:
    """One word with its place in time.

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
    """A ranked list of hypotheses for one stretch of speech.

    Attributes:
        id: Name of the utterance.
        hypotheses: Best first; duplicates are kept as the source gave them. Empty where nothing was said.
        reference: The true text, where it is known.
        words: Words of the best hypothesis with times, where the engine gives them.
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


def read_nbest(path: str | Path) -> Iterator[NBest]:
    """Read N-best lists, one after another.

    Understands a JSON array in HyPoradise's form (`input`, `output`, and optionally `id`, `am_score` or
    `score`), JSON lines with either those keys or this package's own (`hypotheses`, `reference`), and
    NeMo's beam files (`.tsv`: text, tab, score; an empty line between utterances).

    Args:
        path: The file; `-` reads JSON lines from standard input.

    Raises:
        DataError: The file or one of its entries is not such a list.
    """
    if str(path) == "-":
        yield from _read_json_lines(sys.stdin, "standard input")
        return
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".tsv":
                yield from _read_nemo_beams(file, path)
            elif _first_character(file) == "[":
                yield from _read_json_array(file, path)
            else:
                yield from _read_json_lines(file, str(path))
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
    """Return the list as plain JSON values, the form of one line of a JSONL file."""
    row: dict[str, Any] = {"id": nbest.id, "hypotheses": [asdict(hypothesis) for hypothesis in nbest.hypotheses]}
    if nbest.reference is not None:
        row["reference"] = nbest.reference
    if nbest.words:
        row["words"] = [asdict(word) for word in nbest.words]
    return row


def nbest_from_dict(row: Any, where: str, number: int) -> NBest:
    """Build a list from one JSON value in either form (see `read_nbest`).

    Args:
        row: The JSON value.
        where: Name of the file, for errors.
        number: Count of the entry in it from 1, for errors and as its name where it has none.

    Raises:
        DataError: The value is not an N-best list.
    """
    try:
        identity = str(row.get("id", number))
        if "hypotheses" in row:
            hypotheses = tuple(Hypothesis(str(h["text"]), _score(h.get("score"))) for h in row["hypotheses"])
            words = tuple(
                Word(str(w["text"]), float(w["start_s"]), float(w["end_s"]), _score(w.get("confidence")))
                for w in row.get("words", ())
            )
            return NBest(identity, hypotheses, _text_or_none(row.get("reference")), words)
        texts = row["input"]
        if isinstance(texts, str):
            texts = [texts]
        scores = row.get("am_score", row.get("score")) or [None] * len(texts)
        if len(scores) != len(texts):
            raise ValueError(f"{len(texts)} hypotheses but {len(scores)} scores")
        hypotheses = tuple(Hypothesis(str(t), _score(s)) for t, s in zip(texts, scores, strict=True))
        return NBest(identity, hypotheses, _text_or_none(row.get("output", row.get("reference"))))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"entry {number} is not an N-best list: {error}",
            path=where,
            remedy="give objects with 'hypotheses' [{text, score}] or with 'input' [texts] and 'output'",
        ) from None


def _score(value: Any) -> float | None:
    return None if value is None else float(value)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _first_character(file: TextIO) -> str:
    head = file.read(256).lstrip()[:1]
    file.seek(0)
    return head


def _read_json_array(file: TextIO, path: Path) -> Iterator[NBest]:
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error}", path=path, remedy="the file may be cut off") from None
    for number, row in enumerate(rows, 1):
        yield nbest_from_dict(row, str(path), number)


def _read_json_lines(file: TextIO, where: str) -> Iterator[NBest]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number} is not valid JSON: {error}", path=where) from None
        yield nbest_from_dict(row, where, number)


def _read_nemo_beams(file: TextIO, path: Path) -> Iterator[NBest]:
    number = 0
    beam: list[Hypothesis] = []
    for line in [*file, ""]:
        text, _, score = line.rstrip("\n").partition("\t")
        if text or score:
            try:
                beam.append(Hypothesis(text, float(score)))
            except ValueError:
                raise DataError(f"no score behind the tab in {line!r}", path=path) from None
        elif beam:
            number += 1
            yield NBest(str(number), tuple(beam))
            beam = []
