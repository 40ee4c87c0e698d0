"""What a corrector returns, and the protocol that every corrector follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from audio_llm.nbest import NBest


@dataclass(frozen=True)
class Edit:
    """One place where a correction differs from its input.

    Attributes:
        start: Index of the first replaced word of the input.
        end: Index after the last replaced word; equal to `start` for an insertion.
        before: The replaced words, empty for an insertion.
        after: The new words, empty for a deletion.
        source: Where the new words come from: `hypothesis 3`, or the corrector's name for words in no hypothesis.
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
        input: The recogniser's best text.
        kept: True where the recogniser's text was kept.
        reason: Why it was kept or changed, in a few words.
        edits: The differences, left to right, on normalised words.
        confidence: 0 to 1, the share of probability that the corrector gives to `text`; None where unknown.
    """

    id: str
    text: str
    input: str
    kept: bool
    reason: str
    edits: tuple[Edit, ...]
    confidence: float | None


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
            waveforms: For decodings that ask the recogniser again, the sound of each list:
                (T,) float32 at 16 kHz.
        """
        ...
