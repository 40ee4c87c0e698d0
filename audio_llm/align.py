"""Word alignment: the cheapest edits between two word sequences, with deterministic ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["equal", "replace", "delete", "insert"]
_MAX_TABLE_SIZE = 16_000_000  # cells; larger tables need too much memory and are left to rapidfuzz


@dataclass(frozen=True, slots=True)
class Op:
    """One step from source to target; the spans are half-open word indices.

    Attributes:
        kind: `equal`, `replace`, `delete` (words of the source only) or `insert` (words of the target only).
        source_start: Index of the first source word concerned.
        source_end: Index after the last; equal to `source_start` for an insertion.
        target_start: Index of the first target word concerned.
        target_end: Index after the last; equal to `target_start` for a deletion.
    """

    kind: Kind
    source_start: int
    source_end: int
    target_start: int
    target_end: int


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Number of words of each kind in an alignment.

    With the reference as source and the hypothesis as target these are the counts of a word error rate.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """Substitutions + deletions + insertions: the Levenshtein distance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_words(self) -> int:
        """Words of the source."""
        return self.hits + self.substitutions + self.deletions

    @property
    def error_rate(self) -> float:
        """Errors per source word; 0 for two empty texts, and infinite where only the source is empty."""
        if self.reference_words == 0:
            return float("inf") if self.errors else 0.0
        return self.errors / self.reference_words

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def align(source: Sequence[str], target: Sequence[str]) -> list[Op]:
    """Return a cheapest alignment, one word per step.

    Common words at both ends are matched first. Between them ties are broken from the right end:
    a match or substitution before a deletion, a deletion before an insertion. (Sequences whose lengths multiply
    to more than 16 million are aligned by rapidfuzz: just as cheap, ties broken its way.)

    Args:
        source: Words (or any strings) of one side; the reference of an error rate.
        target: Words of the other side.

    Returns:
        Steps from left to right that cover both sides completely; a step covers at most one word of each side.
    """
    head, tail = _common_ends(source, target)
    source_core, target_core = source[head : len(source) - tail], target[head : len(target) - tail]
    ops = [Op("equal", i, i + 1, i, i + 1) for i in range(head)]
    ops.extend(_shifted(op, head) for op in _align_core(source_core, target_core))
    source_tail, target_tail = len(source) - tail, len(target) - tail
    ops.extend(
        Op("equal", source_tail + i, source_tail + i + 1, target_tail + i, target_tail + i + 1) for i in range(tail)
    )
    return ops


def edits(source: Sequence[str], target: Sequence[str]) -> list[Op]:
    """Return the edits of `align`, with neighbors merged.

    Returns:
        Left to right, never touching: between two of them is at least one equal word. A stretch with words on
        both sides is a `replace`, whatever the number of words.
    """
    merged: list[Op] = []
    after_edit = False
    for op in align(source, target):
        if op.kind == "equal":
            after_edit = False
        elif after_edit:
            last = merged[-1]
            merged[-1] = _span(last.source_start, op.source_end, last.target_start, op.target_end)
        else:
            merged.append(op)
            after_edit = True
    return merged


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """Return the counts of a word error rate.

    Args:
        reference: Reference words.
        hypothesis: Words to score.
    """
    kinds = [op.kind for op in align(reference, hypothesis)]
    return EditCounts(kinds.count("equal"), kinds.count("replace"), kinds.count("delete"), kinds.count("insert"))


def edit_distance(source: Sequence[str], target: Sequence[str]) -> int:
    """Return the number of word substitutions, deletions and insertions between the two; faster than `align`."""
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(source, target))


def _common_ends(source: Sequence[str], target: Sequence[str]) -> tuple[int, int]:
    shorter = min(len(source), len(target))
    head = 0
    while head < shorter and source[head] == target[head]:
        head += 1
    tail = 0
    while tail < shorter - head and source[-1 - tail] == target[-1 - tail]:
        tail += 1
    return head, tail


def _align_core(source: Sequence[str], target: Sequence[str]) -> list[Op]:
    if not source:
        return [Op("insert", 0, 0, j, j + 1) for j in range(len(target))]
    if not target:
        return [Op("delete", i, i + 1, 0, 0) for i in range(len(source))]
    if len(source) * len(target) > _MAX_TABLE_SIZE:
        return _align_long(source, target)
    ids: dict[str, int] = {}
    source_ids = np.array([ids.setdefault(word, len(ids)) for word in source])
    target_ids = np.array([ids.setdefault(word, len(ids)) for word in target])
    return _backtrace(_distances(source_ids, target_ids), source_ids, target_ids)


def _distances(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the table of prefix distances, (S + 1, T + 1) int32, for word numbers (S,) and (T,)."""
    columns = np.arange(len(target) + 1, dtype=np.int32)
    table = np.empty((len(source) + 1, len(target) + 1), dtype=np.int32)
    table[0] = columns
    for i, word in enumerate(source, 1):
        above = table[i - 1]
        row = above + 1
        np.minimum(row[1:], above[:-1] + (target != word), out=row[1:])
        # A run of insertions costs one per column: take the running minimum with the columns subtracted.
        table[i] = np.minimum.accumulate(row - columns) + columns
    return table


def _backtrace(table: np.ndarray, source: np.ndarray, target: np.ndarray) -> list[Op]:
    ops: list[Op] = []
    i, j = len(source), len(target)
    while i or j:
        if i and j and table[i, j] == table[i - 1, j - 1] + (source[i - 1] != target[j - 1]):
            kind: Kind = "equal" if source[i - 1] == target[j - 1] else "replace"
            ops.append(Op(kind, i - 1, i, j - 1, j))
            i, j = i - 1, j - 1
        elif i and table[i, j] == table[i - 1, j] + 1:
            ops.append(Op("delete", i - 1, i, j, j))
            i -= 1
        else:
            ops.append(Op("insert", i, i, j - 1, j))
            j -= 1
    return ops[::-1]


def _align_long(source: Sequence[str], target: Sequence[str]) -> list[Op]:
    from rapidfuzz.distance import Levenshtein

    kinds: dict[str, Kind] = {"equal": "equal", "replace": "replace", "delete": "delete", "insert": "insert"}
    ops: list[Op] = []
    for code in Levenshtein.opcodes(source, target):
        for k in range(max(code.src_end - code.src_start, code.dest_end - code.dest_start)):
            source_start, target_start = min(code.src_start + k, code.src_end), min(code.dest_start + k, code.dest_end)
            source_end, target_end = min(source_start + 1, code.src_end), min(target_start + 1, code.dest_end)
            ops.append(Op(kinds[code.tag], source_start, source_end, target_start, target_end))
    return ops


def _shifted(op: Op, offset: int) -> Op:
    return Op(
        op.kind, op.source_start + offset, op.source_end + offset, op.target_start + offset, op.target_end + offset
    )


def _span(source_start: int, source_end: int, target_start: int, target_end: int) -> Op:
    kind: Kind = "replace"
    if source_start == source_end:
        kind = "insert"
    elif target_start == target_end:
        kind = "delete"
    return Op(kind, source_start, source_end, target_start, target_end)
