from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from audio_llm.align import edit_distance
from audio_llm.nbest import NBest
from audio_llm.simulation.confusions import Confusions
from audio_llm.simulation.lists import ListNoise, simulate_list

# Six letters each: words this long are neither dropped nor split, so that only a span without the correct words
# removes a word from the list.
WORDS = ("garden", "yellow", "mother", "winter", "silver", "planet", "orange", "castle", "dragon", "bridge")
SENTENCE = " ".join(WORDS)
TABLE = {word: ((word[:-1], 0.5), (f"{word}s", 0.3), (f"{word[:3]} {word[3:]}", 0.2)) for word in WORDS}
CONFUSIONS = Confusions(TABLE, ())
NOISY = ListNoise(clean_prob=0.0, mean_rate=0.4)


def simulate(
    settings: ListNoise, count: int = 60, text: str = SENTENCE, confusions: Confusions = CONFUSIONS
) -> list[NBest]:
    return [simulate_list(f"{i}", text, confusions, settings, np.random.default_rng(i)) for i in range(count)]


def error_rate(lists: list[NBest], every: bool = False) -> float:
    """Word errors of the first hypotheses, or of all, per word."""
    pairs = [(nbest.reference or "", text) for nbest in lists for text in (nbest.texts if every else nbest.texts[:1])]
    errors = sum(edit_distance(reference.split(), text.split()) for reference, text in pairs)
    return errors / sum(len(reference.split()) for reference, _ in pairs)


def test_a_seed_repeats_its_list_and_another_differs() -> None:
    assert simulate(NOISY) == simulate(NOISY)
    assert len({nbest.texts for nbest in simulate(NOISY)}) > 50


def test_name_and_reference_stay() -> None:
    for number, nbest in enumerate(simulate(NOISY)):
        assert nbest.id == str(number)
        assert nbest.reference == SENTENCE


@pytest.mark.parametrize("hypotheses", [1, 2, 5, 10])
@pytest.mark.parametrize("distinct_prob", [0.0, 1.0])
def test_every_list_has_as_many_entries_as_asked(hypotheses: int, distinct_prob: float) -> None:
    settings = replace(NOISY, hypotheses=hypotheses, distinct_prob=distinct_prob)
    for text in (SENTENCE, "garden", ""):
        assert {len(nbest.texts) for nbest in simulate(settings, 20, text)} == {hypotheses}


def test_the_likeliest_comes_first() -> None:
    for nbest in simulate(NOISY):
        scores = [hypothesis.score or 0.0 for hypothesis in nbest.hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert all(np.isfinite(scores))
        assert max(scores) <= 0


def test_a_clean_list_holds_the_reference_alone() -> None:
    for nbest in simulate(replace(NOISY, clean_prob=1.0)):
        assert set(nbest.texts) == {SENTENCE}
    shares = [len(set(n.texts)) == 1 for n in simulate(replace(NOISY, clean_prob=0.5, distinct_prob=1.0), 200)]
    assert 0.4 < np.mean(shares) < 0.65  # and a few in which nothing happened to be uncertain


def test_the_error_rate_rises_with_the_rate_of_uncertain_spans() -> None:
    rates = [error_rate(simulate(replace(NOISY, mean_rate=rate), 150), every=True) for rate in (0.02, 0.1, 0.4)]
    assert rates[0] < 0.6 * rates[1]
    assert rates[1] < 0.6 * rates[2]


def test_the_larger_the_advantage_of_the_correct_words_the_fewer_errors_come_first() -> None:
    settings = replace(NOISY, missing_prob=0.0)
    rates = [error_rate(simulate(replace(settings, advantage=(mean, 0.5)), 100)) for mean in (-4.0, 1.0, 8.0)]
    assert rates[0] > 1.5 * rates[1]
    assert rates[1] > 0.05
    assert rates[2] < 0.01


def test_without_the_correct_words_in_uncertain_spans_no_hypothesis_is_correct() -> None:
    lists = simulate(replace(NOISY, missing_prob=1.0), 200)
    uncertain = [nbest for nbest in lists if set(nbest.texts) != {SENTENCE}]
    assert len(uncertain) > 150
    assert not any(SENTENCE in nbest.texts for nbest in uncertain)
    assert error_rate(uncertain) > 0.1


def test_with_the_correct_words_in_every_span_the_list_contains_the_reference() -> None:
    few = ListNoise(hypotheses=10, clean_prob=0.0, mean_rate=0.1, missing_prob=0.0, distinct_prob=1.0)
    lists = simulate(replace(few, advantage=(1.0, 0.3)), 100)
    assert np.mean([SENTENCE in nbest.texts for nbest in lists]) > 0.9


def test_lists_are_of_different_texts_or_repeat_the_likely_ones() -> None:
    distinct = simulate(replace(NOISY, distinct_prob=1.0), 100)
    repeated = simulate(replace(NOISY, distinct_prob=0.0), 100)
    different = [np.mean([len(set(nbest.texts)) for nbest in lists]) for lists in (distinct, repeated)]
    assert different[0] > different[1] + 0.3
    counts = Counter[int]()
    for nbest in repeated:
        for rank, (_, count) in enumerate(Counter(nbest.texts).items()):
            counts[rank] += count
    assert counts[0] > 1.5 * counts[1] > 1.5 * counts[2]  # the first text the most copies


def test_replacements_come_from_the_table() -> None:
    only = Confusions({"planet": (("plan it", 0.5), ("", 0.5))}, ())
    texts = {text for nbest in simulate(NOISY, 300, "the planet", only) for text in nbest.texts}
    assert {"the planet", "the plan it", "the"} <= texts
    words = Counter(word for text in texts for word in text.split())
    assert not set(words) & {"yellow", "planets"}


def test_words_outside_the_table_may_be_deleted_joined_split_or_followed_by_another() -> None:
    none = Confusions({}, ())
    texts = {text for n in simulate(replace(NOISY, mean_rate=0.6), 400, "we saw everything", none) for text in n.texts}
    assert {"we saw everything", "saw everything", "wesaw everything"} <= texts
    assert any(len(text.split()) == 4 and "everything" in text for text in texts)  # a small word put in
    assert any(text.startswith("we saw eve") and "everything" not in text for text in texts)  # in two


def test_an_empty_sentence_stays_empty() -> None:
    for nbest in simulate(NOISY, 5, ""):
        assert set(nbest.texts) == {""}
        assert nbest.reference == ""
