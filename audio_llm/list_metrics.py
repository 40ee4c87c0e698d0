"""Metrics of N-best lists and of their corrections, as the literature reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audio_llm.errors import DataError
from audio_llm.metrics import (
    ChangeCounts,
    TextScores,
    compositional_oracle_errors,
    count_changes,
    oracle,
    paired_p_value,
    score_texts,
    utterance_errors,
)
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.text import DEFAULT_NORMALIZER, Normalizer


@dataclass(frozen=True)
class ListScores:
    """Metrics of a set of N-best lists (both oracles after HyPoradise, NeurIPS 2023).

    Attributes:
        first: Errors of the first hypotheses.
        oracle: Errors of the best hypothesis of each list, o_nb: the bound of reranking.
        missing_words: Reference words that are in no hypothesis of their list.
        right: Lists whose first hypothesis has no error.
        hypotheses: Hypotheses of all lists.
        distinct_hypotheses: Hypotheses that differ from all others of their list after normalizing.
        normalizer: Name of the normalizer.
    """

    first: TextScores
    oracle: TextScores
    missing_words: int
    right: int
    hypotheses: int
    distinct_hypotheses: int
    normalizer: str

    @property
    def compositional_oracle_rate(self) -> float:
        """Missing over all reference words, o_cp: the bound of any combination of the words of a list."""
        return self.missing_words / self.first.counts.words

    @property
    def right_rate(self) -> float:
        """Fraction of lists whose first hypothesis is correct."""
        return self.right / self.first.counts.utterances


@dataclass(frozen=True)
class CorrectionScores:
    """Metrics of the corrections of N-best lists.

    A fraction of no items is None: the rate of kept correct lists is unknown where no list was correct.

    Attributes:
        lists: Metrics of the lists.
        output: Errors of the corrector's texts.
        p_value: Fraction of resamples in which the output has no fewer errors than the first hypotheses.
        changes: Counts of the changes.
    """

    lists: ListScores
    output: TextScores
    p_value: float
    changes: ChangeCounts

    @property
    def relative_change(self) -> float | None:
        """Relative change of the word error rate; below 0 is a gain."""
        before = self.lists.first.counts.errors
        return _ratio(self.output.counts.errors - before, before)

    @property
    def recovered(self) -> float | None:
        """RIR (agwer): fraction of the gap between first hypotheses and oracle that is closed.

        Below 0 the output is worse than the first hypotheses, above 1 better than the oracle. None
        where the oracle is no better than the first hypotheses.
        """
        before = self.lists.first.counts.errors
        return _ratio(before - self.output.counts.errors, before - self.lists.oracle.counts.errors)

    @property
    def changed_rate(self) -> float:
        """Fraction of lists whose output differs from the first hypothesis."""
        return self.changes.changed / self.changes.utterances

    @property
    def keep_correct_rate(self) -> float | None:
        """Fraction of the correct first hypotheses that stay correct."""
        return _ratio(self.changes.right_before - self.changes.broken, self.changes.right_before)

    @property
    def fix_wrong_rate(self) -> float | None:
        """Fraction of the wrong first hypotheses that become correct."""
        return _ratio(self.changes.fixed, self.changes.utterances - self.changes.right_before)

    @property
    def improve_wrong_rate(self) -> float | None:
        """Fraction of the wrong first hypotheses with fewer errors afterwards, correct ones included."""
        return _ratio(self.changes.better, self.changes.utterances - self.changes.right_before)

    @property
    def broken_rate(self) -> float:
        """Fraction of all lists that were correct and become wrong."""
        return self.changes.broken / self.changes.utterances

    @property
    def harmful_edit_rate(self) -> float | None:
        """HER: harmful edits over harmful and helpful ones.

        The name and the quotient are those of agwer, the package of a HyPoradise author, which labels whole
        utterances, or reference words. Here an edit is a differing span (see `ChangeCounts`), so the
        figures of the two are close and not equal. None without an edit that helped or harmed.
        """
        harmful = self.changes.harmful_edits
        return _ratio(harmful, harmful + self.changes.helpful_edits)

    @property
    def hallucinated_rate(self) -> float | None:
        """Fraction of output words that are neither in the reference nor in a hypothesis: novel or repeated too often.

        After agwer's word hallucination rate, which uses an alignment where this counts how often the reference has
        the word.
        """
        return _ratio(self.changes.novel_words + self.changes.repeated_words, self.changes.output_words)

    @property
    def length_ratio(self) -> float:
        """Words of the output over words of the references."""
        return self.changes.output_words / self.output.counts.words


def score_lists(lists: Sequence[NBest], normalizer: Normalizer = DEFAULT_NORMALIZER) -> ListScores:
    """Return the metrics of lists.

    Args:
        lists: N-best lists with references.
        normalizer: Applied to references and hypotheses.

    Raises:
        DataError: A list has no reference, or no reference holds a word.
    """
    return _score_lists(_normalize(lists, normalizer), _applied(normalizer))


def score_corrections(
    lists: Sequence[NBest], outputs: Sequence[str], normalizer: Normalizer = DEFAULT_NORMALIZER
) -> CorrectionScores:
    """Return the metrics of corrections.

    Args:
        lists: N-best lists with references.
        outputs: Corrected text of each list, in the same order.
        normalizer: Applied to references, hypotheses and outputs.

    Raises:
        DataError: A list has no reference, no reference holds a word, or there is not one output for each list.
    """
    if len(lists) != len(outputs):
        raise DataError(f"{len(lists)} lists but {len(outputs)} outputs", remedy="give one text for each list")
    lists, outputs = _normalize(lists, normalizer), [normalizer(output) for output in outputs]
    normalizer = _applied(normalizer)
    references, first = _references(lists), [nbest.best for nbest in lists]
    return CorrectionScores(
        lists=_score_lists(lists, normalizer),
        output=score_texts(references, outputs, normalizer),
        p_value=paired_p_value(
            utterance_errors(references, first, normalizer), utterance_errors(references, outputs, normalizer)
        ),
        changes=count_changes(lists, outputs, normalizer),
    )


def _score_lists(lists: Sequence[NBest], normalizer: Normalizer) -> ListScores:
    references, first = _references(lists), [nbest.best for nbest in lists]
    return ListScores(
        first=score_texts(references, first, normalizer),
        oracle=score_texts(references, [oracle(nbest, normalizer) for nbest in lists], normalizer),
        missing_words=compositional_oracle_errors(lists, normalizer),
        right=sum(reference == text for reference, text in zip(references, first, strict=True)),
        hypotheses=sum(len(nbest.hypotheses) for nbest in lists),
        distinct_hypotheses=sum(len(set(nbest.texts)) for nbest in lists),
        normalizer=normalizer.name,
    )


def _normalize(lists: Sequence[NBest], normalizer: Normalizer) -> list[NBest]:
    """Return the lists with normalized words, so that each text is normalized only once."""
    normalized = []
    for nbest in lists:
        if nbest.reference is None:
            raise DataError(f"list {nbest.id!r} has no reference")
        hypotheses = tuple(Hypothesis(" ".join(normalizer(text).split())) for text in nbest.texts)
        normalized.append(NBest(nbest.id, hypotheses, " ".join(normalizer(nbest.reference).split())))
    return normalized


def _applied(normalizer: Normalizer) -> Normalizer:
    """Return an identity normalizer with the same name, for normalized texts."""
    return Normalizer(normalizer.name, str)


def _references(lists: Sequence[NBest]) -> list[str]:
    return [nbest.reference or "" for nbest in lists]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
