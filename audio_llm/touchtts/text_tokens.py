"""Text tokenizations of the language model: phones and letters, or the word pieces of a pretrained LLM."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from audio_llm.touchtts.text import MARKS, SYMBOLS, NormalizedText

SYMBOL, LETTER, PIECE = "symbol", "letter", "piece"  # vocabulary ranges
LETTERS = " abcdefghijklmnopqrstuvwxyz'"
LETTER_TOKENS = 1.7  # rough duration of a letter in speech tokens
_CHARACTERS = "".join(MARKS) + LETTERS  # characters of word pieces; others have no duration
_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS)}
_LETTER_OF = {letter: number for number, letter in enumerate(LETTERS)}
_CHARACTER_OF = {character: number for number, character in enumerate(_CHARACTERS)}


class TokenizedText(NamedTuple):
    """A text that is to be synthesized.

    Attributes:
        numbers: (T,) int64, tokens in the range `TextTokens.input_range`.
        units: Text units that each token consists of.
    """

    numbers: Tensor
    units: list[tuple[int, ...]]

    def durations(self, of_units: Tensor) -> Tensor:
        """Return the duration of each token, (T,) float32, from the durations of the units, (U,)."""
        token_index = torch.tensor(
            [number for number, token_units in enumerate(self.units) for _ in token_units], dtype=torch.int64
        )
        unit_index = torch.tensor(
            [unit_index for token_units in self.units for unit_index in token_units], dtype=torch.int64
        )
        return of_units.new_zeros(len(self.units)).index_add(0, token_index, of_units[unit_index])

    def counts(self, units: int) -> np.ndarray:
        """Return how often each unit occurs in the text, (U,) float64."""
        unit_counts = np.zeros(units)
        np.add.at(unit_counts, [unit for token_units in self.units for unit in token_units], 1.0)
        return unit_counts


class TextTokens(Protocol):
    """A text tokenization.

    Attributes:
        ranges: Names and sizes of the vocabulary ranges it needs.
        input_range: Range of the text to synthesize.
        output_range: Range of transcripts.
        units: Number of text units, each of which has a duration.
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
        """Return the tokens of a text to synthesize."""
        ...

    def encode_output(self, words: str) -> Tensor:
        """Return normalized words as tokens (T,) int64 of `output_range`; empty where there are none."""
        ...

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the words of transcript tokens."""
        ...

    def output_durations(self, numbers: Tensor) -> Tensor:
        """Return the rough duration of each transcript token: (T,) float32 in speech tokens."""
        ...


class PhoneTokens:
    """Phones as input, letters as output: suited to little training data."""

    ranges: Mapping[str, int] = {SYMBOL: len(SYMBOLS), LETTER: len(LETTERS)}
    input_range, output_range, units = SYMBOL, LETTER, len(SYMBOLS)

    def encode_input(self, text: NormalizedText) -> TokenizedText:
        """See `TextTokens.encode_input`."""
        numbers = symbol_numbers(text.symbols)
        return TokenizedText(numbers, [(number,) for number in numbers.tolist()])

    def encode_output(self, words: str) -> Tensor:
        """See `TextTokens.encode_output`; accents and characters other than letters are dropped."""
        plain = unicodedata.normalize("NFKD", words)
        return torch.tensor([_LETTER_OF[letter] for letter in plain if letter in _LETTER_OF], dtype=torch.int64)

    def decode(self, numbers: Sequence[int]) -> str:
        """See `TextTokens.decode`."""
        return " ".join("".join(LETTERS[number] for number in numbers).split())

    def output_durations(self, numbers: Tensor) -> Tensor:
        """See `TextTokens.output_durations`."""
        return torch.full((len(numbers),), LETTER_TOKENS)


class PieceTokens:
    """Word pieces of a pretrained LLM, as input and output.

    Args:
        tokenizer: Tokenizer of transformers.
        size: Vocabulary size of the model.
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
    """Return the indices (T,) int64 of symbols in `text.SYMBOLS`."""
    return torch.tensor([_NUMBER_OF[symbol] for symbol in symbols], dtype=torch.int64)


def fit_durations(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the average duration of each text unit in tokens, (U,) float64, fitted to the lengths of whole utterances.

    Args:
        counts: (N, U), occurrences of each unit in each utterance.
        lengths: (N,), tokens of each utterance.
    """
    from scipy.optimize import nnls

    units = counts.shape[1]
    usual = np.full(units, lengths.sum() / max(1.0, counts.sum()))
    weight = np.sqrt(len(counts) / 50.0 + 1.0)  # regularization of rare units towards the mean
    table, target = np.concatenate([counts, weight * np.eye(units)]), np.concatenate([lengths, weight * usual])
    return np.maximum(nnls(table, target)[0], 0.2)
