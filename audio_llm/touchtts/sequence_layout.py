"""Layout of text and speech in the language model's input sequence.

Every token has a position in time, in units of 40 ms: a phone or word piece where it should be spoken, a speech token
where it is spoken. Corresponding tokens thus have near positions, whatever their index in the sequence, and the
alignment need not be learned. The expected duration follows from the text; in training, time is stretched at random so
that the real duration may differ.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from enum import IntEnum

import torch
from torch import Tensor

from audio_llm.lm.token_lm import Sequence
from audio_llm.lm.vocabulary import BOS, PAD, Vocabulary
from audio_llm.touchtts.text_tokens import TextTokens, TokenizedText

MARK, VOICE, SPEECH = "mark", "voice", "speech"  # vocabulary ranges, in addition to those of the text


class Mark(IntEnum):
    """Task of a sequence, and markers where its parts begin."""

    TTS = 0
    ASR = 1
    TEXT = 2
    AUDIO = 3


class Segment(IntEnum):
    """Stream that a token belongs to."""

    TEXT = 0
    SPEECH = 1


def text_row(
    text: TokenizedText, voice: int, durations: Tensor, text_tokens: TextTokens, vocabulary: Vocabulary
) -> Sequence:
    """Return the conditioning sequence of synthesis (1, T): begin, task, voice, text, and the marker of speech.

    Args:
        text: Tokens of the normalized text.
        voice: Index of the voice.
        durations: (U,) float32, duration of each text unit in speech tokens.
        text_tokens: Text tokenization that `text` is of.
        vocabulary: Vocabulary of the language model.
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
    """Return speech tokens (T,) int64 as a sequence (1, T), at positions (T,) float32."""
    segments = torch.full_like(tokens, Segment.SPEECH)
    return Sequence(vocabulary.encode(SPEECH, tokens)[None], segments[None], positions[None])


def recognition_row(tokens: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return the conditioning sequence of transcription (1, T): begin, task, speech tokens, and the marker of text."""
    marks = vocabulary.encode(MARK, torch.tensor([Mark.ASR, Mark.TEXT]))
    ids = torch.cat([torch.tensor([BOS]), marks[:1], vocabulary.encode(SPEECH, tokens), marks[1:]])
    times = torch.arange(len(tokens)) + 0.5
    segments = torch.full_like(ids, Segment.SPEECH)
    segments[-1] = Segment.TEXT
    return Sequence(ids[None], segments[None], torch.cat([torch.zeros(2), times, torch.zeros(1)])[None])


def transcript_row(numbers: Tensor, text_tokens: TextTokens, vocabulary: Vocabulary) -> Sequence:
    """Return the tokens of a transcript, (T,) int64 in the tokenization's range, as a sequence (1, T)."""
    durations = text_tokens.output_durations(numbers)
    segments = torch.full_like(numbers, Segment.TEXT)
    ids = vocabulary.encode(text_tokens.output_range, numbers)
    return Sequence(ids[None], segments[None], (durations.cumsum(0) - 0.5 * durations)[None])


def stack_rows(rows: Rows[Sequence], left: bool = False) -> Sequence:
    """Return sequences (1, T) as one batch (B, N), padded on the right, or with `left` on the left."""
    size = max(row.ids.shape[1] for row in rows)

    def padded(part: Tensor, value: float) -> Tensor:
        missing = size - part.shape[1]
        return torch.nn.functional.pad(part, (missing, 0) if left else (0, missing), value=value)

    columns = zip(*([padded(part, PAD if n == 0 else 0) for n, part in enumerate(row)] for row in rows), strict=True)
    return Sequence(*(torch.cat(list(column)) for column in columns))


def moved(row: Sequence, device: torch.device) -> Sequence:
    """Return a sequence on a device."""
    return Sequence(*(part.to(device) for part in row))
