"""How text and speech stand in a row for the language model: what is given, what is to come, and where in time it is.

Every token has a place in time, in tokens of 40 ms: a phone or a piece of a word where it should be said, a speech
token where it is said. What belongs together is then near in time, whatever its number in the row: nobody has to find
out what goes with what.
Text tells how long it should take; in training time goes by a little faster or slower, so that speech need not.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from enum import IntEnum

import torch
from torch import Tensor

from audio_llm.lm.token_lm import Sequence
from audio_llm.lm.vocabulary import BOS, PAD, Vocabulary
from audio_llm.touchtts.text_tokens import TextTokens, TokenizedText

MARK, VOICE, SPEECH = "mark", "voice", "speech"  # ranges of tokens, beside those of a script


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


def text_row(
    text: TokenizedText, voice: int, durations: Tensor, text_tokens: TextTokens, vocabulary: Vocabulary
) -> Sequence:
    """Return what speech is made of, as a row (1, T): begin, task, voice, text, and the mark that speech begins.

    Args:
        text: What is to be said.
        voice: Its number.
        durations: Of all of the script's units, (U,) float32 in tokens.
        script: Of the text.
        vocabulary: Of the language model.
    """
    marks = vocabulary.encode(MARK, torch.tensor([Mark.TTS, Mark.AUDIO]))
    voice_id = vocabulary.encode(VOICE, torch.tensor([voice]))
    text_ids = vocabulary.encode(text_tokens.input_range, text.numbers)
    ids = torch.cat([torch.tensor([BOS]), marks[:1], voice_id, text_ids, marks[1:]])
    token_durations = text.durations(durations)
    centers = token_durations.cumsum(0) - 0.5 * token_durations
    positions = torch.cat([torch.zeros(3), centers, torch.zeros(1)])
    segments = torch.full_like(ids, Segment.TEXT)
    segments[-1] = Segment.SPEECH
    return Sequence(ids[None], segments[None], positions[None])


def speech_row(tokens: Tensor, positions: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return speech tokens (T,) int64 as a row (1, T), at positions (T,) float32."""
    segments = torch.full_like(tokens, Segment.SPEECH)
    return Sequence(vocabulary.encode(SPEECH, tokens)[None], segments[None], positions[None])


def recognition_row(tokens: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return what is to be written down, as a row (1, T): begin, task, tokens, and the mark that text begins."""
    marks = vocabulary.encode(MARK, torch.tensor([Mark.ASR, Mark.TEXT]))
    ids = torch.cat([torch.tensor([BOS]), marks[:1], vocabulary.encode(SPEECH, tokens), marks[1:]])
    times = torch.arange(len(tokens)) + 0.5
    segments = torch.full_like(ids, Segment.SPEECH)
    segments[-1] = Segment.TEXT
    return Sequence(ids[None], segments[None], torch.cat([torch.zeros(2), times, torch.zeros(1)])[None])


def transcript_row(numbers: Tensor, text_tokens: TextTokens, vocabulary: Vocabulary) -> Sequence:
    """Return what was written, (T,) int64 of the script's range, as a row (1, T)."""
    durations = text_tokens.output_durations(numbers)
    segments = torch.full_like(numbers, Segment.TEXT)
    ids = vocabulary.encode(text_tokens.output_range, numbers)
    return Sequence(ids[None], segments[None], (durations.cumsum(0) - 0.5 * durations)[None])


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
