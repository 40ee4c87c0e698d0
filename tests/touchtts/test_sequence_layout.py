"""Sequences of text and speech: tokens, segments and positions."""

from __future__ import annotations

import pytest
import torch

from audio_llm.errors import UsageError
from audio_llm.lm.token_lm import Sequence
from audio_llm.lm.vocabulary import BOS, PAD, Vocabulary
from audio_llm.touchtts.sequence_layout import (
    MARK,
    SPEECH,
    VOICE,
    Mark,
    Segment,
    recognition_row,
    speech_row,
    stack_rows,
    text_row,
    transcript_row,
)
from audio_llm.touchtts.text import SYMBOLS, NormalizedText
from audio_llm.touchtts.text_tokens import LETTER, LETTER_TOKENS, LETTERS, SYMBOL, PhoneTokens, symbol_numbers

torch.set_num_threads(1)
SIZES = {MARK: len(Mark), VOICE: 2, SYMBOL: len(SYMBOLS), LETTER: len(LETTERS), SPEECH: 80}
VOCABULARY = Vocabulary(SIZES)
TEXT_TOKENS = PhoneTokens()
DURATIONS = torch.arange(len(SYMBOLS)) * 0.25 + 0.5


def ids(name: str, *tokens: int) -> list[int]:
    return VOCABULARY.encode(name, torch.tensor(tokens)).tolist()


def test_text_tokens_have_the_positions_of_their_expected_times() -> None:
    symbols = symbol_numbers(["HH", "AY", "."])
    text = TEXT_TOKENS.encode_input(NormalizedText("hi", ("HH", "AY", "."), ()))
    row = text_row(text, 1, DURATIONS, TEXT_TOKENS, VOCABULARY)
    expected = [BOS, *ids(MARK, Mark.TTS), *ids(VOICE, 1), *ids(SYMBOL, *symbols.tolist()), *ids(MARK, Mark.AUDIO)]
    assert row.ids.tolist() == [expected]
    assert row.segments.tolist() == [[Segment.TEXT] * 6 + [Segment.SPEECH]]
    long = DURATIONS[symbols].tolist()
    middles = [long[0] / 2, long[0] + long[1] / 2, long[0] + long[1] + long[2] / 2]
    assert row.positions[0].tolist() == pytest.approx([0.0, 0.0, 0.0, *middles, 0.0])


def test_speech_tokens_have_the_positions_of_their_times() -> None:
    row = recognition_row(torch.tensor([7, 0, 79]), VOCABULARY)
    assert row.ids.tolist() == [[BOS, *ids(MARK, Mark.ASR), *ids(SPEECH, 7, 0, 79), *ids(MARK, Mark.TEXT)]]
    assert row.segments.tolist() == [[Segment.SPEECH] * 5 + [Segment.TEXT]]
    assert row.positions.tolist() == [[0.0, 0.0, 0.5, 1.5, 2.5, 0.0]]
    assert recognition_row(torch.zeros(0, dtype=torch.int64), VOCABULARY).ids.shape == (1, 3)


def test_speech_and_letters_are_of_their_streams() -> None:
    speech = speech_row(torch.tensor([3, 4]), torch.tensor([0.7, 9.0]), VOCABULARY)
    assert speech.ids.tolist() == [ids(SPEECH, 3, 4)]
    assert speech.positions.tolist() == [pytest.approx([0.7, 9.0])]
    assert speech.segments.tolist() == [[Segment.SPEECH] * 2]
    letters = TEXT_TOKENS.encode_output("hi")
    both = transcript_row(letters, TEXT_TOKENS, VOCABULARY)
    assert both.ids.tolist() == [ids(LETTER, *letters.tolist())]
    assert both.segments.tolist() == [[Segment.TEXT] * 2]
    assert both.positions[0].tolist() == pytest.approx([0.5 * LETTER_TOKENS, 1.5 * LETTER_TOKENS])


def test_tokens_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(UsageError, match="another one"):
        recognition_row(torch.tensor([80]), VOCABULARY)


@pytest.mark.parametrize("left", [False, True])
def test_rows_are_padded_on_one_side(left: bool) -> None:
    rows = [recognition_row(torch.arange(count), VOCABULARY) for count in (1, 5, 3)]
    stacked = stack_rows(rows, left)
    assert stacked.ids.shape == stacked.segments.shape == stacked.positions.shape == (3, 8)
    for number, row in enumerate(rows):
        size = row.ids.shape[1]
        filled = slice(8 - size, 8) if left else slice(0, size)
        padding = slice(0, 8 - size) if left else slice(size, 8)
        for part, expected in zip(stacked, row, strict=True):
            assert torch.equal(part[number, filled], expected[0])
        assert (stacked.ids[number, padding] == PAD).all()
        assert not stacked.positions[number, padding].any()
        assert not stacked.segments[number, padding].any()
    assert stacked.ids.dtype == stacked.segments.dtype == torch.int64
    assert stacked.positions.dtype == torch.float32
    alone = stack_rows(rows[:1], left)
    assert all(torch.equal(part, expected) for part, expected in zip(alone, rows[0], strict=True))
    assert isinstance(stacked, Sequence)
