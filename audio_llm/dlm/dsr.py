"""DSR: candidates of the recogniser's list and of the Denoising LM, each with every score that the choice uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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


class Pools:
    """Makes the candidates of an utterance and scores them.

    Scores, natural logarithms but for the last two: `asr`, the list's own, a text outside the list getting the list's
    lowest; `sound`, log p(text | audio) of a recogniser that can tell it of any text; `lm`, of an n-gram model;
    `dlm`, log p(text | best hypothesis); `unlisted`, -1 for a text outside the list, else 0; `proposed`, 1 for a
    text that the Denoising LM proposed, else 0.

    Args:
        model: The Denoising LM.
        scorer: Hears the sound for `sound`.
        language_model: For `lm`; without it that score is 0.
        shortlist: Scales of `asr`, `sound`, `lm` that choose which texts of the list the Denoising LM scores.
        size: How many of the list that is, the best hypothesis included.
        beam: How many texts the Denoising LM proposes.
    """

    def __init__(
        self,
        model: DenoisingLM,
        scorer: Recognizer,
        language_model: NgramLm | None,
        shortlist: Scales,
        size: int,
        beam: int,
    ) -> None:
        self._model = model
        self._scorer = scorer
        self._language_model = language_model
        self._shortlist = shortlist
        self._size = size
        self._beam = beam

    def make(self, heard: Heard, waveform: np.ndarray, listed: bool = True) -> list[Scored]:
        """Return the candidates, the recogniser's best first; none where `sound` cannot be told of that one.

        Args:
            heard: The list, not empty.
            waveform: (T,) float32 at 16 kHz.
            listed: Take the shortlist beside the Denoising LM's texts (`pooled`), or not (`paper`).
        """
        best = heard.texts[0]
        proposed = self._propose(best)
        scored = self.score(heard, [*(heard.texts if listed else [best]), *proposed], waveform)
        if not scored or scored[0].text != best:
            return []
        rest = sorted(scored[1:], key=self._shortlist.total, reverse=True)
        kept = {candidate.text for candidate in rest[: self._size - 1]} | {best, *proposed}
        scored = [candidate for candidate in scored if candidate.text in kept]
        denoised = decode.log_probs_of_one(self._model, best, [candidate.text for candidate in scored])
        return [
            replace(c, scores={**c.scores, "dlm": log_prob, "proposed": float(c.text in proposed)})
            for c, log_prob in zip(scored, denoised, strict=True)
        ]

    def score(self, heard: Heard, texts: Sequence[str], waveform: np.ndarray) -> list[Scored]:
        """Return the distinct texts that `sound` can be told of, in order, with `asr`, `sound`, `lm`, `unlisted`."""
        texts = list(dict.fromkeys(texts))
        own = dict(zip(heard.texts, heard.scores, strict=True))
        lowest = min(heard.scores)
        prior = [0.0] * len(texts)
        if self._language_model is not None:
            prior = self._language_model.log_probs([text.split() for text in texts])
        return [
            Scored(
                text, {"asr": own.get(text, lowest), "sound": sound, "lm": lm, "unlisted": 0.0 if text in own else -1.0}
            )
            for text, sound, lm in zip(texts, self._scorer.score(waveform, texts), prior, strict=True)
            if sound is not None
        ]

    def _propose(self, best: str) -> list[str]:
        found = decode.greedy(self._model, [best]) if self._beam == 1 else decode.beam(self._model, best, self._beam)
        return [candidate.text for candidate in found if candidate.text and candidate.finished]
