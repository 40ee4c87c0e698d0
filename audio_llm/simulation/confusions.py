"""A table of recognition confusions: learned from pairs, and extended by phonetic neighbors."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm.align import align, edits
from audio_llm.errors import DataError

Phones = tuple[str, ...]

MAX_SPAN = 3  # words replaced at once
_MAX_REPLACEMENTS = 12  # per span
_LEARNED_WEIGHT = 2.0  # of one observed confusion; the weights of phonetic neighbors sum to 1


@dataclass(frozen=True)
class Confusions:
    """Spans of words with their likely misrecognitions.

    Attributes:
        table: Span -> ((replacement, probability), ...); the replacement may be empty.
        error_rates: Observed word error rates of sentences, to draw from.
    """

    table: Mapping[str, tuple[tuple[str, float], ...]]
    error_rates: tuple[float, ...]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps({"table": dict(self.table), "error_rates": self.error_rates}))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Confusions:
        """Read a table written by `save`.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            content = json.loads(Path(path).read_text())
            table = {span: tuple((r, float(p)) for r, p in rows) for span, rows in content["table"].items()}
            return cls(table, tuple(content["error_rates"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"no table of confusions: {error}", path=path, remedy="pack the pairs again") from None


def learn_confusions(
    pairs: Iterable[tuple[str, Sequence[str]]],
    texts: Iterable[str],
    dictionary: Mapping[str, Phones],
    max_words: int = 30_000,
) -> Confusions:
    """Build the table.

    Args:
        pairs: (reference, hypotheses) of real recognitions, normalized.
        texts: Normalized sentences whose words get phonetic neighbors.
        dictionary: Word -> phones (see `asr.pronounce`).
        max_words: Size of the vocabulary of replacements: the most frequent words.
    """
    observed: dict[str, Counter[str]] = defaultdict(Counter)
    rates = []
    for reference, hypotheses in pairs:
        words = reference.split()
        for rank, hypothesis in enumerate(hypotheses[:3]):
            runs = list(_observed_spans(words, hypothesis.split()))
            for before, after in runs:
                observed[before][after] += 1
            if rank == 0 and words:
                wrong = sum(op.kind != "equal" for op in align(words, hypothesis.split()))
                rates.append(round(min(1.0, wrong / len(words)), 3))
    frequencies: Counter[str] = Counter()
    bigrams: Counter[tuple[str, str]] = Counter()
    for text in texts:
        words = text.split()
        frequencies.update(words)
        bigrams.update(itertools.pairwise(words))
    index = PhoneIndex(frequencies, dictionary, max_words)
    spans = [*frequencies, *(" ".join(pair) for pair, count in bigrams.most_common(40_000) if count > 2)]
    table = {}
    for span in itertools.chain(spans, (s for s in observed if s not in frequencies)):
        weights = index.neighbors(span)
        for replacement, count in observed.get(span, {}).items():
            weights[replacement] = weights.get(replacement, 0.0) + _LEARNED_WEIGHT * count
        if weights:
            best = _heaviest(weights)
            total = sum(weight for _, weight in best)
            table[span] = tuple((replacement, round(weight / total, 4)) for replacement, weight in best)
    return Confusions(table, tuple(rates))


class PhoneIndex:
    """Frequent words by pronunciation, looked up with up to one phone deleted on either side.

    Args:
        frequencies: Words with counts.
        dictionary: Word -> phones.
        max_words: Number of the most frequent words to index.
    """

    def __init__(self, frequencies: Counter[str], dictionary: Mapping[str, Phones], max_words: int) -> None:
        self._dictionary = dictionary
        self._weight: dict[str, float] = {}
        self._index: dict[Phones, list[str]] = defaultdict(list)
        self._exact: dict[Phones, list[str]] = defaultdict(list)
        for word, count in frequencies.most_common():
            if word in dictionary and len(self._weight) < max_words:
                self._weight[word] = count**0.5
                self._exact[dictionary[word]].append(word)
                for key in _deletions(dictionary[word]):
                    self._index[key].append(word)

    def neighbors(self, span: str) -> dict[str, float]:
        """Return texts that sound like a span of one or two words, with weights that sum to 1; may be empty."""
        words = span.split()
        if not all(word in self._dictionary for word in words):
            return {}
        phones = tuple(phone for word in words for phone in self._dictionary[word])
        candidates = {word: self._closeness(phones, word) for word in self._near(phones)}
        candidates.update(self._splits(phones))
        candidates.pop(span, None)
        best = _heaviest(candidates)
        total = sum(weight for _, weight in best)
        return {text: weight / total for text, weight in best} if total else {}

    def _near(self, phones: Phones) -> set[str]:
        return {word for key in _deletions(phones) for word in self._index.get(key, ())}

    def _closeness(self, phones: Phones, word: str) -> float:
        other = self._dictionary[word]
        distance = sum(op.kind != "equal" for op in align(phones, other)) / max(len(phones), len(other))
        return self._weight[word] * float(np.exp(-6.0 * distance))

    def _splits(self, phones: Phones) -> Iterator[tuple[str, float]]:
        """Yield pairs of words, one with the exact pronunciation and the other with a similar one."""
        for cut in range(1, len(phones)):
            left, right = phones[:cut], phones[cut:]
            for first in self._exact.get(left, ())[:3]:
                for second in sorted(self._near(right), key=lambda w: -self._weight[w])[:3]:
                    yield f"{first} {second}", 0.02 * self._weight[first] ** 0.5 * self._closeness(right, second)
            for second in self._exact.get(right, ())[:3]:
                for first in sorted(self._near(left), key=lambda w: -self._weight[w])[:3]:
                    yield f"{first} {second}", 0.02 * self._weight[second] ** 0.5 * self._closeness(left, first)


def _heaviest(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda row: (-row[1], row[0]))[:_MAX_REPLACEMENTS]


def _deletions(phones: Phones) -> set[Phones]:
    return {phones, *(phones[:i] + phones[i + 1 :] for i in range(len(phones) if len(phones) > 1 else 0))}


def _observed_spans(reference: Sequence[str], hypothesis: Sequence[str]) -> Iterator[tuple[str, str]]:
    for op in edits(reference, hypothesis):
        start, end = op.source_start, op.source_end
        after = list(hypothesis[op.target_start : op.target_end])
        if start == end:  # an insertion is attached to the word before it, at the beginning to the word after it
            if start > 0:
                start, after = start - 1, [reference[start - 1], *after]
            elif end < len(reference):
                end, after = end + 1, [*after, reference[end]]
        if 0 < end - start <= MAX_SPAN and len(after) <= MAX_SPAN + 1:
            yield " ".join(reference[start:end]), " ".join(after)
