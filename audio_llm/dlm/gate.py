"""The gate: keep the recogniser's text when the gain is small or the change is large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audio_llm.align import count_edits

if TYPE_CHECKING:
    from audio_llm.dlm.decode import Candidate


@dataclass(frozen=True)
class Gate:
    """When a correction is taken.

    Attributes:
        margin: The corrected text must be more probable than the unchanged one by this much, in nats.
        max_change: Words changed over words heard, at most.
        off: Take every correction that is finished.
    """

    margin: float = 2.0
    max_change: float = 0.6
    off: bool = False

    def verdict(self, heard: str, candidate: Candidate, gain: float) -> str:
        """Return why the recogniser's text is kept, or an empty string where the correction is taken.

        Args:
            heard: The recogniser's text, normalised.
            candidate: The correction.
            gain: Its total score minus that of the unchanged text, in nats.
        """
        if not heard:
            return "nothing was heard"
        if candidate.text == heard:
            return "no change proposed"
        if not candidate.text or not candidate.finished:
            return "the correction has no end"
        if self.off:
            return ""
        if gain < self.margin:
            return f"gain {gain:.1f} below the margin of {self.margin:g}"
        changed = change_ratio(heard, candidate.text)
        if changed > self.max_change:
            return f"{changed:.0%} of the words would change, more than {self.max_change:.0%}"
        return ""


def change_ratio(heard: str, corrected: str) -> float:
    """Return word edits over words heard."""
    return count_edits(heard.split(), corrected.split()).errors / max(1, len(heard.split()))


def tune_gate(
    heard: Sequence[str],
    candidates: Sequence[Candidate],
    gains: Sequence[float],
    references: Sequence[str],
    margins: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
    max_changes: Sequence[float] = (0.3, 0.45, 0.6, 0.8, 1.0),
) -> tuple[Gate, int]:
    """Return the gate that leaves the fewest word errors on tuning data, the stricter of equals, and the errors.

    Args:
        heard: The recogniser's texts.
        candidates: The corrections.
        gains: As for `Gate.verdict`.
        references: Normalised true texts.
        margins: Margins to try.
        max_changes: Limits to try.
    """
    kept = [count_edits(r.split(), h.split()).errors for r, h in zip(references, heard, strict=True)]
    taken = [count_edits(r.split(), c.text.split()).errors for r, c in zip(references, candidates, strict=True)]
    best: tuple[int, float, float, Gate] | None = None
    for margin in margins:
        for limit in max_changes:
            gate = Gate(margin, limit)
            errors = sum(
                kept[i] if gate.verdict(heard[i], candidates[i], gains[i]) else taken[i] for i in range(len(heard))
            )
            if best is None or (errors, -margin, limit) < best[:3]:
                best = (errors, -margin, limit, gate)
    assert best is not None
    return best[3], best[0]
