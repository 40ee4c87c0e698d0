"""Tests of mixed n-gram models."""

from __future__ import annotations

import math

import pytest

from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.mixture import MixedLm
from audio_llm.lm.ngram import END

ONE = train_ngram(["the cat sat", "the cat ran", "a dog sat"])
OTHER = train_ngram(["show me flights", "show me the fares"], order=2)


def test_every_word_gets_the_mean_probability() -> None:
    mixed = MixedLm((ONE, OTHER))
    for history, word in (((), "the"), (("show",), "me"), (("the", "cat"), "sat"), (("me", "the"), END)):
        mean = (math.exp(ONE.score(history, word)) + math.exp(OTHER.score(history, word))) / 2
        assert mixed.score(history, word) == pytest.approx(math.log(mean))
        assert mixed.score(("other", *history) if len(history) > 1 else history, word) == mixed.score(history, word)


def test_a_sentence_is_the_sum_of_its_words_and_its_end() -> None:
    mixed = MixedLm((ONE, OTHER))
    words = ("show", "the", "cat")
    by_hand = sum(mixed.score(words[:place], word) for place, word in enumerate((*words, END)))
    assert mixed.log_prob(words) == pytest.approx(by_hand)
    assert mixed.log_probs([words, ()]) == pytest.approx([by_hand, mixed.score((), END)])


def test_one_model_alone_is_itself_and_any_model_knows_a_word() -> None:
    assert MixedLm((ONE,)).log_prob(("the", "dog", "sat")) == pytest.approx(
        ONE.log_prob(("the", "dog", "sat")), abs=1e-4
    )
    mixed = MixedLm((ONE, OTHER))
    assert "dog" in mixed
    assert "flights" in mixed
    assert "bird" not in mixed
