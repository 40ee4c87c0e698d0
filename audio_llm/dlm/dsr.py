"""DSR: candidates of the recogniser's list and of the Denoising LM, each with every score that the choice uses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from audio_llm.asr.base import Recognizer
from audio_llm.dlm import decode
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.rescore import Scales, Scored
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import Normalizer

TextScores = Callable[[Sequence[str]], list[float | None]]  # texts -> log p(text | one sound)


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


class Pools:
    """Makes the candidates of an utterance and scores them.

    The Denoising LM reads the text of the list with the highest total by `shortlist`; its proposals are candidates. The
    scores are natural logarithms but for the last two: `asr`, the list's own, a text outside the list getting the
    list's lowest; `sound`, log p(text | audio) of the second recogniser; `lm`, of an n-gram model; `dlm`, of the
    Denoising LM; `unlisted`, -10 for a text outside the list, else 0; `proposed`, 1 for a text that the Denoising LM
    proposed, else 0.

    Args:
        model: The Denoising LM.
        scorer: The second recogniser, or the one that made the list.
        language_model: For `lm`; without it that score is 0.
        shortlist: Scales of `asr`, `sound`, `lm` that choose which texts of the list the Denoising LM reads and scores.
        size: How many of the list it scores beside the recogniser's best.
        proposals: How many texts it proposes.
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
        best, score = heard.texts[0], self._ask(waveform)
        scored = self._score(heard, heard.texts, score)
        if not scored or scored[0].text != best:
            return []
        ranked = sorted(scored, key=self._shortlist.total, reverse=True)
        kept = {candidate.text for candidate in ranked[: self._size if listed else 0]} | {best}
        proposed, denoised = self._read(ranked[0].text, [c.text for c in scored if c.text in kept])
        known = {candidate.text for candidate in scored}
        scored += self._score(heard, [text for text in proposed if text not in known], score)
        denoised = {**proposed, **denoised}
        return [
            replace(c, scores={**c.scores, "dlm": denoised[c.text], "proposed": float(c.text in proposed)})
            for c in scored
            if c.text in denoised
        ]

    def of_list(self, heard: Heard, waveform: np.ndarray) -> list[Scored]:
        """Return all texts of a list with the scores that need no Denoising LM, for finding `shortlist`."""
        return self._score(heard, heard.texts, self._ask(waveform))

    def _ask(self, waveform: np.ndarray) -> TextScores:
        """Return what scores texts against this sound, which our own network needs to hear only once."""
        from audio_llm.asr.ctc import CtcRecognizer

        if isinstance(self._scorer, CtcRecognizer):
            return self._scorer.posteriors(waveform).score
        return functools.partial(self._scorer.score, waveform)

    def _score(self, heard: Heard, texts: Sequence[str], score: TextScores) -> list[Scored]:
        own = dict(zip(heard.texts, heard.scores, strict=True))
        lowest = min(heard.scores)
        prior = [0.0] * len(texts)
        if self._language_model is not None:
            prior = self._language_model.log_probs([text.split() for text in texts])
        scored = []
        for text, sound, lm in zip(texts, score(texts), prior, strict=True):
            if sound is not None:
                unlisted = 0.0 if text in own else -10.0
                scores = {"asr": own.get(text, lowest), "sound": sound, "lm": lm, "unlisted": unlisted}
                scored.append(Scored(text, scores))
        return scored

    def _read(self, hypothesis: str, texts: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
        """Return what the Denoising LM proposes, and the texts, each with log p(text | hypothesis)."""
        greedy, log_probs = decode.greedy_and_log_probs(self._model, hypothesis, texts)
        found = [greedy] if self._proposals == 1 else decode.beam(self._model, hypothesis, self._proposals)
        proposed = {candidate.text: candidate.log_prob for candidate in found if candidate.text and candidate.finished}
        return proposed, dict(zip(texts, log_probs, strict=True))
