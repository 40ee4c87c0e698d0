"""Tests of what may be written for a list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from audio_llm.ger.word_graph import TokenGraph, WordGraph, align_slots, any_words, confusion_network, slots

END = 0
SPELLING = {"a": (1,), "ab": (1, 2), "c": (3,), "abc": (1, 2, 3)}

texts = st.lists(st.sampled_from(sorted(SPELLING)), max_size=6).map(tuple)


def accepts(graph: WordGraph, tokens: list[int]) -> bool:
    token_graph = TokenGraph(graph, SPELLING, END)
    states = token_graph.start()
    for token in tokens:
        if token not in token_graph.allowed(states):
            return False
        states = token_graph.advance(states, token)
    return END in token_graph.allowed(states)


def spelled(words: tuple[str, ...]) -> list[int]:
    return [token for word in words for token in SPELLING[word]]


def test_network_of_a_list() -> None:
    lists = [("we", "go", "home"), ("we", "went", "home", "now"), ("go", "home")]
    assert confusion_network(lists) == [("we", ""), ("go", "went"), ("home",), ("", "now")]


@given(st.lists(texts, min_size=1, max_size=5))
def test_columns_of_the_slots_are_the_hypotheses(hypotheses: list[tuple[str, ...]]) -> None:
    columns = list(zip(*align_slots(hypotheses), strict=True)) or [()] * len(hypotheses)
    assert [tuple(word for word in column if word) for column in columns] == hypotheses


def test_words_inserted_at_one_position_share_their_slots() -> None:
    assert confusion_network([("a", "b"), ("a", "x", "y", "b"), ("a", "z", "b")]) == [
        ("a",),
        ("", "x", "z"),
        ("", "y"),
        ("b",),
    ]


@given(st.lists(texts, min_size=1, max_size=5))
def test_every_hypothesis_can_be_written(hypotheses: list[tuple[str, ...]]) -> None:
    for words in hypotheses:
        assert accepts(slots(hypotheses), spelled(words))
        assert accepts(any_words(hypotheses), spelled(words))


def test_what_no_slot_holds_cannot_be_written() -> None:
    graph = slots([("a", "c"), ("ab", "c")])
    assert accepts(graph, [1, 3])
    assert accepts(graph, [1, 2, 3])
    assert not accepts(graph, [3])
    assert not accepts(graph, [1])
    assert not accepts(graph, [1, 3, 3])


def test_words_of_the_list_in_any_order_and_number() -> None:
    graph = any_words([("a", "c")])
    assert accepts(graph, [3, 1, 1])
    assert not accepts(graph, [1, 2])


def test_beginnings_that_two_words_share_stay_open() -> None:
    graph = TokenGraph(any_words([("a", "abc")]), SPELLING, END)
    states = graph.advance(graph.start(), 1)
    assert graph.allowed(states) == [END, 1, 2]  # "a" is written, or the first token of "abc"
