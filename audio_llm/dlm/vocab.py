"""Characters of the Denoising LM and their ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SYMBOLS = " 'abcdefghijklmnopqrstuvwxyz"
FIRST_SYMBOL = 4
SIZE = FIRST_SYMBOL + len(SYMBOLS)

_NUMBER = {symbol: FIRST_SYMBOL + i for i, symbol in enumerate(SYMBOLS)}
_SYMBOL = {number: symbol for symbol, number in _NUMBER.items()}


def encode(text: str) -> list[int]:
    """Return the ids of a normalized text, without BOS or EOS; unknown characters become UNK."""
    return [_NUMBER.get(character, UNK) for character in text]


def decode(numbers: Sequence[int]) -> str:
    """Return the text up to the first EOS, without BOS, padding and UNK."""
    characters = []
    for number in numbers:
        if number == EOS:
            break
        characters.append(_SYMBOL.get(int(number), ""))
    return "".join(characters)


def pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return ((B, L) int64 padded with PAD, (B,) int64 lengths)."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    batch = np.full((len(rows), int(lengths.max(initial=1))), PAD, dtype=np.int64)
    for row, numbers in zip(batch, rows, strict=True):
        row[: len(numbers)] = numbers
    return batch, lengths
