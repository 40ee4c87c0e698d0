"""DSR: candidates from the recognizer's list and from the Denoising LM, with all scores that the selection uses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from audio_llm.asr.base import Recognizer
from audio_llm.dlm import decode
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.rescore import Scored, ScoreWeights
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import Normalizer

TextScores = Callable[[Sequence[str]], list[float | None]]  # texts -> log p(text | audio of one utterance)


@dataclass(frozen=True)
class NormalizedNBest:
    """An N-best list with normalized, distinct texts.

    Attributes:
        texts: The texts, the recognizer's best first.
        scores: The recognizer's score of each text; minus its rank where an entry of the list has no score.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, nbest: NBest, normalizer: Normalizer) -> NormalizedNBest:
        """Normalize a list; it becomes empty where its best text is empty, as silence is a valid result."""
        best: dict[str, float] = {}
        missing = False
        for hypothesis in nbest.hypotheses if normalizer(nbest.best) else ():
            text = normalizer(hypothesis.text)
            if text:
                missing = missing or hypothesis.score is None
                best[text] = max(hypothesis.score or 0.0, best.get(text, -math.inf))
        scores = [-float(rank) for rank in range(len(best))] if missing else best.values()
        return cls(tuple(best), tuple(scores))


class DsrCandidates:
    """Collects the candidates of an utterance and scores them.

    The Denoising LM reads the listed text with the highest total by `shortlist`; its proposals are candidates. Scores:

    - `asr`: the recognizer's score; a text outside the list gets the lowest score of the list;
    - `sound`: log p(text | audio) of the second recognizer;
    - `lm`: log p(text) of an n-gram model;
    - `dlm`: log p(text | hypothesis) of the Denoising LM;
    - `unlisted`: -10 for a text outside the list, else 0;
    - `proposed`: 1 for a text that the Denoising LM proposed, else 0.

    Args:
        model: The Denoising LM.
        scorer: The second recognizer, or the one that produced the list.
        language_model: N-gram model for `lm`; None: that score is 0.
        shortlist: Weights of `asr`, `sound`, `lm` that rank the texts of the list for the Denoising LM.
        size: Number of listed texts that it scores in addition to the recognizer's best.
        proposals: Number of texts that it proposes.
    """

    def __init__(
        self,
        model: DenoisingLM,
        scorer: Recognizer,
        language_model: NgramLm | None,
        shortlist: ScoreWeights,
        size: int,
        proposals: int,
    ) -> None:
        self._model = model
        self._scorer = scorer
        self._language_model = language_model
        self._shortlist = shortlist
        self._size = size
        self._proposals = proposals

    def make(self, nbest: NormalizedNBest, waveform: np.ndarray, listed: bool = True) -> list[Scored]:
        """Return the candidates, the recognizer's best first; none where that text has no `sound` score.

        Args:
            nbest: The list, not empty.
            waveform: (T,) float32 at 16 kHz.
            listed: Whether the shortlist is added to the texts of the Denoising LM (`pooled`) or not (`paper`).
        """
        best, score = nbest.texts[0], self._sound_scorer(waveform)
        scored = self._score(nbest, nbest.texts, score)
        if not scored or scored[0].text != best:
            return []
        ranked = sorted(scored, key=self._shortlist.total, reverse=True)
        shortlisted = {candidate.text for candidate in ranked[: self._size if listed else 0]} | {best}
        proposed, denoised = self._read(ranked[0].text, [c.text for c in scored if c.text in shortlisted])
        known = {candidate.text for candidate in scored}
        scored += self._score(nbest, [text for text in proposed if text not in known], score)
        denoised = {**proposed, **denoised}
        return [
            replace(c, scores={**c.scores, "dlm": denoised[c.text], "proposed": float(c.text in proposed)})
            for c in scored
            if c.text in denoised
        ]

    def of_list(self, nbest: NormalizedNBest, waveform: np.ndarray) -> list[Scored]:
        """Return all texts of a list with the scores that need no Denoising LM, for fitting `shortlist`."""
        return self._score(nbest, nbest.texts, self._sound_scorer(waveform))

    def _sound_scorer(self, waveform: np.ndarray) -> TextScores:
        """Return a function that scores texts against this waveform; the CTC network runs only once for all texts."""
        from audio_llm.asr.ctc import CtcRecognizer

        if isinstance(self._scorer, CtcRecognizer):
            return self._scorer.posteriors(waveform).score
        return functools.partial(self._scorer.score, waveform)

    def _score(self, nbest: NormalizedNBest, texts: Sequence[str], score: TextScores) -> list[Scored]:
        list_scores = dict(zip(nbest.texts, nbest.scores, strict=True))
        lowest = min(nbest.scores)
        prior = [0.0] * len(texts)
        if self._language_model is not None:
            prior = self._language_model.log_probs([text.split() for text in texts])
        scored = []
        for text, sound, lm in zip(texts, score(texts), prior, strict=True):
            if sound is not None:
                unlisted = 0.0 if text in list_scores else -10.0
                scores = {"asr": list_scores.get(text, lowest), "sound": sound, "lm": lm, "unlisted": unlisted}
                scored.append(Scored(text, scores))
        return scored

    def _read(self, hypothesis: str, texts: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
        """Return the proposals of the Denoising LM and the given texts, each with log p(text | hypothesis)."""
        greedy, log_probs = decode.greedy_and_log_probs(self._model, hypothesis, texts)
        candidates = [greedy] if self._proposals == 1 else decode.beam(self._model, hypothesis, self._proposals)
        proposed = {
            candidate.text: candidate.log_prob for candidate in candidates if candidate.text and candidate.finished
        }
        return proposed, dict(zip(texts, log_probs, strict=True))
