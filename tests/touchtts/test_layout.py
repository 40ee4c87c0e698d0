"""Rows of text and speech: what stands where, and when it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.errors import UsageError
from audio_llm.lm.token_lm import Sequence
from audio_llm.lm.vocabulary import BOS, PAD, Vocabulary
from audio_llm.touchtts.layout import (
    LETTER,
    LETTER_TOKENS,
    LETTERS,
    MARK,
    SPEECH,
    SYMBOL,
    VOICE,
    Mark,
    Segment,
    fit_durations,
    heard_row,
    letter_numbers,
    letter_row,
    speech_row,
    spell,
    stack_rows,
    symbol_numbers,
    text_row,
)
from audio_llm.touchtts.text import SYMBOLS

torch.set_num_threads(1)
SIZES = {MARK: len(Mark), VOICE: 2, SYMBOL: len(SYMBOLS), LETTER: len(LETTERS), SPEECH: 80}
VOCABULARY = Vocabulary(SIZES)
DURATIONS = torch.arange(len(SYMBOLS)) * 0.25 + 0.5


def ids(name: str, *tokens: int) -> list[int]:
    return VOCABULARY.encode(name, torch.tensor(tokens)).tolist()


def test_text_stands_where_it_should_be_said() -> None:
    symbols = symbol_numbers(["HH", "AY", "."])
    row = text_row(symbols, 1, DURATIONS, VOCABULARY)
    expected = [BOS, *ids(MARK, Mark.TTS), *ids(VOICE, 1), *ids(SYMBOL, *symbols.tolist()), *ids(MARK, Mark.AUDIO)]
    assert row.ids.tolist() == [expected]
    assert row.segments.tolist() == [[Segment.TEXT] * 6 + [Segment.SPEECH]]
    long = DURATIONS[symbols].tolist()
    middles = [long[0] / 2, long[0] + long[1] / 2, long[0] + long[1] + long[2] / 2]
    assert row.positions[0].tolist() == pytest.approx([0.0, 0.0, 0.0, *middles, 0.0])


def test_speech_that_is_heard_stands_at_its_time() -> None:
    row = heard_row(torch.tensor([7, 0, 79]), VOCABULARY)
    assert row.ids.tolist() == [[BOS, *ids(MARK, Mark.ASR), *ids(SPEECH, 7, 0, 79), *ids(MARK, Mark.TEXT)]]
    assert row.segments.tolist() == [[Segment.SPEECH] * 5 + [Segment.TEXT]]
    assert row.positions.tolist() == [[0.0, 0.0, 0.5, 1.5, 2.5, 0.0]]
    assert heard_row(torch.zeros(0, dtype=torch.int64), VOCABULARY).ids.shape == (1, 3)


def test_speech_and_letters_are_of_their_streams() -> None:
    speech = speech_row(torch.tensor([3, 4]), torch.tensor([0.7, 9.0]), VOCABULARY)
    assert speech.ids.tolist() == [ids(SPEECH, 3, 4)]
    assert speech.positions.tolist() == [pytest.approx([0.7, 9.0])]
    assert speech.segments.tolist() == [[Segment.SPEECH] * 2]
    letters = letter_numbers("hi")
    both = letter_row(letters, VOCABULARY)
    assert both.ids.tolist() == [ids(LETTER, *letters.tolist())]
    assert both.segments.tolist() == [[Segment.TEXT] * 2]
    second = letter_row(letters[1:], VOCABULARY, first=1)
    assert second.positions.tolist() == [both.positions[0, 1:].tolist()]
    assert both.positions[0].tolist() == pytest.approx([0.5 * LETTER_TOKENS, 1.5 * LETTER_TOKENS])


def test_tokens_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(UsageError, match="another one"):
        heard_row(torch.tensor([80]), VOCABULARY)


@pytest.mark.parametrize("left", [False, True])
def test_rows_are_padded_on_one_side(left: bool) -> None:
    rows = [heard_row(torch.arange(count), VOCABULARY) for count in (1, 5, 3)]
    stacked = stack_rows(rows, left)
    assert stacked.ids.shape == stacked.segments.shape == stacked.positions.shape == (3, 8)
    for number, row in enumerate(rows):
        size = row.ids.shape[1]
        own = slice(8 - size, 8) if left else slice(0, size)
        padding = slice(0, 8 - size) if left else slice(size, 8)
        for part, wanted in zip(stacked, row, strict=True):
            assert torch.equal(part[number, own], wanted[0])
        assert (stacked.ids[number, padding] == PAD).all()
        assert not stacked.positions[number, padding].any()
        assert not stacked.segments[number, padding].any()
    assert stacked.ids.dtype == stacked.segments.dtype == torch.int64
    assert stacked.positions.dtype == torch.float32
    alone = stack_rows(rows[:1], left)
    assert all(torch.equal(part, wanted) for part, wanted in zip(alone, rows[0], strict=True))
    assert isinstance(stacked, Sequence)


@given(st.text(alphabet=LETTERS, max_size=40))
def test_letters_come_back(words: str) -> None:
    numbers = letter_numbers(words)
    assert numbers.dtype == torch.int64
    assert spell(numbers.tolist()) == " ".join(words.split())


def test_other_signs_are_left_out() -> None:
    assert spell(letter_numbers("it's no. 5, Bob").tolist()) == "it's no ob"
    assert letter_numbers("").shape == (0,)


def test_symbols_have_the_numbers_of_their_order() -> None:
    assert symbol_numbers(SYMBOLS).tolist() == list(range(len(SYMBOLS)))
    with pytest.raises(KeyError):
        symbol_numbers(["HH1"])


def utterances(count: int, rng: np.random.Generator) -> list[list[str]]:
    return [[SYMBOLS[n] for n in rng.integers(len(SYMBOLS), size=rng.integers(5, 40))] for _ in range(count)]


def test_durations_that_lengths_were_made_of_are_found() -> None:
    rng = np.random.default_rng(0)
    planted = rng.uniform(0.5, 5.0, size=len(SYMBOLS))
    symbols = utterances(600, rng)
    lengths = np.array([planted[symbol_numbers(own).numpy()].sum() for own in symbols])
    found = fit_durations(symbols, lengths)
    assert found.shape == (len(SYMBOLS),)
    assert np.abs(found - planted).max() < 0.25
    noisy = fit_durations(symbols, np.round(lengths * rng.normal(1.0, 0.05, size=lengths.size)))
    assert np.corrcoef(noisy, planted)[0, 1] > 0.95


def test_durations_of_few_utterances_are_near_the_mean_and_never_nothing() -> None:
    symbols = [["AA", "B", "."]] * 3
    found = fit_durations(symbols, np.array([9.0, 9.0, 9.0]))
    used = symbol_numbers(["AA", "B", "."]).numpy()
    assert found[used].sum() == pytest.approx(9.0, rel=0.05)
    assert found.min() >= 0.2
    assert np.allclose(np.delete(found, used), 3.0)  # of what was never said, the mean
    assert fit_durations([["AA"], ["B"]], np.array([100.0, 0.0])).min() >= 0.2
