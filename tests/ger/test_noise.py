from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.align import edit_distance
from audio_llm.ger.encoders import HashNgramEncoder
from audio_llm.ger.noise import NoiseSettings, noise_embedding, pairs


class OneHot:
    """A text is the unit vector of its last word times its number of words, so that texts are no sums of words."""

    width = 4

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if words := text.split():
                row["abcd".index(words[-1])] = len(words)
        return rows


THREE = NoiseSettings(hypotheses=3)
TEXTS = st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join)


def embed(texts: Sequence[str], settings: NoiseSettings = THREE) -> tuple[list[list[float]], list[bool]]:
    rows, valid = noise_embedding(texts, OneHot(), settings)
    assert rows.dtype == np.float32
    return rows.tolist(), valid.tolist()


def test_pairs_are_worse_then_better_in_the_order_of_the_rows() -> None:
    assert pairs(4) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert pairs(1) == []


def test_rows_are_those_worked_out_by_hand() -> None:
    rows, valid = embed(["a b", "a c", "a"])
    assert rows == [
        [0, -2, 2, 0],  # whole texts: (a c) - (a b)
        [1, -2, 0, 0],  # (a) - (a b)
        [1, 0, -2, 0],  # (a) - (a c)
        [0, -1, 1, 0],  # words: c instead of b
        [0, -1, 0, 0],  # b is missing
        [0, 0, -1, 0],  # c is missing
    ]
    assert valid == [True] * 6


def test_edits_are_summed_or_averaged_over_the_edited_places() -> None:
    texts = ["a b b c", "a d c", ""]
    summed, _ = embed(texts)
    mean, _ = embed(texts, replace(THREE, token_pool="mean"))
    assert summed[3:] == [[0, -2, 0, 1], [-1, -2, -1, 0], [-1, 0, -1, -1]]
    assert mean[3:] == [
        pytest.approx([0, -1, 0, 0.5]),  # b b became d: two places
        pytest.approx([-1 / 4, -2 / 4, -1 / 4, 0]),
        pytest.approx([-1 / 3, 0, -1 / 3, -1 / 3]),
    ]
    assert mean[:3] == summed[:3]


@given(TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_the_mean_divides_the_sum_by_the_edit_distance(better: str, worse: str) -> None:
    two = NoiseSettings(hypotheses=2)
    summed, _ = embed([better, worse], two)
    mean, _ = embed([better, worse], replace(two, token_pool="mean"))
    distance = max(1, edit_distance(better.split(), worse.split()))
    assert mean[1] == pytest.approx([value / distance for value in summed[1]])


@given(st.lists(TEXTS, min_size=4, max_size=4), st.permutations(range(4)))
@settings(max_examples=50, deadline=None)
def test_reordering_the_list_permutes_the_rows_and_turns_their_signs(texts: list[str], order: list[int]) -> None:
    four = NoiseSettings(hypotheses=4)
    before, _ = embed(texts, four)
    after, _ = embed([texts[i] for i in order], four)
    place = {pair: row for row, pair in enumerate(pairs(4))}
    for half in (0, 6):
        for (i, j), row in place.items():
            worse, better = order[i], order[j]
            sign, old = (1, place[worse, better]) if worse > better else (-1, place[better, worse])
            assert after[half + row] == [sign * value for value in before[half + old]]


def test_swapping_two_negates_their_row_and_swaps_those_with_a_third() -> None:
    before, _ = embed(["a b", "a c", "d"])
    after, _ = embed(["a c", "a b", "d"])
    for half in (0, 3):
        assert after[half] == [-value for value in before[half]]
        assert [after[half + 1], after[half + 2]] == [before[half + 2], before[half + 1]]


@pytest.mark.parametrize("text", ["the same words", "", "a"])
@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_a_list_of_equal_texts_gives_exact_zeros_that_are_valid(text: str, pool: str) -> None:
    chosen = NoiseSettings(token_pool=pool, width=32)  # type: ignore[arg-type]
    rows, valid = noise_embedding([text] * 5, HashNgramEncoder(32), chosen)
    assert not rows.any()
    assert valid.all()


def test_equal_texts_in_a_list_of_others_give_zeros_for_their_pair_alone() -> None:
    rows, _ = embed(["a b", "c d", "a b"])
    zero = [not any(row) for row in rows]
    assert zero == [False, True, False, False, True, False]


@pytest.mark.parametrize("count", range(2, 11))
def test_there_are_n_times_n_minus_one_rows(count: int) -> None:
    chosen = NoiseSettings(hypotheses=count, width=8)
    assert chosen.rows == count * (count - 1)
    rows, valid = noise_embedding([f"word{i}" for i in range(count)], HashNgramEncoder(8), chosen)
    assert rows.shape == (count * (count - 1), 8)
    assert valid.all()
    assert rows.any(axis=1).all()


@pytest.mark.parametrize("texts", [[], ["alone"]])
def test_without_a_second_hypothesis_no_row_is_valid(texts: list[str]) -> None:
    rows, valid = noise_embedding(texts, HashNgramEncoder(8), NoiseSettings(width=8))
    assert rows.shape == (20, 8)
    assert not rows.any()
    assert not valid.any()


def test_a_shorter_list_leaves_the_rows_of_missing_pairs_out() -> None:
    short, valid = embed(["a b", "a c"])
    whole, _ = embed(["a b", "a c", "d d"])
    assert valid == [True, False, False, True, False, False]
    assert [short[0], short[3]] == [whole[0], whole[3]]
    assert not any(map(any, [*short[1:3], *short[4:]]))


def test_hypotheses_after_the_last_compared_one_do_not_matter() -> None:
    assert embed(["a", "b", "c", "d"]) == embed(["a", "b", "c"])
