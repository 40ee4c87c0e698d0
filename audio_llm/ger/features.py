"""Features of each candidate text of an N-best list, for the reranker."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.align import edits
from audio_llm.asr.pronounce import phones_of
from audio_llm.correction import AlignedHypothesis
from audio_llm.ger.candidates import Candidate, LanguageModel
from audio_llm.ger.phrase_table import PhraseTable, Words
from audio_llm.lm.mixture import MixedLm
from audio_llm.lm.ngram import NgramLm
from audio_llm.lm.pocketsphinx_lm import PocketsphinxLm

FEATURES = (
    "lm",  # log p(text) of the mixture of the next two models
    "reference_lm",  # log p(text) of the model of the references
    "general_lm",  # log p(text) of the model of general English
    "recognizer_lm",  # log p(text) of the recognizer's model, to reweight that part of its score
    "words",
    "new_to_references",  # words that are in no reference
    "new_to_general",  # words that the model of general English has not seen
    "log_odds",  # of the applied phrases, for the best derivation
    "phrases",
    "evidence",
    "untouched",  # the derivation is the hypothesis itself
    "total_score",  # recognizer's score of the starting hypothesis times its words, relative to the best one's
    "mean_score",  # the same without the number of words
    "rank",  # of the starting hypothesis
    "from_first",  # the starting hypothesis is the first one
    "share_of_start",  # fraction of the list's entries that equal the starting hypothesis
    "share_of_list",  # fraction of the list's entries that equal this text
    "in_list",
    "support",  # fraction of the list's entries it can be derived from
    "support_log_odds",  # log of the mean over the list's entries of exp(log odds / 4)
    "distance_to_list",  # word edits, mean over the list's entries
    "distance_to_first",
    "sound",  # phone edits from the first hypothesis
    "changes",  # spans that differ from the first hypothesis
    "changes_seen",  # those that were right more often than wrong in first hypotheses of the training lists
    "changes_seen_again",  # those that were right at least twice more often
    "changes_listed",  # those that another hypothesis has at the same position
    "changed",  # it is not the first hypothesis
    "changed_sure",  # the same times the fraction of the list's entries that equal the first hypothesis
    "letters_changed",  # character edits from the starting hypothesis
    "length_change",  # characters, from the starting hypothesis
)

NEURAL_FEATURES = (
    "neural",  # log p(text | list) of the neural corrector, relative to the first hypothesis
    "neural_mean",  # the same per word of the text
    "neural_written",  # it is the text that the neural corrector generates
    "neural_alone",  # log p(text) without a list, relative to the first hypothesis
)


@dataclass(frozen=True)
class ListView:
    """One N-best list as words.

    Attributes:
        hypotheses: Distinct hypotheses, best first.
        copies: Number of copies of each in the list.
        scores: The recognizer's score of each (of its first copy), 0 without scores.
    """

    hypotheses: tuple[Words, ...]
    copies: tuple[int, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, texts: Sequence[Words], scores: Sequence[float | None]) -> ListView:
        """Merge duplicates; if any score is missing, none is used."""
        usable = all(score is not None and math.isfinite(score) for score in scores)
        first: dict[Words, float] = {}
        for text, score in zip(texts, scores, strict=True):
            first.setdefault(text, float(score) if usable and score is not None else 0.0)
        counts = Counter(texts)
        return cls(tuple(first), tuple(counts[text] for text in first), tuple(first.values()))


@dataclass(frozen=True)
class Knowledge:
    """Phrase table and language models that features are computed from.

    Attributes:
        table: Phrases learned from lists.
        references: N-gram model of the references of these lists.
        general: N-gram model of general English, if any.
        recognizer: The recognizer's n-gram model, if known.
    """

    table: PhraseTable
    references: NgramLm
    general: NgramLm | None = None
    recognizer: PocketsphinxLm | None = None

    @functools.cached_property
    def lm(self) -> LanguageModel:
        """The mixture of both models, for the search."""
        return self.references if self.general is None else MixedLm((self.references, self.general))


def measure(view: ListView, candidates: Sequence[Candidate], knowledge: Knowledge) -> np.ndarray:
    """Return the features (candidates, len(FEATURES)) float64.

    Args:
        view: The list.
        candidates: Output of `make_candidates` for its hypotheses.
        knowledge: Phrase table and language models of that call.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    fractions = np.array(view.copies) / sum(view.copies)
    totals = np.array([score * max(1, len(text)) for score, text in zip(view.scores, view.hypotheses, strict=True)])
    totals, means = totals - totals.max(), np.array(view.scores) - max(view.scores)
    texts = [candidate.words for candidate in candidates]
    distances = cdist(texts, view.hypotheses, scorer=Levenshtein.distance, dtype=np.int32)
    letters = [" ".join(text) for text in texts]  # the first ones are the hypotheses
    references, general = knowledge.references, knowledge.general
    reference_lm = references.log_probs(texts)
    general_lm = general.log_probs(texts) if general is not None else [0.0] * len(texts)
    recognizer_lm = knowledge.recognizer.log_probs(texts) if knowledge.recognizer is not None else [0.0] * len(texts)
    aligned = [AlignedHypothesis.of(view.hypotheses[0], text) for text in view.hypotheses[1:]]
    sounds = [[phone for word in text for phone in phones_of(word)] for text in texts]
    rows = np.empty((len(candidates), len(FEATURES)))
    for number, candidate in enumerate(candidates):
        best = max(candidate.derivations, key=lambda d: d.log_odds - 0.5 * d.start)
        start = best.start
        in_list = number < len(fractions)
        reached = [d.start for d in candidate.derivations]
        support = sum(fractions[d.start] * math.exp(min(0.0, d.log_odds) / 4) for d in candidate.derivations)
        rows[number] = (
            best.lm,
            reference_lm[number],
            general_lm[number],
            recognizer_lm[number],
            len(candidate.words),
            sum(word not in references for word in candidate.words),
            sum(word not in general for word in candidate.words) if general is not None else 0,
            best.log_odds,
            best.phrases,
            best.evidence,
            best.phrases == 0,
            totals[start],
            means[start],
            start,
            start == 0,
            fractions[start],
            fractions[number] if in_list else 0.0,
            in_list,
            fractions[reached].sum(),
            math.log(support + 1e-3),
            distances[number] @ fractions,
            distances[number, 0],
            Levenshtein.distance(sounds[number], sounds[0]),
            *_changes(view.hypotheses[0], candidate.words, aligned, knowledge.table),
            number > 0,
            fractions[0] if number > 0 else 0.0,
            Levenshtein.distance(letters[number], letters[start]),
            len(letters[number]) - len(letters[start]),
        )
    return rows


def _changes(
    first: Words, words: Words, aligned: Sequence[AlignedHypothesis], table: PhraseTable
) -> tuple[int, int, int, int]:
    """Return `changes`, `changes_seen`, `changes_seen_again` and `changes_listed` of a candidate."""
    ops = edits(first, words) if words != first else []
    balances, listed = [], 0
    for op in ops:
        new = words[op.target_start : op.target_end]
        balances.append(table.balance(first, op.source_start, op.source_end, new))
        listed += any(other.has(op.source_start, op.source_end, new) for other in aligned)
    return len(ops), sum(b >= 1 for b in balances), sum(b >= 2 for b in balances), listed


def add_neural(
    rows: np.ndarray,
    candidates: Sequence[Candidate],
    log_probs: Sequence[float],
    alone: Sequence[float],
    written: Words,
) -> np.ndarray:
    """Return the features with those of a neural corrector, (candidates, len(FEATURES) + len(NEURAL_FEATURES)) float64.

    Args:
        rows: Output of `measure` for the candidates.
        candidates: Candidates, the first hypothesis first.
        log_probs: The neural corrector's log probability of each candidate, given the list.
        alone: The same without the list.
        written: The text that the neural corrector generates.
    """
    gains, by_itself = (np.array(logs) - logs[0] for logs in (log_probs, alone))
    words = np.array([max(1, len(candidate.words)) for candidate in candidates])
    is_written = np.array([candidate.words == written for candidate in candidates], dtype=np.float64)
    return np.column_stack([rows, gains, gains / words, is_written, by_itself])
