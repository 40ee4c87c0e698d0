from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.training.batching import batches_by_length


def drawn(
    lengths: np.ndarray, limit: int, seed: int = 0, rows: np.ndarray | None = None
) -> list[list[tuple[int, int]]]:
    chosen = np.arange(len(lengths)) if rows is None else rows
    return list(batches_by_length(chosen, lengths, limit, np.random.default_rng(seed)))


def long_tailed(count: int, seed: int = 0) -> np.ndarray:
    return 1 + np.random.default_rng(seed).exponential(12, size=count).astype(np.int64)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 120), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_in_batches_within_the_limit(sizes: list[int], limit: int, seed: int) -> None:
    lengths = np.array(sizes)
    batches = drawn(lengths, limit, seed)
    assert sorted(row for batch in batches for row, _ in batch) == list(range(len(sizes)))
    for batch in batches:
        rows = [row for row, _ in batch]
        assert rows
        assert len(rows) == 1 or max(lengths[rows]) * len(rows) <= limit


def test_only_the_rows_asked_for_come() -> None:
    rows = np.array([7, 3, 99, 50, 12])
    batches = drawn(long_tailed(100), 60, rows=rows)
    assert sorted(row for batch in batches for row, _ in batch) == sorted(rows.tolist())


def test_a_row_longer_than_the_limit_comes_alone() -> None:
    batches = drawn(np.array([500, 3, 3, 3]), 20)
    assert [500] in [[np.array([500, 3, 3, 3])[row] for row, _ in batch] for batch in batches]


def test_the_same_seed_gives_the_same_batches_and_another_seed_different_ones() -> None:
    lengths = long_tailed(300)
    assert drawn(lengths, 200, 1) == drawn(lengths, 200, 1)
    assert drawn(lengths, 200, 1) != drawn(lengths, 200, 2)


def test_every_row_has_a_distinct_seed() -> None:
    seeds = [seed for batch in drawn(long_tailed(400), 200) for _, seed in batch]
    assert len(set(seeds)) == 400
    assert all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    later = {seed for batch in drawn(long_tailed(400), 200, seed=1) for _, seed in batch}
    assert not later & set(seeds)


def test_rows_of_like_length_come_together_and_fill_their_batch() -> None:
    lengths = long_tailed(3000)
    batches = [[row for row, _ in batch] for batch in drawn(lengths, 400)]
    used = sum(int(lengths[rows].sum()) for rows in batches)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    assert 1 - used / padded < 0.1
    assert padded / (400 * len(batches)) > 0.85


def test_short_and_long_batches_come_in_any_order() -> None:
    lengths = long_tailed(3000)
    means = [lengths[[row for row, _ in batch]].mean() for batch in drawn(lengths, 400)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2
    neighbors = {tuple(sorted(row for row, _ in batch)) for batch in drawn(lengths, 400)}
    again = {tuple(sorted(row for row, _ in batch)) for batch in drawn(lengths, 400, seed=1)}
    assert len(neighbors & again) < 0.1 * len(neighbors)  # and another seed puts other rows together


@pytest.mark.filterwarnings("error")
def test_no_rows_give_no_batches() -> None:
    assert drawn(np.array([], dtype=np.int64), 100) == []
