"""Training of n-gram models: interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm.errors import DataError, UsageError
from audio_llm.lm.ngram import END_ID, SPECIAL_WORDS, START_ID, UNKNOWN_ID, Level, NgramLm

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where a corpus is too small to estimate them, as lmplz does


def train_ngram(
    source: str | os.PathLike[str] | Iterable[str],
    order: int = 3,
    min_count: int = 1,
    cutoffs: Sequence[int] | None = None,
    normalizer: Callable[[str], str] | None = None,
) -> NgramLm:
    """Train a model from text, one sentence a line.

    Every history keeps a weight for unseen continuations; the mass of n-grams dropped by a cut-off is added to it,
    so the probabilities sum to one.

    Args:
        source: A text file, or sentences.
        order: Longest n-gram, at least 1.
        min_count: Words seen less often become `<unk>`.
        cutoffs: For each order the minimum count of an n-gram, rising; the default keeps all, but drops those of orders
            above 2 seen once if the text has more than 200,000 words.
        normalizer: Applied to each sentence first; None if the text is normalized already.

    Raises:
        DataError: The file is missing, or there is no word in the text.
        UsageError: The settings contradict each other.
    """
    if order < 1 or (cutoffs is not None and (len(cutoffs) != order or list(cutoffs) != sorted(cutoffs))):
        raise UsageError("an n-gram model needs an order of at least 1 and one cut-off per order, rising")
    sentences = _read_sentences(source, normalizer)
    counts = Counter(word for sentence in sentences for word in sentence)
    total = sum(counts.values())
    if total == 0:
        path = source if isinstance(source, str | os.PathLike) else None
        raise DataError("no words to train a language model on", path=path, remedy="give one sentence a line")
    if cutoffs is None:
        cutoffs = [1 if n < 3 or total <= 200_000 else 2 for n in range(1, order + 1)]
    known = sorted(word for word, count in counts.items() if count >= min_count and word not in SPECIAL_WORDS)
    vocabulary = [*SPECIAL_WORDS, *known]
    # The special words have no entry: a literal "<s>" in a text is an unknown word.
    ids = {word: number for number, word in enumerate(known, len(SPECIAL_WORDS))}
    stream = _Stream.of(sentences, ids)
    return NgramLm(vocabulary, _estimate(stream, len(vocabulary), cutoffs), max(1, len(counts) - len(known)))


@dataclass(frozen=True)
class _Stream:
    """All sentences concatenated: `ids` and `positions` (T,) int64, each sentence `<s> words </s>`."""

    ids: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[Sequence[str]], numbers: dict[str, int]) -> _Stream:
        lengths = np.array([len(sentence) + 2 for sentence in sentences])
        row: list[int] = []
        for sentence in sentences:
            row.append(START_ID)
            row.extend(numbers.get(word, UNKNOWN_ID) for word in sentence)
            row.append(END_ID)
        ids = np.array(row, dtype=np.int64)
        starts = np.repeat(np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return cls(ids, np.arange(len(ids)) - starts)


@dataclass(frozen=True)
class _Order:
    """The distinct n-grams of one order before estimation, sorted by key.

    Attributes:
        keys: (N,) as in `Level`, but with the indices of the unpruned level below.
        raw: (N,) count of each.
        words: (N,) last word of each.
        histories: (N,) index of the first n - 1 words in the level below.
        suffixes: (N,) index of the last n - 1 words in the level below.
        from_start: (N,) bool, True if it starts with `<s>`.
    """

    keys: np.ndarray
    raw: np.ndarray
    words: np.ndarray
    histories: np.ndarray
    suffixes: np.ndarray
    from_start: np.ndarray


def _read_sentences(
    source: str | os.PathLike[str] | Iterable[str], normalizer: Callable[[str], str] | None
) -> list[list[str]]:
    lines: Iterable[str] = source if not isinstance(source, str | os.PathLike) else _lines(Path(source))
    if normalizer is not None:
        lines = map(normalizer, lines)
    return [words for words in (line.split() for line in lines) if words]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as text: {error}", path=path, remedy="give a UTF-8 text file") from None


def _estimate(stream: _Stream, size: int, cutoffs: Sequence[int]) -> list[Level]:
    orders = _collect(stream, size, len(cutoffs))
    below = _unigram_probs(orders, size)
    levels = [_Estimated(np.arange(size), below, np.ones(size))]
    keep_below = np.arange(size)
    for n in range(2, len(cutoffs) + 1):
        counted = orders[n - 1]
        adjusted = _adjusted(orders, n)
        totals = np.bincount(counted.histories, adjusted, minlength=len(below))
        retained = counted.raw >= cutoffs[n - 1]
        discounted = np.maximum(adjusted - _discounts(adjusted)[np.minimum(adjusted, 3)], 0) / totals[counted.histories]
        seen = np.bincount(counted.histories[retained], discounted[retained], minlength=len(below))
        weights = np.clip(1.0 - seen, 1e-12, 1.0)
        probs = discounted + weights[counted.histories] * below[counted.suffixes]
        # A dropped n-gram has the probability of the shorter history; longer ones build on it.
        probs[~retained] = (weights[counted.histories] * below[counted.suffixes])[~retained]
        levels[-1] = _Estimated(levels[-1].keys, levels[-1].probs, weights[keep_below >= 0])
        indices = np.where(retained, np.cumsum(retained) - 1, -1)
        keys = keep_below[counted.histories[retained]] * size + counted.words[retained]
        levels.append(_Estimated(keys, probs[retained], np.ones(int(retained.sum()))))
        keep_below, below = indices, probs
    return [level.as_level() for level in levels]


@dataclass(frozen=True)
class _Estimated:
    keys: np.ndarray
    probs: np.ndarray
    weights: np.ndarray

    def as_level(self) -> Level:
        logs = np.log(np.maximum(self.probs, 1e-43)).astype(np.float32)
        return Level(self.keys.astype(np.int64), logs, np.log(self.weights).astype(np.float32))


def _collect(stream: _Stream, size: int, order: int) -> list[_Order]:
    ids, positions = stream.ids, stream.positions
    everything = np.arange(size)
    raw = np.bincount(ids, minlength=size)
    nothing = np.zeros(size, dtype=np.int64)
    orders = [_Order(everything, raw, everything, nothing, nothing, everything == START_ID)]
    indices = ids
    for n in range(2, order + 1):
        ends = np.flatnonzero(positions >= n - 1)
        histories = indices[ends - 1]
        keys, first, inverse, raw = np.unique(
            histories * size + ids[ends], return_index=True, return_inverse=True, return_counts=True
        )
        histories, suffixes = histories[first], indices[ends[first]]
        orders.append(_Order(keys, raw, keys % size, histories, suffixes, positions[ends[first]] == n - 1))
        indices = np.full(len(ids), -1)
        indices[ends] = inverse
    return orders


def _adjusted(orders: Sequence[_Order], n: int) -> np.ndarray:
    """Return (N,) int64: how many different words precede each n-gram; plain counts at the top and after `<s>`."""
    counted = orders[n - 1]
    if n == len(orders):
        return counted.raw
    preceding = np.bincount(orders[n].suffixes, minlength=len(counted.keys))
    return np.where(counted.from_start, counted.raw, preceding)


def _unigram_probs(orders: Sequence[_Order], size: int) -> np.ndarray:
    """Return (V,) p(word) without a history: discounted, the rest spread evenly over all words, `<s>` excepted."""
    adjusted = _adjusted(orders, 1).copy()
    adjusted[START_ID] = 0
    discounted = np.maximum(adjusted - _discounts(adjusted)[np.minimum(adjusted, 3)], 0) / adjusted.sum()
    probs = discounted + (1.0 - discounted.sum()) / (size - 1)
    probs[START_ID] = 0.0
    return probs


def _discounts(adjusted: np.ndarray) -> np.ndarray:
    """Return (4,) the discounts of counts 0, 1, 2, and 3 or more."""
    t1, t2, t3, t4 = (int(np.count_nonzero(adjusted == k)) for k in (1, 2, 3, 4))
    discounts = list(_FALLBACK_DISCOUNTS)
    if min(t1, t2, t3) > 0:
        y = t1 / (t1 + 2 * t2)
        estimated = [1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3]
        if all(0 < value < k for k, value in enumerate(estimated, 1)):
            discounts = estimated
    return np.array([0.0, *discounts])
