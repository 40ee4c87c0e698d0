"""How text and speech stand in a row for the language model: what is given, what is to come, and where in time it is.

Every token has a place in time, in tokens of 40 ms: a phone where it should be said, a speech token where it is said.
What belongs together is then near in time, whatever its number in the row: nobody has to find out what goes with what.
Text tells how long it should take; in training time goes by a little faster or slower, so that speech need not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence as Rows
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from audio_llm.lm.token_lm import Sequence
from audio_llm.lm.vocabulary import BOS, PAD, Vocabulary
from audio_llm.touchtts.text import SYMBOLS

MARK, VOICE, SYMBOL, LETTER, SPEECH = "mark", "voice", "symbol", "letter", "speech"  # ranges of tokens
LETTERS = " abcdefghijklmnopqrstuvwxyz'"
LETTER_TOKENS = 1.7  # speech tokens that a letter takes, roughly
_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS)}
_LETTER_OF = {letter: number for number, letter in enumerate(LETTERS)}


class Mark(IntEnum):
    """What a row is about, and where its parts begin."""

    TTS = 0
    ASR = 1
    TEXT = 2
    AUDIO = 3


class Segment(IntEnum):
    """Streams that are told apart."""

    TEXT = 0
    SPEECH = 1


def symbol_numbers(symbols: Rows[str]) -> Tensor:
    """Return the numbers (T,) int64 of symbols."""
    return torch.tensor([_NUMBER_OF[symbol] for symbol in symbols], dtype=torch.int64)


def letter_numbers(words: str) -> Tensor:
    """Return the numbers (T,) int64 of the letters of normalised words, accents dropped; other signs are left out."""
    plain = unicodedata.normalize("NFKD", words)
    return torch.tensor([_LETTER_OF[letter] for letter in plain if letter in _LETTER_OF], dtype=torch.int64)


def spell(numbers: Rows[int]) -> str:
    """Return the words of letters."""
    return " ".join("".join(LETTERS[number] for number in numbers).split())


def text_row(symbols: Tensor, voice: int, durations: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return what speech is made of, as a row (1, T): begin, task, voice, symbols, and the mark that speech begins.

    Args:
        symbols: (T,) int64.
        voice: Its number.
        durations: Of all symbols, (S,) float32 in tokens.
        vocabulary: Of the language model.
    """
    marks = vocabulary.encode(MARK, torch.tensor([Mark.TTS, Mark.AUDIO]))
    who = vocabulary.encode(VOICE, torch.tensor([voice]))
    ids = torch.cat([torch.tensor([BOS]), marks[:1], who, vocabulary.encode(SYMBOL, symbols), marks[1:]])
    own = durations[symbols]
    places = own.cumsum(0) - 0.5 * own
    positions = torch.cat([torch.zeros(3), places, torch.zeros(1)])
    segments = torch.full_like(ids, Segment.TEXT)
    segments[-1] = Segment.SPEECH
    return Sequence(ids[None], segments[None], positions[None])


def speech_row(tokens: Tensor, positions: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return speech tokens (T,) int64 as a row (1, T), at positions (T,) float32."""
    segments = torch.full_like(tokens, Segment.SPEECH)
    return Sequence(vocabulary.encode(SPEECH, tokens)[None], segments[None], positions[None])


def heard_row(tokens: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return what is to be written down, as a row (1, T): begin, task, tokens, and the mark that text begins."""
    marks = vocabulary.encode(MARK, torch.tensor([Mark.ASR, Mark.TEXT]))
    ids = torch.cat([torch.tensor([BOS]), marks[:1], vocabulary.encode(SPEECH, tokens), marks[1:]])
    times = torch.arange(len(tokens)) + 0.5
    segments = torch.full_like(ids, Segment.SPEECH)
    segments[-1] = Segment.TEXT
    return Sequence(ids[None], segments[None], torch.cat([torch.zeros(2), times, torch.zeros(1)])[None])


def letter_row(letters: Tensor, vocabulary: Vocabulary, first: int = 0) -> Sequence:
    """Return letters (T,) int64 as a row (1, T); `first` is how many were before."""
    positions = (torch.arange(len(letters)) + first + 0.5) * LETTER_TOKENS
    segments = torch.full_like(letters, Segment.TEXT)
    return Sequence(vocabulary.encode(LETTER, letters)[None], segments[None], positions[None])


def stack_rows(rows: Rows[Sequence], left: bool = False) -> Sequence:
    """Return rows (1, T) as one (B, N), padded behind their ends, or with `left` before their beginnings."""
    size = max(row.ids.shape[1] for row in rows)

    def padded(part: Tensor, value: float) -> Tensor:
        missing = size - part.shape[1]
        return torch.nn.functional.pad(part, (missing, 0) if left else (0, missing), value=value)

    columns = zip(*([padded(part, PAD if n == 0 else 0) for n, part in enumerate(row)] for row in rows), strict=True)
    return Sequence(*(torch.cat(list(column)) for column in columns))


def moved(row: Sequence, device: torch.device) -> Sequence:
    """Return a row on a device."""
    return Sequence(*(part.to(device) for part in row))


def fit_durations(symbols: Rows[Rows[str]], counts: np.ndarray) -> np.ndarray:
    """Return how many tokens each of `SYMBOLS` takes on average, (S,) float64, from the lengths of whole utterances.

    Args:
        symbols: Of each utterance.
        counts: (N,), tokens of each.
    """
    from scipy.optimize import nnls

    table = np.zeros((len(symbols), len(SYMBOLS)))
    for row, own in zip(table, symbols, strict=True):
        np.add.at(row, [_NUMBER_OF[symbol] for symbol in own], 1.0)
    usual = np.full(len(SYMBOLS), counts.sum() / max(1.0, table.sum()))
    weight = np.sqrt(len(symbols) / 50.0 + 1.0)  # a pull to the mean, for symbols that are rare
    found, _ = nnls(np.concatenate([table, weight * np.eye(len(SYMBOLS))]), np.concatenate([counts, weight * usual]))
    return np.maximum(found, 0.2)
