"""Candidate texts for an N-best list: its hypotheses, and texts derived from them with the phrase table."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from audio_llm.align import edits
from audio_llm.ger.phrase_table import PhraseTable, Replacement, Words
from audio_llm.lm.ngram import END


class LanguageModel(Protocol):
    """Language model that guides the search; see `NgramLm`, `MixedLm`."""

    @property
    def order(self) -> int: ...

    def score(self, history: Sequence[str], word: str) -> float: ...

    def log_prob(self, words: Sequence[str]) -> float: ...

    def log_probs(self, sentences: Iterable[Sequence[str]]) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a text was derived from one hypothesis.

    Attributes:
        start: Index of the distinct hypothesis it starts from.
        log_odds: Sum over the applied phrases of the log odds that the replacement is right.
        phrases: Number of applied phrases.
        evidence: Sum over the applied phrases of log(1 + count of the lists they were learned from).
        lm: Natural log p(text) of the language model.
    """

    start: int
    log_odds: float
    phrases: int
    evidence: float
    lm: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate text.

    Attributes:
        words: Its words.
        derivations: For each hypothesis it can be derived from, in list order, the likeliest derivation.
    """

    words: Words
    derivations: tuple[Derivation, ...]


@dataclass(frozen=True)
class BeamSettings:
    """Settings of the beam search for candidates.

    Attributes:
        width: Partial texts kept at each word.
        per_start: Texts kept for each hypothesis.
        starts: Distinct hypotheses that phrases are applied to.
        total: Texts kept in all, besides the hypotheses themselves.
        lm_weight: Weight of the language model's log probability.
        odds_weight: Weight of the phrases' log odds.
        word_bonus: Added for every word, to offset the language model's preference for short texts.
    """

    width: int = 16
    per_start: int = 16
    starts: int = 5
    total: int = 40
    lm_weight: float = 0.5
    odds_weight: float = 0.4
    word_bonus: float = 1.0


def make_candidates(
    hypotheses: Sequence[Words], table: PhraseTable, lm: LanguageModel, settings: BeamSettings
) -> list[Candidate]:
    """Return the candidate texts, the hypotheses first and in their order.

    Args:
        hypotheses: Distinct hypotheses of one list, best first.
        table: Phrases to apply.
        lm: Guides the search.
        settings: See `BeamSettings`.
    """
    derivations: dict[Words, list[Derivation]] = {
        words: [Derivation(start, 0.0, 0, 0.0, lm)]
        for start, (words, lm) in enumerate(zip(hypotheses, lm.log_probs(hypotheses), strict=True))
    }
    best: dict[Words, float] = {}
    gains = _Gains(lm)
    for start, words in enumerate(hypotheses[: settings.starts]):
        for score, text, derivation in _search(words, start, table, gains, settings):
            if text != words:
                derivations.setdefault(text, []).append(derivation)
                best[text] = max(score, best.get(text, score))
    known = set(hypotheses)
    generated = heapq.nlargest(settings.total, ((score, text) for text, score in best.items() if text not in known))
    chosen = [*hypotheses, *(text for _, text in generated)]
    return [Candidate(words, tuple(sorted(derivations[words], key=lambda d: d.start))) for words in chosen]


def add_written(candidates: Sequence[Candidate], written: Words, lm: LanguageModel) -> list[Candidate]:
    """Return the candidates and one more text, whose differences from the first count as phrases never seen."""
    if not written or any(candidate.words == written for candidate in candidates):
        return list(candidates)
    changes = len(edits(candidates[0].words, written))
    derivation = Derivation(0, -float(changes), changes, 0.0, lm.log_prob(written))
    return [*candidates, Candidate(written, (derivation,))]


@dataclass(frozen=True, slots=True)
class _Partial:
    """A prefix of a text: score, log p, and `Derivation` so far."""

    score: float
    lm: float
    log_odds: float
    phrases: int
    evidence: float


class _Gains:
    """Log p of words after a history, cached, as a beam asks for the same few again and again."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._seen = lm.order - 1
        self._known: dict[tuple[Words, Words], float] = {}

    def of(self, text: Words, added: Words) -> float:
        """Return log p(added | text)."""
        key = (text[-self._seen :] if self._seen else (), added)
        gain = self._known.get(key)
        if gain is None:
            whole = (*text, *added)
            start = len(text)
            gain = sum(self._lm.score(whole[: start + offset], word) for offset, word in enumerate(added))
            self._known[key] = gain
        return gain


def _search(
    words: Words, start: int, table: PhraseTable, gains: _Gains, settings: BeamSettings
) -> list[tuple[float, Words, Derivation]]:
    """Return (score, text, derivation) of the best ways to copy words or to replace phrases, left to right."""
    beams: list[dict[Words, _Partial]] = [{} for _ in range(len(words) + 1)]
    beams[0][()] = _Partial(0.0, 0.0, 0.0, 0, 0.0)
    for at in range(len(words)):
        copied = Replacement(words[at : at + 1], 0, 0, 0.0)
        options = [(at + 1, copied, 0), *((end, replacement, 1) for end, replacement in table.starting_at(words, at))]
        for text, partial in heapq.nlargest(settings.width, beams[at].items(), key=lambda item: item[1].score):
            for end, replacement, is_phrase in options:
                gain = gains.of(text, replacement.target)
                score = partial.score + settings.lm_weight * gain + settings.odds_weight * replacement.log_odds
                score += settings.word_bonus * len(replacement.target)
                longer = text + replacement.target
                known = beams[end].get(longer)
                if known is None or score > known.score:
                    beams[end][longer] = _Partial(
                        score,
                        partial.lm + gain,
                        partial.log_odds + replacement.log_odds,
                        partial.phrases + is_phrase,
                        partial.evidence + is_phrase * replacement.evidence,
                    )
    results = []
    for text, partial in beams[-1].items():
        ending = gains.of(text, (END,))
        derivation = Derivation(start, partial.log_odds, partial.phrases, partial.evidence, partial.lm + ending)
        results.append((partial.score + settings.lm_weight * ending, text, derivation))
    return heapq.nlargest(settings.per_start, results, key=lambda result: result[:2])
