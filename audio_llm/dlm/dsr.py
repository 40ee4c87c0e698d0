"""DSR: candidates of the recogniser's list and of the Denoising LM, each with every score that the choice uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from audio_llm.asr.base import Recognizer
from audio_llm.dlm import decode
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.rescore import Scales, Scored
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import Normalizer


@dataclass(frozen=True)
class Heard:
    """A list ready for scoring.

    Attributes:
        texts: Distinct normalised texts, the recogniser's best first.
        scores: The list's own score of each; minus its rank where an entry of the list has none.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, nbest: NBest, normalizer: Normalizer) -> Heard:
        """Read a list; one whose best is silence has no texts, for silence is an answer too."""
        best: dict[str, float] = {}
        missing = False
        for hypothesis in nbest.hypotheses if normalizer(nbest.best) else ():
            text = normalizer(hypothesis.text)
            if text:
                missing = missing or hypothesis.score is None
                best[text] = max(hypothesis.score or 0.0, best.get(text, -math.inf))
        scores = [-float(rank) for rank in range(len(best))] if missing else best.values()
        return cls(tuple(best), tuple(scores))


class Hearing(Protocol):
    """An utterance in the ears of a recogniser that can be asked about it again and again."""

    def spell(self) -> str:
        """Return what it hears itself; empty where that tells nothing new."""
        ...

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | sound) of each text, None for one that it cannot score."""
        ...


@dataclass(frozen=True)
class _Again(Hearing):
    """The recogniser that made the list, asked again."""

    recognizer: Recognizer
    waveform: np.ndarray

    def spell(self) -> str:
        return ""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        return self.recognizer.score(self.waveform, texts)


class Pools:
    """Makes the candidates of an utterance and scores them.

    The Denoising LM reads two hypotheses: of the list the text with the highest total by `shortlist`, and what the
    second recogniser spells. Its proposals for both are candidates. The scores are natural logarithms but for the
    last two: `asr`, the list's own, a text outside the list getting the list's lowest; `sound`, log p(text | audio) of
    the second recogniser; `lm`, of an n-gram model; `dlm` and `dlm_spelled`, of the Denoising LM given the one and the
    other hypothesis, 0 where there is no other; `unlisted`, -10 for a text outside the list, else 0; `proposed`, 1 for
    a text that the Denoising LM proposed, else 0.

    Args:
        model: The Denoising LM.
        scorer: The second recogniser, or the one that made the list.
        language_model: For `lm`; without it that score is 0.
        shortlist: Scales of `asr`, `sound`, `lm` that choose which texts of the list the Denoising LM reads and scores.
        size: How many of the list it scores beside the recogniser's best.
        proposals: How many texts it proposes for each hypothesis.
    """

    def __init__(
        self,
        model: DenoisingLM,
        scorer: Recognizer,
        language_model: NgramLm | None,
        shortlist: Scales,
        size: int,
        proposals: int,
    ) -> None:
        self._model = model
        self._scorer = scorer
        self._language_model = language_model
        self._shortlist = shortlist
        self._size = size
        self._proposals = proposals

    def make(self, heard: Heard, waveform: np.ndarray, listed: bool = True) -> list[Scored]:
        """Return the candidates, the recogniser's best first; none where `sound` cannot be told of that one.

        Args:
            heard: The list, not empty.
            waveform: (T,) float32 at 16 kHz.
            listed: Take the shortlist beside the Denoising LM's texts (`pooled`), or not (`paper`).
        """
        best, hearing = heard.texts[0], self._listen(waveform)
        scored = self._score(heard, heard.texts if listed else [best], hearing)
        if not scored or scored[0].text != best:
            return []
        ranked = sorted(scored, key=self._shortlist.total, reverse=True)
        first, spelled = ranked[0].text, hearing.spell()
        sources = [first, spelled] if spelled else [first]
        proposed = dict.fromkeys(text for source in sources for text in self._propose(source))
        own = {candidate.text for candidate in scored}
        scored += self._score(heard, [text for text in proposed if text not in own], hearing)
        kept = {candidate.text for candidate in ranked[: self._size]} | {best, *proposed}
        scored = [candidate for candidate in scored if candidate.text in kept]
        texts = [candidate.text for candidate in scored]
        log_probs = [decode.log_probs_of_one(self._model, source, texts) for source in sources]
        log_probs += [[0.0] * len(texts)] * (2 - len(sources))
        return [
            replace(c, scores={**c.scores, "dlm": one, "dlm_spelled": other, "proposed": float(c.text in proposed)})
            for c, one, other in zip(scored, *log_probs, strict=True)
        ]

    def of_list(self, heard: Heard, waveform: np.ndarray) -> list[Scored]:
        """Return all texts of a list with the scores that need no Denoising LM, for finding `shortlist`."""
        return self._score(heard, heard.texts, self._listen(waveform))

    def _listen(self, waveform: np.ndarray) -> Hearing:
        from audio_llm.asr.ctc import CtcRecognizer

        if isinstance(self._scorer, CtcRecognizer):
            return self._scorer.listen(waveform)
        return _Again(self._scorer, waveform)

    def _score(self, heard: Heard, texts: Sequence[str], hearing: Hearing) -> list[Scored]:
        own = dict(zip(heard.texts, heard.scores, strict=True))
        lowest = min(heard.scores)
        prior = [0.0] * len(texts)
        if self._language_model is not None:
            prior = self._language_model.log_probs([text.split() for text in texts])
        scored = []
        for text, sound, lm in zip(texts, hearing.score(texts), prior, strict=True):
            if sound is not None:
                unlisted = 0.0 if text in own else -10.0
                scores = {"asr": own.get(text, lowest), "sound": sound, "lm": lm, "unlisted": unlisted}
                scored.append(Scored(text, scores))
        return scored

    def _propose(self, best: str) -> list[str]:
        if self._proposals == 1:
            found = decode.greedy(self._model, [best])
        else:
            found = decode.beam(self._model, best, self._proposals)
        return [candidate.text for candidate in found if candidate.text and candidate.finished]
