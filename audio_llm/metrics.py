"""Word-level metrics: error rates with all counts, over-correction, intervals, paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.align import align, count_edits, edit_distance, edits
from audio_llm.errors import DataError
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER, Normalizer

RESAMPLES = 2000
_SEED = 1


@dataclass(frozen=True)
class ErrorCounts:
    """Word errors over a set of utterances.

    Attributes:
        substitutions: Substituted words.
        deletions: Deleted reference words.
        insertions: Inserted words.
        words: Reference words.
        utterances: Number of utterances.
        normalizer: Normalizer applied to references and hypotheses.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int
    normalizer: str

    @property
    def errors(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over reference words, over the whole set; 0 for no words and no errors."""
        if self.words == 0:
            return 0.0 if self.errors == 0 else float("inf")
        return self.errors / self.words


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Probability covered, such as 0.95.
    """

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class TextScores:
    """Word errors of a set with the interval of their rate.

    Attributes:
        counts: Word errors of the whole set.
        interval: 95 % bootstrap interval of their rate.
    """

    counts: ErrorCounts
    interval: Interval


@dataclass(frozen=True)
class ChangeCounts:
    """Counts of the changes of a corrector to a set of utterances.

    An edit is one span in which the output differs from the recognizer's text, with at least one equal word
    between two of them (`align.edits`). It is harmful if undoing it alone lowers the errors of the output, helpful if
    that raises them, else neither.

    Attributes:
        utterances: Number of utterances.
        changed: Utterances whose words differ from the recognizer's.
        better: Utterances with fewer errors than before.
        worse: Utterances with more errors than before.
        right_before: Utterances without errors before.
        broken: Utterances without errors before and with errors after.
        fixed: Utterances with errors before and without errors after.
        harmed_words: Words that were correct before and are wrong after.
        right_words: Words that were correct before.
        novel_words: Output words that are in no hypothesis and not in the reference.
        repeated_words: Output words beyond the most that the reference or any one hypothesis has of them, without
            the novel ones.
        output_words: Words of the output.
        edits: Edits.
        helpful_edits: Edits that removed errors.
        harmful_edits: Edits that added errors.
    """

    utterances: int
    changed: int
    better: int
    worse: int
    right_before: int
    broken: int
    fixed: int
    harmed_words: int
    right_words: int
    novel_words: int
    repeated_words: int
    output_words: int
    edits: int
    helpful_edits: int
    harmful_edits: int


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer = DEFAULT_NORMALIZER
) -> ErrorCounts:
    """Count word errors over a set.

    Args:
        references: Reference texts.
        hypotheses: Texts to score, in the same order.
        normalizer: Applied to both.

    Raises:
        DataError: The two differ in length.
    """
    return sum_errors(utterance_errors(references, hypotheses, normalizer), normalizer)


def sum_errors(counts: np.ndarray, normalizer: Normalizer) -> ErrorCounts:
    """Sum the counts of utterances, (N, 4) int64 from `utterance_errors`, for the named normalizer."""
    s, d, i, n = (int(column) for column in counts.sum(axis=0))
    return ErrorCounts(s, d, i, n, len(counts), normalizer.name)


def score_texts(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer = DEFAULT_NORMALIZER
) -> TextScores:
    """Count word errors over a set, with the interval of their rate.

    Args:
        references: Reference texts.
        hypotheses: Texts to score, in the same order.
        normalizer: Applied to both.

    Raises:
        DataError: The two differ in length, or no reference holds a word.
    """
    counts = utterance_errors(references, hypotheses, normalizer)
    total = sum_errors(counts, normalizer)
    if not total.words:
        raise DataError("the references hold no words", remedy="there is nothing to score")
    return TextScores(total, bootstrap_interval(counts))


def utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer = DEFAULT_NORMALIZER
) -> np.ndarray:
    """Return (N, 4) int64: substitutions, deletions, insertions and reference words of every utterance."""
    if len(references) != len(hypotheses):
        raise DataError(
            f"{len(references)} references but {len(hypotheses)} hypotheses", remedy="give one line for one line"
        )
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words = normalizer(reference).split()
        counts = count_edits(words, normalizer(hypothesis).split())
        rows.append((counts.substitutions, counts.deletions, counts.insertions, len(words)))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def character_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer = DEFAULT_NORMALIZER
) -> float:
    """Return character errors over reference characters, spaces included."""
    errors = characters = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        counts = count_edits(list(normalizer(reference)), list(normalizer(hypothesis)))
        errors += counts.substitutions + counts.deletions + counts.insertions
        characters += len(normalizer(reference))
    return errors / max(1, characters)


def bootstrap_interval(
    counts: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = _SEED
) -> Interval:
    """Return the interval of the word error rate under resampling of utterances.

    Args:
        counts: (N, 4) int64 from `utterance_errors`.
        level: Coverage probability.
        resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    rates = _resampled_rates(counts, resamples, seed)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def paired_p_value(before: np.ndarray, after: np.ndarray, resamples: int = RESAMPLES, seed: int = _SEED) -> float:
    """Return the fraction of resamples in which `after` has no fewer errors than `before` (one-sided paired bootstrap).

    Args:
        before: (N, 4) int64 from `utterance_errors`.
        after: The same utterances under the other system.
        resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    difference = after[:, :3].sum(axis=1) - before[:, :3].sum(axis=1)
    weights = _weights(len(difference), resamples, seed)
    return float((1 + np.sum(weights @ difference >= 0)) / (1 + resamples))


def count_changes(
    lists: Sequence[NBest], outputs: Sequence[str], normalizer: Normalizer = DEFAULT_NORMALIZER
) -> ChangeCounts:
    """Compare a corrector's outputs with the recognizer's best texts; every list needs a reference."""
    totals = dict.fromkeys(ChangeCounts.__dataclass_fields__, 0)
    for nbest, output in zip(lists, outputs, strict=True):
        if nbest.reference is None:
            raise DataError(f"list {nbest.id!r} has no reference")
        reference, before, after = (normalizer(t).split() for t in (nbest.reference, nbest.best, output))
        old, new = count_edits(reference, before), count_edits(reference, after)
        added = _added_words(after, [reference, *(normalizer(text).split() for text in nbest.texts)])
        effects = _edit_effects(reference, before, after)
        row = {
            "utterances": 1,
            "changed": before != after,
            "better": new.errors < old.errors,
            "worse": new.errors > old.errors,
            "right_before": old.errors == 0,
            "broken": old.errors == 0 < new.errors,
            "fixed": new.errors == 0 < old.errors,
            "harmed_words": _harmed(reference, before, after) if before != after else 0,
            "right_words": old.hits,
            "novel_words": added.novel,
            "repeated_words": added.repeated,
            "output_words": len(after),
            "edits": len(effects),
            "helpful_edits": sum(effect < 0 for effect in effects),
            "harmful_edits": sum(effect > 0 for effect in effects),
        }
        for name, value in row.items():
            totals[name] += int(value)
    return ChangeCounts(**totals)


def oracle(nbest: NBest, normalizer: Normalizer = DEFAULT_NORMALIZER, depth: int | None = None) -> str:
    """Return the hypothesis with the fewest errors, the first of equals; depth limits their number."""
    reference = normalizer(nbest.reference or "").split()
    texts = nbest.texts[:depth] or ("",)
    return min(texts, key=lambda text: edit_distance(reference, normalizer(text).split()))


def compositional_oracle_errors(lists: Iterable[NBest], normalizer: Normalizer = DEFAULT_NORMALIZER) -> int:
    """Count reference words that occur in no hypothesis of their list (HyPoradise's o_cp, over occurrences)."""
    missing = 0
    for nbest in lists:
        recognized = {word for text in nbest.texts for word in normalizer(text).split()}
        missing += sum(word not in recognized for word in normalizer(nbest.reference or "").split())
    return missing


@dataclass(frozen=True)
class _AddedWords:
    novel: int
    repeated: int


def _added_words(output: Sequence[str], sources: Sequence[Sequence[str]]) -> _AddedWords:
    """Count output words beyond the maximum of any source: words in no source, and repeated ones."""
    most: Counter[str] = Counter()
    for source in sources:
        most |= Counter(source)
    beyond = Counter(output) - most
    novel = sum(count for word, count in beyond.items() if word not in most)
    return _AddedWords(novel, beyond.total() - novel)


def _edit_effects(reference: Sequence[str], before: Sequence[str], after: Sequence[str]) -> list[int]:
    """Return for every edit the number of errors that it adds: those of the output less those without the edit."""
    errors = edit_distance(reference, after)
    effects = []
    for edit in edits(before, after):
        old = before[edit.source_start : edit.source_end]
        undone = [*after[: edit.target_start], *old, *after[edit.target_end :]]
        effects.append(errors - edit_distance(reference, undone))
    return effects


def _harmed(reference: Sequence[str], before: Sequence[str], after: Sequence[str]) -> int:
    return len(_correct_positions(reference, before) - _correct_positions(reference, after))


def _correct_positions(reference: Sequence[str], hypothesis: Sequence[str]) -> set[int]:
    return {
        index
        for op in align(reference, hypothesis)
        if op.kind == "equal"
        for index in range(op.source_start, op.source_end)
    }


def _resampled_rates(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    weights = _weights(len(counts), resamples, seed)
    errors, words = weights @ counts[:, :3].sum(axis=1), weights @ counts[:, 3]
    return errors / np.maximum(words, 1)


def _weights(size: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / max(1, size)), size=resamples)
