"""Text in the vocabulary of a language model: phones and letters, or the pieces of one that is grown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.lm.causal import CausalLm
from audio_llm.touchtts.script import LETTER_TOKENS, LETTERS, PhoneScript, PieceScript, fit_durations, symbol_numbers
from audio_llm.touchtts.text import SYMBOLS, SpokenText, to_spoken

torch.set_num_threads(1)
PHONES = PhoneScript()


@given(st.text(alphabet=LETTERS, max_size=40))
def test_letters_come_back(words: str) -> None:
    numbers = PHONES.to_write(words)
    assert numbers.dtype == torch.int64
    assert PHONES.read(numbers.tolist()) == " ".join(words.split())


def test_other_signs_are_left_out() -> None:
    assert PHONES.read(PHONES.to_write("it's no. 5, Bob").tolist()) == "it's no ob"
    assert PHONES.to_write("").shape == (0,)


def test_symbols_have_the_numbers_of_their_order() -> None:
    assert symbol_numbers(SYMBOLS).tolist() == list(range(len(SYMBOLS)))
    with pytest.raises(KeyError):
        symbol_numbers(["HH1"])


def counted(*symbols: str) -> np.ndarray:
    return PHONES.to_say(SpokenText("", symbols, ())).counts(PHONES.units)


def utterances(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each symbol comes in utterances of 5 to 40 symbols, (count, S)."""
    chosen = [rng.integers(len(SYMBOLS), size=rng.integers(5, 40)) for _ in range(count)]
    return np.stack([counted(*(SYMBOLS[n] for n in own)) for own in chosen])


def test_durations_that_lengths_were_made_of_are_found() -> None:
    rng = np.random.default_rng(0)
    planted = rng.uniform(0.5, 5.0, size=len(SYMBOLS))
    symbols = utterances(600, rng)
    lengths = symbols @ planted
    found = fit_durations(symbols, lengths)
    assert found.shape == (len(SYMBOLS),)
    assert np.abs(found - planted).max() < 0.25
    noisy = fit_durations(symbols, np.round(lengths * rng.normal(1.0, 0.05, size=lengths.size)))
    assert np.corrcoef(noisy, planted)[0, 1] > 0.95


def test_durations_of_few_utterances_are_near_the_mean_and_never_nothing() -> None:
    symbols = np.stack([counted("AA", "B", ".")] * 3)
    found = fit_durations(symbols, np.array([9.0, 9.0, 9.0]))
    used = symbol_numbers(["AA", "B", "."]).numpy()
    assert found[used].sum() == pytest.approx(9.0, rel=0.05)
    assert found.min() >= 0.2
    assert np.allclose(np.delete(found, used), 3.0)  # of what was never said, the mean
    assert fit_durations(np.stack([counted("AA"), counted("B")]), np.array([100.0, 0.0])).min() >= 0.2


@pytest.fixture
def pieces(base: CausalLm) -> PieceScript:
    return PieceScript(base.tokenizer, base.network.config.vocab_size)


@pytest.mark.parametrize("words", ["the dog ran", "so it goes now", "zebra's", "x", "caf\u00e9 au lait"])
def test_pieces_come_back(pieces: PieceScript, words: str) -> None:
    numbers = pieces.to_write(words)
    assert numbers.dtype == torch.int64
    assert pieces.read(numbers.tolist()) == words


def test_pieces_take_the_time_of_their_characters(pieces: PieceScript) -> None:
    said = pieces.to_say(to_spoken("The dog ran."))
    assert len(said.numbers) < len("The dog ran.")  # whole words among them
    assert len(said.units) == len(said.numbers)
    units = torch.arange(1.0, pieces.units + 1.0)
    assert said.counts(pieces.units).sum() == len("the dog ran.")
    assert float(said.durations(units).sum()) == pytest.approx(float(said.counts(pieces.units) @ units.numpy()))
    written = pieces.to_write("the dog ran")
    assert float(pieces.time(written).sum()) == pytest.approx(LETTER_TOKENS * len("the dog ran"))


def test_pieces_of_other_signs_take_no_time(pieces: PieceScript) -> None:
    said = pieces.to_say(SpokenText("#%", (), ()))
    assert len(said.numbers)
    assert not said.durations(torch.ones(pieces.units)).any()
    assert pieces.to_write("").shape == (0,)
