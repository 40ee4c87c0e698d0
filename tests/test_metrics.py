from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.errors import DataError
from audio_llm.metrics import (
    ChangeCounts,
    bootstrap_interval,
    character_error_rate,
    compositional_oracle_errors,
    count_changes,
    oracle,
    paired_p_value,
    score_texts,
    utterance_errors,
    word_errors,
)
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.text import NORMALIZERS

RAW = NORMALIZERS["raw"]
WORDS = st.lists(st.sampled_from(["a", "b", "c", "it's"]), max_size=8).map(" ".join)


def nbest(reference: str | None, *texts: str) -> NBest:
    return NBest("u", tuple(Hypothesis(text) for text in texts), reference)


def test_rate_is_of_the_whole_set_not_the_mean_of_sentences() -> None:
    references = ["a", "b c d e f g h i j"]
    counts = word_errors(references, ["x", "b c d e f g h i j"])
    assert counts.rate == 0.1  # 1 of 10 words; the mean of the sentences would be 0.5
    assert (counts.substitutions, counts.deletions, counts.insertions) == (1, 0, 0)
    assert (counts.words, counts.utterances, counts.normalizer) == (10, 2, "spoken")


def test_counts_of_each_kind() -> None:
    counts = word_errors(["the cat sat on the mat", "go", ""], ["the hat sat the mat", "", "uh oh"])
    assert (counts.substitutions, counts.deletions, counts.insertions) == (1, 2, 2)
    assert counts.errors == 5
    assert counts.rate == pytest.approx(5 / 7)


def test_both_sides_go_through_the_normalizer() -> None:
    assert word_errors(["Mr. Smith paid 3."], ["mister smith paid three"]).errors == 0
    assert word_errors(["Mr. Smith paid 3."], ["mister smith paid three"], RAW).errors > 0


def test_empty_sets_and_empty_references() -> None:
    assert word_errors([], []).rate == 0.0
    assert word_errors([""], [""]).rate == 0.0
    assert word_errors([""], ["a"]).rate == float("inf")
    assert utterance_errors([], []).shape == (0, 4)
    with pytest.raises(DataError, match="1 references but 2 hypotheses"):
        word_errors(["a"], ["a", "b"])


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=5))
def test_jiwer_counts_as_many_errors(pairs: list[tuple[str, str]]) -> None:
    import jiwer

    references, hypotheses = ([pair[side] for pair in pairs] for side in (0, 1))
    ours, theirs = word_errors(references, hypotheses, RAW), jiwer.process_words(references, hypotheses)
    assert ours.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    assert ours.deletions - ours.insertions == theirs.deletions - theirs.insertions
    assert ours.rate == pytest.approx(theirs.wer)
    assert character_error_rate(references, hypotheses, RAW) == pytest.approx(jiwer.cer(references, hypotheses))


def test_character_errors_count_spaces() -> None:
    assert character_error_rate(["ab cd"], ["abcd"]) == pytest.approx(1 / 5)
    assert character_error_rate(["", "abcd"], ["x", "abcd"]) == pytest.approx(1 / 4)


def test_scores_of_texts_are_counts_and_interval() -> None:
    references, hypotheses = ["a b", "c d e", "f"], ["a b", "c x e", "f g"]
    scores = score_texts(references, hypotheses, RAW)
    assert scores.counts == word_errors(references, hypotheses, RAW)
    assert scores.interval == bootstrap_interval(utterance_errors(references, hypotheses, RAW))
    for nothing in ([], ["", " "]):
        with pytest.raises(DataError, match="hold no words"):
            score_texts(nothing, nothing, RAW)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        words = rng.integers(5, 20, size=80)
        errors = rng.binomial(words, 0.2)
        counts = np.stack([errors, 0 * errors, 0 * errors, words], axis=1)
        interval = bootstrap_interval(counts, resamples=300, seed=trial)
        assert interval.level == 0.95
        covered += interval.low <= 0.2 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_is_around_the_rate_reproducible_and_narrower_for_more() -> None:
    rng = np.random.default_rng(1)
    words = np.full(400, 10)
    counts = np.stack([rng.binomial(10, 0.3, 400), *np.zeros((2, 400), int), words], axis=1)
    wide, narrow = bootstrap_interval(counts[:40]), bootstrap_interval(counts)
    assert narrow == bootstrap_interval(counts)
    assert narrow.low < counts[:, 0].sum() / 4000 < narrow.high
    assert narrow.high - narrow.low < wide.high - wide.low
    lower = bootstrap_interval(counts, level=0.5)
    assert narrow.low < lower.low < lower.high < narrow.high
    exact = bootstrap_interval(np.array([[1, 0, 0, 4]] * 10))
    assert exact.low == exact.high == 0.25


def test_paired_test_tells_a_real_gain_from_chance_and_from_none() -> None:
    rng = np.random.default_rng(2)
    before = np.stack([rng.binomial(12, 0.3, 300), *np.zeros((2, 300), int), np.full(300, 12)], axis=1)
    better = before.copy()
    better[:, 0] = np.maximum(0, before[:, 0] - rng.binomial(1, 0.3, 300))
    assert paired_p_value(before, better) < 0.01
    assert paired_p_value(better, before) > 0.99
    assert paired_p_value(before, before) == 1.0
    mixed = before.copy()
    mixed[:10, 0] += [1, -1, 1, -1, 1, -1, 1, -1, 0, 0]
    assert 0.2 < paired_p_value(before, mixed) < 0.8
    # By hand: one of two utterances better, so a resample without it (probability 1/4) has no gain.
    two = np.array([[2, 0, 0, 5], [2, 0, 0, 5]])
    one_better = np.array([[1, 0, 0, 5], [2, 0, 0, 5]])
    assert paired_p_value(two, one_better, resamples=20_000) == pytest.approx(0.25, abs=0.01)


def test_changes_of_a_hand_example() -> None:
    lists = [
        nbest("the cat sat", "the cat sat"),  # right, stays
        nbest("the cat sat", "the hat sat", "the cat sad"),  # wrong, becomes right
        nbest("a big dog", "a big dog"),  # right, is broken with a word out of nowhere
        nbest("we went home", "we when home", "he went home"),  # a right word lost, another gained
        nbest("so it is", "so it was", "so it his"),  # wrong, made worse
        nbest("yes", "yet"),  # wrong before and after
    ]
    outputs = ["The cat sat.", "the cat sat", "a big zebra", "he went home", "see it was his", "yet"]
    assert count_changes(lists, outputs) == ChangeCounts(
        utterances=6,
        changed=4,
        better=1,
        worse=2,
        right_before=2,
        broken=1,
        fixed=1,
        harmed_words=3,  # dog, we, so
        right_words=3 + 2 + 3 + 2 + 2 + 0,
        novel_words=2,  # zebra, see
        repeated_words=0,
        output_words=3 + 3 + 3 + 3 + 4 + 1,
        edits=1 + 1 + 1 + 2,
        helpful_edits=1,  # hat
        harmful_edits=1 + 2,  # dog; so and another word
    )


def test_an_edit_is_classified_by_undoing_it_alone() -> None:
    # Of four edits two help, one harms, one does neither; the errors of the whole fall by one only.
    before, after = "it were a gold and windy day on way", "it was a cold and windy night on say"
    changes = count_changes([nbest("it was a cold and windy day in may", before)], [after], RAW)
    assert (changes.edits, changes.helpful_edits, changes.harmful_edits) == (4, 2, 1)
    assert changes.better == 1


def test_words_beyond_reference_and_hypotheses_are_hallucinated() -> None:
    lists = [nbest("no no more", "oh no", "no oh")]
    changes = count_changes(lists, ["no no no oh oh my my"], RAW)
    assert changes.novel_words == 2  # my, twice
    assert (
        changes.repeated_words == 2
    )  # the third `no`: the reference has two; the second `oh`: each hypothesis has one
    assert count_changes(lists, [lists[0].best], RAW).repeated_words == 0
    assert count_changes(lists, ["no no more"], RAW).novel_words == 0


def test_changes_need_references_and_lists_that_may_be_empty() -> None:
    with pytest.raises(DataError, match="no reference"):
        count_changes([nbest(None, "a")], ["a"])
    counts = count_changes([nbest("a b")], [""])
    assert (counts.utterances, counts.changed, counts.right_words) == (1, 0, 0)


def test_oracle_is_the_best_of_the_list_and_the_first_of_equals() -> None:
    lists = nbest("the cat sat", "the hat sat", "The cat sat.", "the cat sat")
    assert oracle(lists) == "The cat sat."
    assert oracle(lists, depth=1) == "the hat sat"
    assert oracle(nbest("a b", "a x", "x b")) == "a x"
    assert oracle(nbest("a b")) == ""
    rates = [word_errors(["the cat sat"], [text]).rate for text in (lists.best, oracle(lists))]
    assert rates == [pytest.approx(1 / 3), 0.0]


def test_words_that_no_hypothesis_has() -> None:
    lists = [nbest("the cat sat", "the hat sat", "a cat"), nbest("go go home", "to home"), nbest("a")]
    assert compositional_oracle_errors(lists) == 0 + 2 + 1
