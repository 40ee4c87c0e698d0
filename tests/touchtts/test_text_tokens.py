"""Text in the vocabulary of a language model: phones and letters, or the word pieces of a pretrained one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.lm.causal import CausalLm
from audio_llm.touchtts.text import SYMBOLS, NormalizedText, normalize_text
from audio_llm.touchtts.text_tokens import (
    LETTER_TOKENS,
    LETTERS,
    PhoneTokens,
    PieceTokens,
    fit_durations,
    symbol_numbers,
)

torch.set_num_threads(1)
PHONES = PhoneTokens()


@given(st.text(alphabet=LETTERS, max_size=40))
def test_letters_come_back(words: str) -> None:
    numbers = PHONES.encode_output(words)
    assert numbers.dtype == torch.int64
    assert PHONES.decode(numbers.tolist()) == " ".join(words.split())


def test_other_signs_are_left_out() -> None:
    assert PHONES.decode(PHONES.encode_output("it's no. 5, Bob").tolist()) == "it's no ob"
    assert PHONES.encode_output("").shape == (0,)


def test_symbols_have_the_numbers_of_their_order() -> None:
    assert symbol_numbers(SYMBOLS).tolist() == list(range(len(SYMBOLS)))
    with pytest.raises(KeyError):
        symbol_numbers(["HH1"])


def counted(*symbols: str) -> np.ndarray:
    return PHONES.encode_input(NormalizedText("", symbols, ())).counts(PHONES.units)


def utterances(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each symbol comes in utterances of 5 to 40 symbols, (count, S)."""
    chosen = [rng.integers(len(SYMBOLS), size=rng.integers(5, 40)) for _ in range(count)]
    return np.stack([counted(*(SYMBOLS[n] for n in numbers)) for numbers in chosen])


def test_the_durations_behind_the_lengths_are_estimated() -> None:
    rng = np.random.default_rng(0)
    planted = rng.uniform(0.5, 5.0, size=len(SYMBOLS))
    symbols = utterances(600, rng)
    lengths = symbols @ planted
    fitted = fit_durations(symbols, lengths)
    assert fitted.shape == (len(SYMBOLS),)
    assert np.abs(fitted - planted).max() < 0.25
    noisy = fit_durations(symbols, np.round(lengths * rng.normal(1.0, 0.05, size=lengths.size)))
    assert np.corrcoef(noisy, planted)[0, 1] > 0.95


def test_durations_of_few_utterances_are_near_the_mean_and_never_nothing() -> None:
    symbols = np.stack([counted("AA", "B", ".")] * 3)
    fitted = fit_durations(symbols, np.array([9.0, 9.0, 9.0]))
    used = symbol_numbers(["AA", "B", "."]).numpy()
    assert fitted[used].sum() == pytest.approx(9.0, rel=0.05)
    assert fitted.min() >= 0.2
    assert np.allclose(np.delete(fitted, used), 3.0)  # units that never occur get the mean
    assert fit_durations(np.stack([counted("AA"), counted("B")]), np.array([100.0, 0.0])).min() >= 0.2


@pytest.fixture
def pieces(base: CausalLm) -> PieceTokens:
    return PieceTokens(base.tokenizer, base.network.config.vocab_size)


@pytest.mark.parametrize("words", ["the dog ran", "so it goes now", "zebra's", "x", "caf\u00e9 au lait"])
def test_pieces_come_back(pieces: PieceTokens, words: str) -> None:
    numbers = pieces.encode_output(words)
    assert numbers.dtype == torch.int64
    assert pieces.decode(numbers.tolist()) == words


def test_pieces_take_the_time_of_their_characters(pieces: PieceTokens) -> None:
    encoded = pieces.encode_input(normalize_text("The dog ran."))
    assert len(encoded.numbers) < len("The dog ran.")  # whole words among them
    assert len(encoded.units) == len(encoded.numbers)
    units = torch.arange(1.0, pieces.units + 1.0)
    assert encoded.counts(pieces.units).sum() == len("the dog ran.")
    assert float(encoded.durations(units).sum()) == pytest.approx(float(encoded.counts(pieces.units) @ units.numpy()))
    written = pieces.encode_output("the dog ran")
    assert float(pieces.output_durations(written).sum()) == pytest.approx(LETTER_TOKENS * len("the dog ran"))


def test_pieces_of_other_signs_take_no_time(pieces: PieceTokens) -> None:
    encoded = pieces.encode_input(NormalizedText("#%", (), ()))
    assert len(encoded.numbers)
    assert not encoded.durations(torch.ones(pieces.units)).any()
    assert pieces.encode_output("").shape == (0,)
