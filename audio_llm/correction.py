"""Corrections, the sources of their edits, and the protocol of correctors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from audio_llm.align import align, edits
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER


@dataclass(frozen=True)
class Edit:
    """One edit of a correction.

    Attributes:
        start: Index of the first replaced word of the input.
        end: Index after the last replaced word; equal to `start` for an insertion.
        before: The replaced words, empty for an insertion.
        after: The new words, empty for a deletion.
        source: Source of the new words: `hypothesis 3`, the third distinct one of the list, or the
            corrector's name for words that no hypothesis has at that position.
    """

    start: int
    end: int
    before: str
    after: str
    source: str


@dataclass(frozen=True)
class Correction:
    """Correction of one N-best list.

    Attributes:
        id: The list's id.
        text: Corrected text.
        input: The recognizer's best text.
        unchanged: True where the recognizer's text was kept.
        reason: Why it was kept or changed.
        edits: Edits from left to right, in normalized words.
        confidence: Probability of `text` according to the corrector, 0 to 1; None where unknown.
    """

    id: str
    text: str
    input: str
    unchanged: bool
    reason: str
    edits: tuple[Edit, ...]
    confidence: float | None


def describe_edits(hypotheses: Sequence[tuple[str, ...]], words: tuple[str, ...], name: str) -> tuple[Edit, ...]:
    """Return the edits from the first hypothesis to `words`, with the hypothesis that has the new words.

    Args:
        hypotheses: Hypotheses as words, best first.
        words: The corrected text.
        name: Source of words that no hypothesis has at that position.
    """
    first = hypotheses[0]
    aligned = [AlignedHypothesis.of(first, other) for other in hypotheses[1:]]
    described = []
    for op in edits(first, words):
        before, after = first[op.source_start : op.source_end], words[op.target_start : op.target_end]
        sources = (n for n, other in enumerate(aligned, 2) if other.has(op.source_start, op.source_end, after))
        number = next(sources, None)
        source = name if number is None else f"hypothesis {number}"
        described.append(Edit(op.source_start, op.source_end, " ".join(before), " ".join(after), source))
    return tuple(described)


@dataclass(frozen=True)
class AlignedHypothesis:
    """A hypothesis that is aligned with the first one.

    Attributes:
        replacements: Its words for each word of the first hypothesis.
        between: Its insertions before each word, and after the last.
    """

    replacements: tuple[tuple[str, ...], ...]
    between: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, first: tuple[str, ...], other: tuple[str, ...]) -> AlignedHypothesis:
        """Align two texts."""
        replacements: list[tuple[str, ...]] = [()] * len(first)
        between: list[tuple[str, ...]] = [()] * (len(first) + 1)
        for op in align(first, other):
            new = other[op.target_start : op.target_end]
            if op.kind == "insert":
                between[op.source_start] = (*between[op.source_start], *new)
            else:
                replacements[op.source_start] = new
        return cls(tuple(replacements), tuple(between))

    def has(self, start: int, end: int, words: tuple[str, ...]) -> bool:
        """Return whether the hypothesis has these words for the words [start, end) of the first."""
        if start == end:
            return self.between[start] == words
        inner = [
            *self.replacements[start],
            *(w for i in range(start + 1, end) for w in (*self.between[i], *self.replacements[i])),
        ]
        before, after = self.between[start], self.between[end]
        return any(words == (*b, *inner, *a) for b in {(), before} for a in {(), after})


class Corrector(Protocol):
    """Corrects N-best lists.

    Attributes:
        name: Its name, as in `--corrector`.
        hypotheses: Number of hypotheses per list that it uses.
    """

    name: str
    hypotheses: int

    def correct(
        self,
        lists: Sequence[NBest],
        waveforms: Sequence[np.ndarray] | None = None,
    ) -> list[Correction]:
        """Correct each list, in order.

        Args:
            lists: N-best lists; an empty list gives an empty text.
            waveforms: Waveform of each list, for decodings that score texts against the sound:
                (T,) float32 at 16 kHz.
        """
        ...


def protect(correction: Correction, terms: Iterable[str]) -> Correction:
    """Revert the edits that remove a listed term; all edits where they cannot be separated.

    Args:
        correction: The correction.
        terms: Words or sequences of words, compared without case and punctuation.

    Returns:
        The correction itself if it removes no term.
    """
    protected = [term for term in (DEFAULT_NORMALIZER(term).split() for term in terms) if term]
    source = DEFAULT_NORMALIZER(correction.input).split()
    result = DEFAULT_NORMALIZER(correction.text).split()
    lost = [term for term in protected if _count(term, result) < _count(term, source)]
    if correction.unchanged or not lost:
        return correction
    reason = f"kept for {', '.join(sorted(' '.join(term) for term in lost))}"
    if _apply(source, correction.edits) == result:
        harmless = tuple(
            edit
            for edit in correction.edits
            if not any(_count(term, _apply(source, [edit])) < _count(term, source) for term in lost)
        )
        text = _apply(source, harmless)
        if harmless and not any(_count(term, text) < _count(term, source) for term in lost):
            text_reason = f"{correction.reason}, {reason}"
            return replace(correction, text=" ".join(text), edits=harmless, reason=text_reason)
    return replace(correction, text=correction.input, unchanged=True, reason=reason, edits=())


def _apply(words: Sequence[str], changes: Iterable[Edit]) -> list[str]:
    out = list(words)
    for edit in sorted(changes, key=lambda edit: edit.start, reverse=True):
        out[edit.start : edit.end] = edit.after.split()
    return out


def _count(term: Sequence[str], words: Sequence[str]) -> int:
    return sum(words[start : start + len(term)] == list(term) for start in range(len(words) - len(term) + 1))
