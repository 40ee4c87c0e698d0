"""The phrase table: replacements of hypothesis phrases, learned by alignment with references."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from audio_llm.align import Op, edits

Words = tuple[str, ...]

_CONTEXT = 2  # context words on either side of a change


@dataclass(frozen=True, slots=True)
class Replacement:
    """One replacement of a phrase of hypothesis words.

    Attributes:
        target: The reference words; may be empty.
        count: Lists in which the phrase was these words.
        unchanged: Lists in which the phrase was correct.
        log_odds: Smoothed log of count over unchanged.
        balance: Count minus unchanged, over first hypotheses only.
    """

    target: Words
    count: int
    unchanged: int
    log_odds: float
    balance: int = 0

    @classmethod
    def of(cls, target: Words, count: int, unchanged: int, discount: float, balance: int = 0) -> Replacement:
        """Build one from its counts; `discount` is subtracted from `count` and added to `unchanged`."""
        return cls(target, count, unchanged, math.log(count - discount) - math.log(unchanged + discount), balance)

    @property
    def evidence(self) -> float:
        """Log(1 + count)."""
        return math.log1p(self.count)


class PhraseTable:
    """Replacements by source phrase, the likeliest first."""

    def __init__(self, entries: Mapping[Words, Sequence[Replacement]]) -> None:
        self.entries = {source: tuple(replacements) for source, replacements in entries.items()}
        self.longest = max((len(source) for source in self.entries), default=0)
        self._balances = {(source, r.target): r.balance for source, targets in self.entries.items() for r in targets}

    def __len__(self) -> int:
        return sum(len(replacements) for replacements in self.entries.values())

    def starting_at(self, words: Words, start: int) -> Iterator[tuple[int, Replacement]]:
        """Yield (end, replacement) for every known phrase words[start:end]."""
        for end in range(start + 1, min(start + self.longest, len(words)) + 1):
            for replacement in self.entries.get(words[start:end], ()):
                yield end, replacement

    def balance(self, words: Words, start: int, end: int, target: Words) -> int:
        """Return how much more often a change was right than wrong in first hypotheses of the training lists.

        The change is looked up with and without its context words, and the highest balance counts; at least 0.

        Args:
            words: The text that is changed.
            start: Index of the first replaced word.
            end: Index after the last one; equal to `start` for an insertion.
            target: The new words.
        """
        best = 0
        for begin in range(max(0, start - _CONTEXT), start + 1):
            for stop in range(end, min(len(words), end + _CONTEXT) + 1):
                whole = (*words[begin:start], *target, *words[end:stop])
                best = max(best, self._balances.get((words[begin:stop], whole), 0))
        return best


@dataclass(frozen=True)
class TableSettings:
    """Settings of the training of a phrase table.

    Attributes:
        longest: Maximum words of a source phrase, context included.
        alternatives: Maximum replacements of a source phrase.
        min_count: Minimum number of lists with a replacement.
        min_rate: Minimum of count / (count + unchanged).
        discount: Subtracted from every count, so that single occurrences weigh less.
        hypotheses: Maximum distinct hypotheses of a list to learn from.
        most: Maximum number of source phrases; the most frequent ones are kept.
    """

    longest: int = 5
    alternatives: int = 8
    min_count: int = 1
    min_rate: float = 0.02
    discount: float = 0.5
    hypotheses: int = 8
    most: int = 200_000


def learn_phrases(lists: Sequence[tuple[Sequence[Words], Words]], settings: TableSettings) -> PhraseTable:
    """Learn a table; a replacement in several hypotheses of one list counts once.

    Args:
        lists: (hypotheses without duplicates, best first; reference) of each list, as words.
        settings: See `TableSettings`.
    """
    aligned = [
        [(words, edits(words, reference), reference) for words in hypotheses[: settings.hypotheses]]
        for hypotheses, reference in lists
    ]
    counts: Counter[tuple[Words, Words]] = Counter()
    of_first: Counter[tuple[Words, Words]] = Counter()
    for alignments in aligned:
        changed = [set(_changed_phrases(*one, settings.longest)) for one in alignments]
        counts.update(set().union(*changed))
        of_first.update(changed[0] if changed else ())
    counts = Counter({pair: count for pair, count in counts.items() if count >= settings.min_count})
    unchanged = _count_unchanged(aligned, {source for source, _ in counts}, settings.longest)
    unchanged_first = _count_unchanged(
        [some[:1] for some in aligned], {source for source, _ in of_first}, settings.longest
    )
    entries: dict[Words, list[Replacement]] = {}
    for (source, target), count in counts.items():
        if count < settings.min_rate * (count + unchanged[source]):
            continue
        balance = of_first[source, target] - unchanged_first[source]
        entries.setdefault(source, []).append(
            Replacement.of(target, count, unchanged[source], settings.discount, balance)
        )
    for replacements in entries.values():
        replacements.sort(key=lambda r: (-r.count, r.target))
        del replacements[settings.alternatives :]
    return PhraseTable(_largest(entries, settings.most))


def _largest(entries: dict[Words, list[Replacement]], most: int) -> dict[Words, list[Replacement]]:
    sources = sorted(entries, key=lambda source: (-entries[source][0].count, source))[:most]
    return {source: entries[source] for source in sorted(sources)}


def _changed_phrases(words: Words, runs: Sequence[Op], reference: Words, longest: int) -> Iterator[tuple[Words, Words]]:
    """Yield (source, target) of every phrase around an edit whose ends both lie between aligned words."""
    low, high = _boundaries(len(words), runs)
    for run in runs:
        for start in range(max(0, run.source_end - longest), run.source_start + 1):
            for end in range(max(run.source_end, start + 1), min(start + longest, len(words)) + 1):
                if low[start] < 0 or low[end] < 0:
                    continue
                source = words[start:end]
                # Words inserted at an edge may belong to this phrase or to its neighbor: learn both.
                for target_start in {low[start], high[start]}:
                    for target_end in {low[end], high[end]}:
                        target = reference[target_start:target_end]
                        if target != source and target_start <= target_end:
                            yield source, target


def _boundaries(length: int, runs: Sequence[Op]) -> tuple[list[int], list[int]]:
    """Return for each gap between source words the target gap before and after the words inserted there.

    Both are -1 inside a run, where no cut is possible.
    """
    low, high = [-1] * (length + 1), [-1] * (length + 1)
    begin, offset = 0, 0
    for stop, next_begin, next_offset in [
        *((run.source_start, run.source_end, run.target_end - run.source_end) for run in runs),
        (length, length, 0),
    ]:
        for gap in range(begin, stop + 1):
            if low[gap] < 0:  # else words are inserted in this gap, and it ends the run before
                low[gap] = gap + offset
            high[gap] = gap + offset
        begin, offset = next_begin, next_offset
    return low, high


def _count_unchanged(
    aligned: Sequence[Sequence[tuple[Words, list[Op], Words]]], sources: set[Words], longest: int
) -> Counter[Words]:
    """Return in how many lists each source phrase was correct."""
    counts: Counter[Words] = Counter()
    for alignments in aligned:
        right: set[Words] = set()
        for words, runs, _ in alignments:
            edges = [0, *(edge for run in runs for edge in (run.source_start, run.source_end)), len(words)]
            for begin, stop in zip(edges[::2], edges[1::2], strict=True):
                right.update(
                    words[start:end]
                    for start in range(begin, stop)
                    for end in range(start + 1, min(start + longest, stop) + 1)
                )
        counts.update(right & sources)
    return counts
