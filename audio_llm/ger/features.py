"""What is known about each candidate text of an N-best list, as numbers for the reranker."""

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
    "lm",  # log p(text) of the models that follow, mixed
    "reference_lm",  # log p(text) of the model of true texts of lists
    "general_lm",  # log p(text) of the model of English in general
    "recognizer_lm",  # log p(text) of the recogniser's own model, to weigh that part of its score anew
    "words",
    "new_to_references",  # words that are in no true text of a list
    "new_to_general",  # words that the model of English in general has not seen
    "log_odds",  # of the phrases used, for the best derivation
    "phrases",
    "evidence",
    "untouched",  # the derivation is the hypothesis itself
    "total_score",  # recogniser's score of the hypothesis it began with, times its words, against the best one's
    "mean_score",  # the same without the words
    "rank",  # of the hypothesis it began with
    "from_first",  # it began with the first hypothesis
    "share_of_start",  # of the list's entries that are the hypothesis it began with
    "share_of_list",  # of the list's entries that are this text
    "in_list",
    "support",  # share of the list's entries it can be made from
    "support_log_odds",  # log of the mean over the list's entries of exp(log odds / 4)
    "distance_to_list",  # words to change, mean over the list's entries
    "distance_to_first",
    "sound",  # phones to change from the first hypothesis
    "changes",  # stretches that differ from the first hypothesis
    "changes_seen",  # those that were right more often than wrong where first hypotheses were learned from
    "changes_seen_again",  # those that were right at least twice more often
    "changes_listed",  # those that another hypothesis has in the same place
    "changed",  # it is not the first hypothesis
    "changed_sure",  # the same times the share of the list's entries that are the first hypothesis
    "letters_changed",  # from the hypothesis it began with
    "length_change",  # letters, from the hypothesis it began with
)

NEURAL_FEATURES = (
    "neural",  # log p(text | list) of the neural corrector, against the first hypothesis'
    "neural_mean",  # the same over the words of the text
    "neural_written",  # it is what the neural corrector writes by itself
    "neural_alone",  # log p(text) without a list, against the first hypothesis'
)


@dataclass(frozen=True)
class ListView:
    """One N-best list as words.

    Attributes:
        hypotheses: Distinct, best first.
        copies: How often each occurs in the list.
        scores: The recogniser's score of each (of its first copy), 0 where there are none.
    """

    hypotheses: tuple[Words, ...]
    copies: tuple[int, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, texts: Sequence[Words], scores: Sequence[float | None]) -> ListView:
        """Gather duplicates; if any score is missing, none is used."""
        usable = all(score is not None and math.isfinite(score) for score in scores)
        first: dict[Words, float] = {}
        for text, score in zip(texts, scores, strict=True):
            first.setdefault(text, float(score) if usable and score is not None else 0.0)
        counts = Counter(texts)
        return cls(tuple(first), tuple(counts[text] for text in first), tuple(first.values()))


@dataclass(frozen=True)
class Knowledge:
    """What the features of a candidate are looked up in.

    Attributes:
        table: Phrases learned from lists.
        references: n-gram model of the true texts of these lists.
        general: n-gram model of English in general, where there is one.
        recognizer: The recogniser's own, where it is known.
    """

    table: PhraseTable
    references: NgramLm
    general: NgramLm | None = None
    recognizer: PocketsphinxLm | None = None

    @functools.cached_property
    def lm(self) -> LanguageModel:
        """Both models mixed, to search with."""
        return self.references if self.general is None else MixedLm((self.references, self.general))


def measure(view: ListView, candidates: Sequence[Candidate], knowledge: Knowledge) -> np.ndarray:
    """Return (candidates, len(FEATURES)) float64.

    Args:
        view: The list.
        candidates: As `make_candidates` returns them for its hypotheses.
        knowledge: The same as there.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    shares = np.array(view.copies) / sum(view.copies)
    totals = np.array([score * max(1, len(text)) for score, text in zip(view.scores, view.hypotheses, strict=True)])
    totals, means = totals - totals.max(), np.array(view.scores) - max(view.scores)
    texts = [candidate.words for candidate in candidates]
    distances = cdist(texts, view.hypotheses, scorer=Levenshtein.distance, dtype=np.int32)
    letters = [" ".join(text) for text in texts]  # the first ones are the hypotheses
    references, general = knowledge.references, knowledge.general
    reference_lm = references.log_probs(texts)
    general_lm = general.log_probs(texts) if general is not None else [0.0] * len(texts)
    recognizer_lm = knowledge.recognizer.log_probs(texts) if knowledge.recognizer is not None else [0.0] * len(texts)
    others = [AlignedHypothesis.of(view.hypotheses[0], text) for text in view.hypotheses[1:]]
    sounds = [[phone for word in text for phone in phones_of(word)] for text in texts]
    rows = np.empty((len(candidates), len(FEATURES)))
    for number, candidate in enumerate(candidates):
        best = max(candidate.derivations, key=lambda d: d.log_odds - 0.5 * d.start)
        start = best.start
        in_list = number < len(shares)
        reached = [d.start for d in candidate.derivations]
        support = sum(shares[d.start] * math.exp(min(0.0, d.log_odds) / 4) for d in candidate.derivations)
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
            shares[start],
            shares[number] if in_list else 0.0,
            in_list,
            shares[reached].sum(),
            math.log(support + 1e-3),
            distances[number] @ shares,
            distances[number, 0],
            Levenshtein.distance(sounds[number], sounds[0]),
            *_changes(view.hypotheses[0], candidate.words, others, knowledge.table),
            number > 0,
            shares[0] if number > 0 else 0.0,
            Levenshtein.distance(letters[number], letters[start]),
            len(letters[number]) - len(letters[start]),
        )
    return rows


def _changes(
    first: Words, words: Words, others: Sequence[AlignedHypothesis], table: PhraseTable
) -> tuple[int, int, int, int]:
    """Return `changes`, `changes_seen`, `changes_seen_again` and `changes_listed` of a candidate."""
    ops = edits(first, words) if words != first else []
    balances, listed = [], 0
    for op in ops:
        new = words[op.target_start : op.target_end]
        balances.append(table.balance(first, op.source_start, op.source_end, new))
        listed += any(other.has(op.source_start, op.source_end, new) for other in others)
    return len(ops), sum(b >= 1 for b in balances), sum(b >= 2 for b in balances), listed


def add_neural(
    rows: np.ndarray,
    candidates: Sequence[Candidate],
    log_probs: Sequence[float],
    alone: Sequence[float],
    written: Words,
) -> np.ndarray:
    """Return (candidates, len(FEATURES) + len(NEURAL_FEATURES)) float64.

    Args:
        rows: What `measure` gave for the candidates.
        candidates: The first one is the first hypothesis.
        log_probs: The neural corrector's, of each candidate.
        alone: The same without the list.
        written: What it writes by itself.
    """
    gains, by_itself = (np.array(logs) - logs[0] for logs in (log_probs, alone))
    words = np.array([max(1, len(candidate.words)) for candidate in candidates])
    own = np.array([candidate.words == written for candidate in candidates], dtype=np.float64)
    return np.column_stack([rows, gains, gains / words, own, by_itself])
