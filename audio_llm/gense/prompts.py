"""The sequences of GenSE: prompts and targets of the two language models.

N2S: noisy semantic tokens, then the clean ones. S2S, the token chain: noisy semantic, clean semantic, noisy acoustic
codes, then the clean ones. Positions are times, in acoustic codes: one moment has one position in every stream, at any
ratio of the rates (the public code assumes 100 and 50 per second, and less than 10 s).
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from audio_llm.errors import UsageError
from audio_llm.lm.token_lm import Sequence, join
from audio_llm.lm.vocabulary import BOS, SEP, Vocabulary

SEMANTIC, ACOUSTIC = "semantic", "acoustic"  # ranges of tokens


class Segment(IntEnum):
    """The streams; a model stores a vector for each, so their numbers stay."""

    NOISY_SEMANTIC = 0
    CLEAN_SEMANTIC = 1
    NOISY_ACOUSTIC = 2
    CLEAN_ACOUSTIC = 3
    MASKED_ACOUSTIC = 4  # of the mask network's output, in place of the noisy ones


def n2s_prompt(noisy: Tensor, vocabulary: Vocabulary, ratio: float) -> Sequence:
    """Return [noisy semantic, BOS].

    Args:
        noisy: (B, T) int64 tokens.
        vocabulary: Vocabulary with the range `semantic`.
        ratio: Acoustic codes per semantic token.
    """
    return join(
        [
            _stream(vocabulary.encode(SEMANTIC, noisy), Segment.NOISY_SEMANTIC, ratio),
            _mark(noisy, BOS, Segment.CLEAN_SEMANTIC),
        ]
    )


def n2s_target(clean: Tensor, vocabulary: Vocabulary, ratio: float) -> Sequence:
    """Return the clean semantic tokens (B, T) int64 as what follows `n2s_prompt`."""
    return _stream(vocabulary.encode(SEMANTIC, clean), Segment.CLEAN_SEMANTIC, ratio)


def s2s_prompt(
    noisy_semantic: Tensor | None,
    clean_semantic: Tensor | None,
    noisy_acoustic: Tensor | None,
    vocabulary: Vocabulary,
    ratio: float,
    masked: bool = False,
) -> Sequence:
    """Return [noisy semantic, clean semantic, SEP, noisy acoustic, BOS], without the parts that are None.

    Args:
        noisy_semantic: (B, T) int64 tokens.
        clean_semantic: (B, T) int64 tokens; None: without hierarchy.
        noisy_acoustic: (B, A) int64 codes; None: without the voice.
        vocabulary: Vocabulary with the ranges `semantic` and `acoustic`.
        ratio: Acoustic codes per semantic token.
        masked: Whether `noisy_acoustic` comes from the mask network's output.

    Raises:
        UsageError: Nothing is given.
    """
    given = [part for part in (noisy_semantic, clean_semantic, noisy_acoustic) if part is not None]
    if not given:
        raise UsageError("the prompt is empty", remedy="give at least one stream")
    parts = []
    if noisy_semantic is not None:
        parts.append(_stream(vocabulary.encode(SEMANTIC, noisy_semantic), Segment.NOISY_SEMANTIC, ratio))
    if clean_semantic is not None:
        parts.append(_stream(vocabulary.encode(SEMANTIC, clean_semantic), Segment.CLEAN_SEMANTIC, ratio))
    parts.append(_mark(given[0], SEP, Segment.NOISY_ACOUSTIC))
    segment = Segment.MASKED_ACOUSTIC if masked else Segment.NOISY_ACOUSTIC
    if noisy_acoustic is not None:
        parts.append(_stream(vocabulary.encode(ACOUSTIC, noisy_acoustic), segment, 1.0))
    parts.append(_mark(given[0], BOS, Segment.CLEAN_ACOUSTIC))
    return join(parts)


def s2s_target(clean: Tensor, vocabulary: Vocabulary) -> Sequence:
    """Return the clean acoustic codes (B, A) int64 as what follows `s2s_prompt`."""
    return _stream(vocabulary.encode(ACOUSTIC, clean), Segment.CLEAN_ACOUSTIC, 1.0)


def _stream(ids: Tensor, segment: Segment, step: float) -> Sequence:
    positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32) * step
    return Sequence(ids, torch.full_like(ids, int(segment)), positions.expand(ids.shape))


def _mark(like: Tensor, token: int, segment: Segment) -> Sequence:
    """Return one special token for each row of `like`."""
    ids = like.new_full((len(like), 1), token)
    return Sequence(ids, torch.full_like(ids, int(segment)), torch.zeros(ids.shape, device=ids.device))
