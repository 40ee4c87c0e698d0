"""Enrolment: a noisy binaural look to the vector of the person who stood in front.

What comes from the front reaches both ears at about the same time. The trunk that separates people has one more head
for whoever is there; the speaker encoder reads what that head lets through, and its vectors are averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.tse.hearing import TargetHearing
from audio_llm.tse.losses import leak_db
from audio_llm.tse.speaker import chunk_features

LEAST_S, MOST_S = 1.0, 10.0  # of a look
_LEAST_DB = -60.0  # level of a front that holds nothing
_RISE = 100  # chunks over which what has been heard comes to count in full, 0.8 s


class Enrolled(NamedTuple):
    """What comes of a look.

    Attributes:
        vector: (B, 256) float32, unit vectors.
        front: (B, 2, T) float32, the person in front, 64 samples later than the look.
        front_db: (B,) float32, level of that over the look's.
    """

    vector: Tensor
    front: Tensor
    front_db: Tensor


class EnrolmentEncoder(nn.Module):
    """Reads looks with the networks of a `TargetHearing`; it has no weights of its own."""

    def __init__(self, hearing: TargetHearing) -> None:
        super().__init__()
        self.hearing = hearing

    def forward(self, look: Tensor) -> Tensor:
        """Return unit vectors (B, 256) of looks (B, 2, T) float32 at 16 kHz, T a multiple of 128, left ear first."""
        return self.encode(look).vector

    def encode(self, look: Tensor) -> Enrolled:
        """Return the vectors and the person in front."""
        front = self.hearing.extractor(look, front=True)[:, 0]
        encoder = self.hearing.selector.speaker
        top = encoder.lstm(chunk_features(front.mean(dim=1)))[0]
        rising = torch.arange(1, top.shape[1] + 1, device=look.device).clamp_max(_RISE) / _RISE
        weights = torch.sigmoid(self.hearing.selector.counted(top)) * rising[:, None]
        vector = functional.normalize((encoder.project(top) * weights).sum(dim=1), dim=-1)
        return Enrolled(vector, front, leak_db(front, look, least_db=_LEAST_DB).mean(dim=-1))
