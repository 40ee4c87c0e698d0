"""What a corrector returns, where its changes come from, and the protocol that every corrector follows."""

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
    """One place where a correction differs from its input.

    Attributes:
        start: Index of the first replaced word of the input.
        end: Index after the last replaced word; equal to `start` for an insertion.
        before: The replaced words, empty for an insertion.
        after: The new words, empty for a deletion.
        source: Where the new words come from: `hypothesis 3`, the third of the list's different ones, or the
            corrector's name for words that none has in that place.
    """

    start: int
    end: int
    before: str
    after: str
    source: str


@dataclass(frozen=True)
class Correction:
    """The outcome for one N-best list.

    Attributes:
        id: The list's id.
        text: The text to use.
        input: The recognizer's best text.
        unchanged: True where the recognizer's text was kept.
        reason: Why it was kept or changed, in a few words.
        edits: The differences, left to right, on normalized words.
        confidence: 0 to 1, the share of probability that the corrector gives to `text`; None where unknown.
    """

    id: str
    text: str
    input: str
    unchanged: bool
    reason: str
    edits: tuple[Edit, ...]
    confidence: float | None


def describe_edits(hypotheses: Sequence[tuple[str, ...]], words: tuple[str, ...], name: str) -> tuple[Edit, ...]:
    """Return where `words` differs from the first hypothesis, and which hypothesis has the new words there.

    Args:
        hypotheses: Hypotheses as words, best first.
        words: The corrected text.
        name: Source of words that no hypothesis has in that place.
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
    """One hypothesis laid along the first.

    Attributes:
        replacements: What it has for each word of the first.
        between: What it puts before each word, and behind the last.
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
        """Tell whether the hypothesis has these words for the words [start, end) of the first."""
        if start == end:
            return self.between[start] == words
        inner = [
            *self.replacements[start],
            *(w for i in range(start + 1, end) for w in (*self.between[i], *self.replacements[i])),
        ]
        before, after = self.between[start], self.between[end]
        return any(words == (*b, *inner, *a) for b in {(), before} for a in {(), after})


class Corrector(Protocol):
    """Turns N-best lists into corrected texts.

    Attributes:
        name: Its name, as in `--correct`.
        hypotheses: How many hypotheses of a list it can make use of.
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
            waveforms: For decodings that ask the recognizer again, the sound of each list:
                (T,) float32 at 16 kHz.
        """
        ...


def protect(correction: Correction, terms: Iterable[str]) -> Correction:
    """Take back the edits that remove a listed term; all of them where they cannot be told apart.

    Args:
        correction: What a corrector returned.
        terms: Words or sequences of words, compared without case and punctuation.

    Returns:
        The correction itself where it removes no term.
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
