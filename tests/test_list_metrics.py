from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.errors import DataError
from audio_llm.list_metrics import ListScores, score_corrections, score_lists
from audio_llm.metrics import paired_p_value, utterance_errors
from audio_llm.nbest import Hypothesis, NBest, read_nbest
from audio_llm.text import NORMALIZERS

RAW = NORMALIZERS["raw"]
SAMPLES = Path(__file__).parents[1] / "samples" / "nbest"
TEXTS = st.lists(st.sampled_from("abc"), max_size=5).map(" ".join)


def nbest(reference: str | None, *texts: str, id: str = "u") -> NBest:
    return NBest(id, tuple(Hypothesis(text) for text in texts), reference)


LISTS = [
    nbest("the cat sat", "the cat sat", "the hat sat"),
    nbest("we went home", "we when home", "we went home", "we when home"),
    nbest("a big dog", "a big dog"),
    nbest("so it is not here", "so what his not her", "so it his not her"),
    nbest("", "uh"),
    nbest("yes"),
    nbest("all right", "all right", "All right"),
    nbest("no", "know"),
]
OUTPUTS = [
    "the hat sat",  # broken by a word of the list: harmful
    "we went home",  # right now: helpful
    "a big dog dog barks",  # broken: one harmful stretch with a repeated and a novel word
    "so it his not hair",  # better in part: one edit helpful, one neither, with a novel word
    "",  # a hallucinated word is removed: helpful
    "yes",  # in no hypothesis, and right: helpful and not made up
    "all right",  # kept
    "now",  # wrong before and after, and novel: neither
]


def test_what_hand_made_lists_hold() -> None:
    scores = score_lists(LISTS, RAW)
    first, oracle = scores.first.counts, scores.oracle.counts
    assert (first.substitutions, first.deletions, first.insertions) == (1 + 3 + 1, 1, 1)
    assert (first.words, first.utterances, first.normalizer) == (18, 8, "raw")
    assert first.rate == pytest.approx(7 / 18)
    assert (oracle.substitutions, oracle.deletions, oracle.insertions) == (2 + 1, 1, 1)
    assert scores.missing_words == 4  # is, here, yes, no
    assert scores.compositional_oracle_rate == pytest.approx(4 / 18)
    assert scores.right == 3
    assert scores.right_rate == pytest.approx(3 / 8)
    assert (scores.hypotheses, scores.distinct_hypotheses) == (12, 11)
    assert scores.first.interval.low <= first.rate <= scores.first.interval.high


def test_every_figure_depends_on_the_normalizer() -> None:
    assert score_lists(LISTS).distinct_hypotheses == 10  # `All right` is `all right`
    spelled = [nbest("fly n e c", "fly nec", "fly n. e. c.")]
    for name, errors, missing, right in (("spoken", 3, 0, 0), ("letters", 0, 0, 1)):
        scores = score_lists(spelled, NORMALIZERS[name])
        assert (scores.normalizer, scores.first.counts.normalizer) == (name, name)
        assert (scores.first.counts.errors, scores.missing_words, scores.right) == (errors, missing, right)
    changes = score_corrections(spelled, ["fly n e c"], NORMALIZERS["letters"]).changes
    assert (changes.changed, changes.edits) == (0, 0)


def test_what_hand_made_corrections_did() -> None:
    scores = score_corrections(LISTS, OUTPUTS, RAW)
    assert scores.lists == score_lists(LISTS, RAW)
    assert scores.output.counts.errors == 1 + 2 + 2 + 1
    assert scores.relative_change == pytest.approx(-1 / 7)
    assert scores.recovered == pytest.approx((7 - 6) / (7 - 5))
    assert scores.changed_rate == pytest.approx(7 / 8)
    assert scores.keep_correct_rate == pytest.approx(1 / 3)
    assert scores.broken_rate == pytest.approx(2 / 8)
    assert scores.fix_wrong_rate == pytest.approx(3 / 5)
    assert scores.improve_wrong_rate == pytest.approx(4 / 5)
    assert (scores.changes.harmful_edits, scores.changes.helpful_edits, scores.changes.edits) == (2, 4, 8)
    assert scores.harmful_edit_rate == pytest.approx(2 / 6)
    assert (scores.changes.novel_words, scores.changes.repeated_words) == (3, 1)
    assert scores.hallucinated_rate == pytest.approx(4 / 20)
    assert scores.length_ratio == pytest.approx(20 / 18)
    references = [nbest.reference or "" for nbest in LISTS]
    before, after = (utterance_errors(references, texts, RAW) for texts in ([n.best for n in LISTS], OUTPUTS))
    assert scores.p_value == paired_p_value(before, after)


def test_rate_of_the_set_is_not_the_mean_of_the_rates() -> None:
    lists = [nbest("a", "x"), nbest("b c d e f g h i j", "b c d e f g h i j")]
    scores = score_corrections(lists, ["x", "b c d e f g h i"], RAW)
    assert scores.lists.first.counts.rate == pytest.approx(1 / 10)  # the mean of the two would be 1/2
    assert scores.output.counts.rate == pytest.approx(2 / 10)
    assert scores.relative_change == pytest.approx(1.0)


def test_a_rate_without_items_is_none() -> None:
    scores = score_corrections([nbest("a b", "a b")], ["a b"], RAW)
    assert scores.relative_change is None
    assert scores.recovered is None
    assert scores.fix_wrong_rate is None
    assert scores.improve_wrong_rate is None
    assert scores.harmful_edit_rate is None
    assert (scores.keep_correct_rate, scores.broken_rate, scores.p_value) == (1.0, 0.0, 1.0)
    scores = score_corrections([nbest("a b", "a", "b")], [""], RAW)
    assert (scores.keep_correct_rate, scores.hallucinated_rate) == (None, None)
    assert scores.recovered is None  # no choice is better than the first
    assert (scores.relative_change, scores.harmful_edit_rate, scores.length_ratio) == (1.0, 1.0, 0.0)


def test_output_worse_than_the_first_and_better_than_any_choice() -> None:
    lists = [nbest("a b c", "x y c", "a y c")]
    assert score_corrections(lists, ["x y z"], RAW).recovered == pytest.approx(-1.0)
    assert score_corrections(lists, ["a b c"], RAW).recovered == pytest.approx(2.0)


def test_lists_that_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="'u7' has no reference"):
        score_lists([nbest(None, "a", id="u7")])
    for nothing in ([], [nbest("", "a")]):
        with pytest.raises(DataError, match="hold no words"):
            score_lists(nothing)
    with pytest.raises(DataError, match="2 lists but 1 outputs"):
        score_corrections(LISTS[:2], ["a"])


def rates(scores: ListScores) -> tuple[float, float, float]:
    """Return the rates that must not fall from one to the next."""
    return scores.compositional_oracle_rate, scores.oracle.counts.rate, scores.first.counts.rate


@pytest.mark.parametrize("name", ["cv.json", "ls_other.json"])
@pytest.mark.parametrize("normalizer", ["spoken", "letters"])
def test_bounds_of_the_samples_are_in_order(name: str, normalizer: str) -> None:
    composed, chosen, first = rates(score_lists(list(read_nbest(SAMPLES / name)), NORMALIZERS[normalizer]))
    assert 0 < composed < chosen < first < 0.2


@settings(max_examples=60, deadline=None)
@given(data=st.lists(st.tuples(TEXTS.filter(bool), st.lists(TEXTS, max_size=4), TEXTS), min_size=1, max_size=4))
def test_bounds_and_counts_hold_for_any_lists(data: list[tuple[str, list[str], str]]) -> None:
    lists = [nbest(reference, *texts) for reference, texts, _ in data]
    composed, chosen, first = rates(score_lists(lists, RAW))
    assert composed <= chosen <= first
    scores = score_corrections(lists, [output for *_, output in data], RAW)
    changes = scores.changes
    assert changes.harmful_edits + changes.helpful_edits <= changes.edits
    assert (changes.edits > 0) == (changes.changed > 0)
    assert changes.fixed <= changes.better <= changes.utterances - changes.right_before
    assert changes.novel_words + changes.repeated_words <= changes.output_words
    assert scores.output.counts.errors >= changes.novel_words + changes.repeated_words  # each is an error at least
    kept = score_corrections(lists, [nbest.best for nbest in lists], RAW)
    nothing_done = {field.name: getattr(kept.changes, field.name) for field in fields(kept.changes)}
    for name in ("changed", "better", "worse", "broken", "fixed", "edits", "novel_words", "repeated_words"):
        assert nothing_done[name] == 0
    assert kept.p_value == 1.0
    assert kept.recovered in (None, 0.0)
