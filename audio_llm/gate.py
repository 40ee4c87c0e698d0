"""The gate: keep the recognizer's text if the gain is small or the change is large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from audio_llm.align import count_edits


class Candidate(Protocol):
    """A correction.

    Attributes:
        text: The corrected text.
        finished: Whether the model generated the end token.
    """

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool: ...


@dataclass(frozen=True)
class Gate:
    """Conditions for accepting a correction.

    Attributes:
        margin: Minimum gain in log probability over the unchanged text, in nats.
        max_change: Maximum word edits over recognized words.
        off: Accept every finished correction.
        max_novel: Maximum number of words that are in no hypothesis; None: no limit.
    """

    margin: float = 2.0
    max_change: float = 0.6
    off: bool = False
    max_novel: int | None = None

    def verdict(self, recognized: str, candidate: Candidate, gain: float, other_hypotheses: Sequence[str] = ()) -> str:
        """Return why the recognizer's text is kept, or an empty string if the correction is accepted.

        Args:
            recognized: The recognizer's text, normalized.
            candidate: The correction.
            gain: Its total score minus that of the unchanged text, in nats.
            other_hypotheses: The list's other hypotheses, normalized.
        """
        if not recognized:
            return "no words recognized"
        if candidate.text == recognized:
            return "no change proposed"
        if not candidate.text or not candidate.finished:
            return "the correction has no end"
        if self.off:
            return ""
        if gain < self.margin:
            return f"gain {gain:.1f} below the margin of {self.margin:g}"
        changed = change_ratio(recognized, candidate.text)
        if changed > self.max_change:
            return f"{changed:.0%} of the words would change, more than {self.max_change:.0%}"
        if self.max_novel is not None:
            novel = novel_words([recognized, *other_hypotheses], candidate.text)
            if len(novel) > self.max_novel:
                return f"{' '.join(novel[:5])}: in no hypothesis"
        return ""


def novel_words(hypotheses: Sequence[str], corrected: str) -> list[str]:
    """Return the words of a correction that are in no hypothesis."""
    known = {word for text in hypotheses for word in text.split()}
    return [word for word in corrected.split() if word not in known]


def change_ratio(recognized: str, corrected: str) -> float:
    """Return word edits over recognized words."""
    return count_edits(recognized.split(), corrected.split()).errors / max(1, len(recognized.split()))


def tune_gate(
    recognized: Sequence[str],
    candidates: Sequence[Candidate],
    gains: Sequence[float],
    references: Sequence[str],
    margins: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
    max_changes: Sequence[float] = (0.3, 0.45, 0.6, 0.8, 1.0),
    max_novels: Sequence[int | None] = (None,),
    other_hypotheses: Sequence[Sequence[str]] = (),
) -> tuple[Gate, int]:
    """Return the gate with the fewest word errors on validation data, the stricter of equals, and these errors.

    Args:
        recognized: The recognizer's texts, normalized.
        candidates: The corrections.
        gains: Gain of each correction, as for `Gate.verdict`.
        references: Normalized reference texts.
        margins: Values of `Gate.margin` to try.
        max_changes: Values of `Gate.max_change` to try.
        max_novels: Values of `Gate.max_novel` to try, the strictest first.
        other_hypotheses: The other hypotheses of each list; needed for `max_novels`.
    """
    unchanged_errors = [count_edits(r.split(), h.split()).errors for r, h in zip(references, recognized, strict=True)]
    corrected_errors = [
        count_edits(r.split(), c.text.split()).errors for r, c in zip(references, candidates, strict=True)
    ]
    rest = other_hypotheses or [()] * len(recognized)
    best: tuple[int, float, float, int, Gate] | None = None
    for index, novel in enumerate(max_novels):
        for margin in margins:
            for limit in max_changes:
                gate = Gate(margin, limit, max_novel=novel)
                errors = sum(
                    unchanged_errors[i]
                    if gate.verdict(recognized[i], candidates[i], gains[i], rest[i])
                    else corrected_errors[i]
                    for i in range(len(recognized))
                )
                if best is None or (errors, -margin, limit, index) < best[:4]:
                    best = (errors, -margin, limit, index, gate)
    assert best is not None
    return best[4], best[0]
