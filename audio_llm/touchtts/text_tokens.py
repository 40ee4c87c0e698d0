"""How text is written in a language model's vocabulary: as phones and letters, or as the pieces of a grown model."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from audio_llm.touchtts.text import MARKS, SYMBOLS, NormalizedText

SYMBOL, LETTER, PIECE = "symbol", "letter", "piece"  # ranges of tokens
LETTERS = " abcdefghijklmnopqrstuvwxyz'"
LETTER_TOKENS = 1.7  # speech tokens that a letter takes, roughly
_CHARACTERS = "".join(MARKS) + LETTERS  # what pieces are made of; others take no time
_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS)}
_LETTER_OF = {letter: number for number, letter in enumerate(LETTERS)}
_CHARACTER_OF = {character: number for number, character in enumerate(_CHARACTERS)}


class TokenizedText(NamedTuple):
    """A text that is to be said.

    Attributes:
        numbers: (T,) int64, its tokens in the range.
        units: What of `TextTokens.units` each is made of.
    """

    numbers: Tensor
    units: list[tuple[int, ...]]

    def durations(self, of_units: Tensor) -> Tensor:
        """Return how long each token takes, (T,) float32, from how long units take, (U,)."""
        token_index = torch.tensor(
            [number for number, token_units in enumerate(self.units) for _ in token_units], dtype=torch.int64
        )
        unit_index = torch.tensor(
            [unit_index for token_units in self.units for unit_index in token_units], dtype=torch.int64
        )
        return of_units.new_zeros(len(self.units)).index_add(0, token_index, of_units[unit_index])

    def counts(self, units: int) -> np.ndarray:
        """Return how often each unit comes in the text, (U,) float64."""
        unit_counts = np.zeros(units)
        np.add.at(unit_counts, [unit for token_units in self.units for unit in token_units], 1.0)
        return unit_counts


class TextTokens(Protocol):
    """A way to write text.

    Attributes:
        ranges: Ranges of tokens that it needs, and how many each has.
        spoken: Range of what is to be said.
        written: Range of what is written down.
        units: How many kinds of things there are that each take a time of their own.
    """

    @property
    def ranges(self) -> Mapping[str, int]: ...
    @property
    def input_range(self) -> str: ...
    @property
    def output_range(self) -> str: ...
    @property
    def units(self) -> int: ...

    def encode_input(self, text: NormalizedText) -> TokenizedText:
        """Return a text that is to be said."""
        ...

    def encode_output(self, words: str) -> Tensor:
        """Return normalised words as tokens (T,) int64 of the range `written`; empty where there are none."""
        ...

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the words of tokens that were written."""
        ...

    def output_durations(self, numbers: Tensor) -> Tensor:
        """Return how long each token that was written takes, roughly: (T,) float32 in speech tokens."""
        ...


class PhoneTokens:
    """Says phones and writes letters: what little data can teach."""

    ranges: Mapping[str, int] = {SYMBOL: len(SYMBOLS), LETTER: len(LETTERS)}
    input_range, output_range, units = SYMBOL, LETTER, len(SYMBOLS)

    def encode_input(self, text: NormalizedText) -> TokenizedText:
        """See `TextTokens.encode_input`."""
        numbers = symbol_numbers(text.symbols)
        return TokenizedText(numbers, [(number,) for number in numbers.tolist()])

    def encode_output(self, words: str) -> Tensor:
        """See `TextTokens.encode_output`; accents are dropped, and signs that are no letters."""
        plain = unicodedata.normalize("NFKD", words)
        return torch.tensor([_LETTER_OF[letter] for letter in plain if letter in _LETTER_OF], dtype=torch.int64)

    def decode(self, numbers: Sequence[int]) -> str:
        """See `TextTokens.decode`."""
        return " ".join("".join(LETTERS[number] for number in numbers).split())

    def output_durations(self, numbers: Tensor) -> Tensor:
        """See `TextTokens.output_durations`."""
        return torch.full((len(numbers),), LETTER_TOKENS)


class PieceTokens:
    """Says and writes the pieces of words that a language model has learned to read and write.

    Args:
        tokenizer: Of transformers.
        size: Of the model's vocabulary.
    """

    input_range, output_range, units = PIECE, PIECE, len(_CHARACTERS)

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.ranges: Mapping[str, int] = {PIECE: size}
        self._tokenizer = tokenizer
        self._units = functools.lru_cache(maxsize=None)(self._units_of)

    def encode_input(self, text: NormalizedText) -> TokenizedText:
        """See `TextTokens.encode_input`."""
        numbers = self._encode(text.text)
        return TokenizedText(numbers, [self._units(number) for number in numbers.tolist()])

    def encode_output(self, words: str) -> Tensor:
        """See `TextTokens.encode_output`."""
        return self._encode(words)

    def decode(self, numbers: Sequence[int]) -> str:
        """See `TextTokens.decode`."""
        return " ".join(str(self._tokenizer.decode(list(numbers), skip_special_tokens=True)).split())

    def output_durations(self, numbers: Tensor) -> Tensor:
        """See `TextTokens.output_durations`."""
        return torch.tensor([LETTER_TOKENS * len(self._units(number)) for number in numbers.tolist()])

    def _encode(self, text: str) -> Tensor:
        ids = self._tokenizer.encode(text, add_special_tokens=False) if text else []
        return torch.tensor(ids, dtype=torch.int64)

    def _units_of(self, number: int) -> tuple[int, ...]:
        text = str(self._tokenizer.decode([number])).lower()
        return tuple(_CHARACTER_OF[character] for character in text if character in _CHARACTER_OF)


def symbol_numbers(symbols: Sequence[str]) -> Tensor:
    """Return the numbers (T,) int64 of `text.SYMBOLS`."""
    return torch.tensor([_NUMBER_OF[symbol] for symbol in symbols], dtype=torch.int64)


def fit_durations(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return how many tokens each unit of text takes on average, (U,) float64, from the lengths of whole utterances.

    Args:
        counts: (N, U), how often each unit comes in an utterance.
        lengths: (N,), tokens of each.
    """
    from scipy.optimize import nnls

    units = counts.shape[1]
    usual = np.full(units, lengths.sum() / max(1.0, counts.sum()))
    weight = np.sqrt(len(counts) / 50.0 + 1.0)  # a pull to the mean, for units that are rare
    table, target = np.concatenate([counts, weight * np.eye(units)]), np.concatenate([lengths, weight * usual])
    return np.maximum(nnls(table, target)[0], 0.2)
