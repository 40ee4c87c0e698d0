"""Tests of the word alignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from audio_llm import align as align_module
from audio_llm.align import EditCounts, Op, align, count_edits, edit_distance, edits


def _words(text: str) -> list[str]:
    return text.split()


def slow_distance(source: list[str], target: list[str]) -> int:
    """Levenshtein distance straight from its definition, row by row."""
    row = list(range(len(target) + 1))
    for i, left in enumerate(source, 1):
        previous, row = row, [i]
        for j, right in enumerate(target, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (left != right)))
    return row[-1]


def random_pairs(count: int, seed: int = 0, longest: int = 13) -> list[tuple[list[str], list[str]]]:
    generator = np.random.default_rng(seed)
    letters = list("abcd")
    return [
        tuple(list(generator.choice(letters, size=int(generator.integers(0, longest)))) for _ in range(2))
        for _ in range(count)
    ]


def apply(ops: list[Op], source: list[str], target: list[str]) -> list[str]:
    words: list[str] = []
    for op in ops:
        words += (
            source[op.source_start : op.source_end] if op.kind == "equal" else target[op.target_start : op.target_end]
        )
    return words


def test_cost_equals_an_independent_distance_and_steps_rebuild_the_target() -> None:
    for source, target in random_pairs(1000):
        ops = align(source, target)
        assert sum(op.kind != "equal" for op in ops) == slow_distance(source, target) == edit_distance(source, target)
        assert apply(ops, source, target) == target
        assert [i for op in ops for i in range(op.source_start, op.source_end)] == list(range(len(source)))
        assert [j for op in ops for j in range(op.target_start, op.target_end)] == list(range(len(target)))
        assert ops == align(source, target)


def test_ties_substitute_then_delete_then_insert_from_the_right() -> None:
    assert align(["a", "b"], ["c"]) == [Op("delete", 0, 1, 0, 0), Op("replace", 1, 2, 0, 1)]
    assert align(["a"], ["b", "c"]) == [Op("insert", 0, 0, 0, 1), Op("replace", 0, 1, 1, 2)]
    assert [op.kind for op in align(["a", "b"], ["b", "a"])] == ["replace", "replace"]


def test_edits_merge_neighbors_and_never_touch() -> None:
    source, target = _words("show me flights from new ark please"), _words("show me all flights from newark")
    assert edits(source, target) == [Op("insert", 2, 2, 2, 3), Op("replace", 4, 7, 5, 6)]
    for left, right in random_pairs(300, seed=1):
        runs = edits(left, right)
        for first, second in itertools.pairwise(runs):
            assert second.source_start > first.source_end
            assert second.target_start - first.target_end == second.source_start - first.source_end
        words = list(left)
        for run in reversed(runs):
            words[run.source_start : run.source_end] = right[run.target_start : run.target_end]
        assert words == right


def test_counts_name_the_reference_side() -> None:
    counts = count_edits(_words("the cat sat on the mat"), _words("the black cat sat on mad"))
    assert counts == EditCounts(hits=4, substitutions=1, deletions=1, insertions=1)
    assert counts.errors == 3
    assert counts.error_rate == pytest.approx(3 / 6)
    total = counts + count_edits(["yes"], ["no"])
    assert total == EditCounts(4, 2, 1, 1)
    assert total.error_rate == pytest.approx(4 / 7)


def test_empty_sides() -> None:
    assert align([], []) == []
    assert edits([], ["a", "b"]) == [Op("insert", 0, 0, 0, 2)]
    assert edits(["a", "b"], []) == [Op("delete", 0, 2, 0, 0)]
    assert count_edits([], []).error_rate == 0.0
    assert count_edits([], ["a"]).error_rate == float("inf")


def test_long_texts_take_the_other_path_and_agree_on_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align_module, "_MAX_TABLE_SIZE", 0)
    for source, target in random_pairs(300, seed=2):
        ops = align(source, target)
        assert sum(op.kind != "equal" for op in ops) == slow_distance(source, target)
        assert apply(ops, source, target) == target
        assert all(op.source_end - op.source_start <= 1 and op.target_end - op.target_start <= 1 for op in ops)


def test_twenty_thousand_words_are_aligned_in_little_memory() -> None:
    words = [f"w{i % 977}" for i in range(20_000)]
    changed = [*words[:100], "x", *words[101:15_000], *words[15_003:]]
    assert count_edits(words, changed) == EditCounts(19_996, 1, 3, 0)
