"""A table of what a recogniser may hear instead: learned from pairs, and widened by phonetic neighbours."""

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
_KEPT = 12  # replacements kept for one span
_LEARNED_WEIGHT = 2.0  # of one observed confusion, beside phonetic neighbours that sum to 1


@dataclass(frozen=True)
class Confusions:
    """Spans of words with what may be heard instead.

    Attributes:
        table: Span -> ((replacement, probability), ...); the replacement may be empty.
        error_rates: Word error rates of sentences as observed, to draw from.
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
        """Read what `save` wrote.

        Raises:
            DataError: It is missing or damaged.
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
        pairs: (reference, hypotheses) of real recognitions, normalised.
        texts: Normalised sentences whose words get phonetic neighbours.
        dictionary: Word -> phones (see `asr.pronounce`).
        max_words: How many of the most frequent words may be heard.
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
        weights = index.neighbours(span)
        for replacement, count in observed.get(span, {}).items():
            weights[replacement] = weights.get(replacement, 0.0) + _LEARNED_WEIGHT * count
        if weights:
            best = _heaviest(weights)
            total = sum(weight for _, weight in best)
            table[span] = tuple((replacement, round(weight / total, 4)) for replacement, weight in best)
    return Confusions(table, tuple(rates))


class PhoneIndex:
    """Frequent words by pronunciation, found again with up to one phone changed on either side.

    Args:
        frequencies: Words with counts.
        dictionary: Word -> phones.
        max_words: How many of the most frequent words are indexed.
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

    def neighbours(self, span: str) -> dict[str, float]:
        """Return texts that sound like a span of one or two words, with weights that sum to 1; or nothing."""
        words = span.split()
        if not all(word in self._dictionary for word in words):
            return {}
        phones = tuple(phone for word in words for phone in self._dictionary[word])
        found = {word: self._closeness(phones, word) for word in self._near(phones)}
        found.update(self._splits(phones))
        found.pop(span, None)
        best = _heaviest(found)
        total = sum(weight for _, weight in best)
        return {text: weight / total for text, weight in best} if total else {}

    def _near(self, phones: Phones) -> set[str]:
        return {word for key in _deletions(phones) for word in self._index.get(key, ())}

    def _closeness(self, phones: Phones, word: str) -> float:
        other = self._dictionary[word]
        distance = sum(op.kind != "equal" for op in align(phones, other)) / max(len(phones), len(other))
        return self._weight[word] * float(np.exp(-6.0 * distance))

    def _splits(self, phones: Phones) -> Iterator[tuple[str, float]]:
        """Two words: one exact, the other near."""
        for cut in range(1, len(phones)):
            left, right = phones[:cut], phones[cut:]
            for first in self._exact.get(left, ())[:3]:
                for second in sorted(self._near(right), key=lambda w: -self._weight[w])[:3]:
                    yield f"{first} {second}", 0.02 * self._weight[first] ** 0.5 * self._closeness(right, second)
            for second in self._exact.get(right, ())[:3]:
                for first in sorted(self._near(left), key=lambda w: -self._weight[w])[:3]:
                    yield f"{first} {second}", 0.02 * self._weight[second] ** 0.5 * self._closeness(left, first)


def _heaviest(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda row: (-row[1], row[0]))[:_KEPT]


def _deletions(phones: Phones) -> set[Phones]:
    return {phones, *(phones[:i] + phones[i + 1 :] for i in range(len(phones) if len(phones) > 1 else 0))}


def _observed_spans(reference: Sequence[str], hypothesis: Sequence[str]) -> Iterator[tuple[str, str]]:
    for op in edits(reference, hypothesis):
        start, end = op.source_start, op.source_end
        after = list(hypothesis[op.target_start : op.target_end])
        if start == end:  # an insertion hangs on the word before it, or after it at the beginning
            if start > 0:
                start, after = start - 1, [reference[start - 1], *after]
            elif end < len(reference):
                end, after = end + 1, [*after, reference[end]]
        if 0 < end - start <= MAX_SPAN and len(after) <= MAX_SPAN + 1:
            yield " ".join(reference[start:end]), " ".join(after)
