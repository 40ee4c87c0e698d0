"""The neural corrector of N-best lists: generates a text and keeps the recognizer's if the gain is too small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.correction import Correction, describe_edits
from audio_llm.errors import OutOfMemoryError, UsageError
from audio_llm.ger import decode
from audio_llm.ger.checkpoint import GerCheckpoint, load
from audio_llm.ger.decode import Written
from audio_llm.ger.settings import MODES, Mode
from audio_llm.ger.word_graph import any_words, slots
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer


@dataclass(frozen=True)
class Proposal:
    """A correction before the gate.

    Attributes:
        texts: The list, normalized, best first, with duplicates.
        written: The text that the model generated.
        gain: Its log-probability minus that of the unchanged text, in nats.
    """

    texts: tuple[str, ...]
    written: Written
    gain: float


class GerCorrector:
    """Corrects N-best lists with a language model that was trained on such lists (see `Corrector`).

    Args:
        built: Network, tokenizer and settings.
        mode: See `GerDecoding`; None: the checkpoint's mode.
        gate: False: every finished correction is accepted.
    """

    name = "ger"

    def __init__(self, checkpoint: GerCheckpoint, mode: Mode | None = None, gate: bool = True) -> None:
        self.checkpoint = checkpoint
        self.mode: Mode = mode or checkpoint.decoding.mode
        if self.mode not in MODES:
            raise UsageError(f"unknown mode {mode!r}", remedy=f"use one of {', '.join(MODES)}")
        self.hypotheses = checkpoint.model.settings.prompt.hypotheses
        tuned = checkpoint.decoding.gates[self.mode]
        self.gate = tuned if gate else replace(tuned, off=True)
        self._normalize = get_normalizer(checkpoint.normalizer)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        recognizer: Any = None,
        decode: Mode | None = None,
        gate: bool = True,
        device: str = "cpu",
        llm: str | Path | None = None,
    ) -> GerCorrector:
        """Load a model directory.

        Args:
            folder: Name of a model, or its folder.
            recognizer: Ignored; correctors share this signature.
            decode: `free`, `list` or `slots`; None: as tuned.
            gate: Whether the recognizer's text is kept when the gain is small.
            device: `cpu` or `cuda`.
            llm: The language model, if it was moved since the training.

        Raises:
            ModelNotFoundError, ModelFormatError: As for `checkpoint.load`.
        """
        return cls(load(folder, llm, device), decode, gate)

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        """Correct each list, in order; the waveforms are ignored."""
        return [self._verdict(nbest, proposal) for nbest, proposal in zip(lists, self.propose(lists), strict=True)]

    def propose(self, lists: Sequence[NBest]) -> list[Proposal | None]:
        """Return the model's correction of each list; None for a list without words.

        Raises:
            OutOfMemoryError: There is not enough memory.
        """
        texts = [tuple(self._normalize(text) for text in nbest.texts[: self.hypotheses]) for nbest in lists]
        rows = [row for row, hypotheses in enumerate(texts) if any(hypotheses)]
        shown = [texts[row] for row in rows]
        model, collator = self.checkpoint.model, self.checkpoint.collator
        try:
            written = self._write(shown)
            before = decode.log_probs(model, collator, shown, [hypotheses[0] for hypotheses in shown])
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "out of memory" not in str(error).lower():
                raise
            remedy = "give fewer lists at once, shorter ones, or --device cpu"
            raise OutOfMemoryError(f"not enough memory for {len(shown)} lists", remedy=remedy) from None
        proposals: list[Proposal | None] = [None] * len(lists)
        for row, hypotheses, text, unchanged in zip(rows, shown, written, before, strict=True):
            proposals[row] = Proposal(hypotheses, text, text.log_prob - unchanged)
        return proposals

    def _write(self, shown: Sequence[tuple[str, ...]]) -> list[Written]:
        model, collator = self.checkpoint.model, self.checkpoint.collator
        if self.mode == "free":
            return decode.greedy(model, collator, shown)
        graph = slots if self.mode == "slots" else any_words
        width = self.checkpoint.decoding.beam
        return [
            decode.search(model, collator, hypotheses, graph([tuple(text.split()) for text in hypotheses]), width)
            for hypotheses in shown
        ]

    def _verdict(self, nbest: NBest, proposal: Proposal | None) -> Correction:
        if proposal is None:
            return Correction(nbest.id, nbest.best, nbest.best, True, "no words", (), None)
        hypotheses, written = proposal.texts, proposal.written
        reason = self.gate.verdict(hypotheses[0], written, proposal.gain, hypotheses[1:])
        sure = 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, proposal.gain))))
        if reason:
            same = written.text == hypotheses[0]
            confidence = math.exp(min(0.0, written.log_prob)) if same else 1.0 - sure
            return Correction(nbest.id, nbest.best, nbest.best, True, reason, (), round(confidence, 4))
        distinct = tuple(dict.fromkeys(tuple(text.split()) for text in hypotheses))
        edits = describe_edits(distinct, tuple(written.text.split()), self.name)
        return Correction(nbest.id, written.text, nbest.best, False, f"gain {proposal.gain:.1f}", edits, round(sure, 4))
