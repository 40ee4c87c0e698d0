"""The neural corrector as a scorer of the phrase corrector's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audio_llm.ger import decode
from audio_llm.ger.checkpoint import GerCheckpoint
from audio_llm.ger.phrase_table import Words

_BATCH = 32  # lists decoded at once


@dataclass(frozen=True)
class NeuralScorer:
    """Generates a text for a list, and scores any text.

    Attributes:
        built: The neural corrector, in eval mode.
    """

    checkpoint: GerCheckpoint

    def write(self, lists: Sequence[Sequence[Words]]) -> list[Words]:
        """Return the generated text of each list; empty if it has no end.

        Args:
            lists: Hypotheses of each list as words, best first, with duplicates.
        """
        written: list[Words] = []
        for start in range(0, len(lists), _BATCH):
            texts = [self._shown(hypotheses) for hypotheses in lists[start : start + _BATCH]]
            outputs = decode.greedy(self.checkpoint.model, self.checkpoint.collator, texts)
            written += [tuple(one.text.split()) if one.finished else () for one in outputs]
        return written

    def log_probs(self, hypotheses: Sequence[Words], candidates: Sequence[Words]) -> list[float]:
        """Return the natural log probability of each candidate for one list."""
        texts = [" ".join(words) for words in candidates]
        return decode.score_candidates(self.checkpoint.model, self.checkpoint.collator, self._shown(hypotheses), texts)

    def log_probs_alone(self, candidates: Sequence[Words]) -> list[float]:
        """Return the natural log probability of each candidate without a list, as English of the domain."""
        return self.log_probs([()], candidates)

    def _shown(self, hypotheses: Sequence[Words]) -> list[str]:
        count = self.checkpoint.model.settings.prompt.hypotheses
        return [" ".join(words) for words in hypotheses[:count]]
