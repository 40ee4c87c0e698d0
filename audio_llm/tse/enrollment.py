"""Enrollment: a noisy binaural recording to the embedding of the speaker in front of the microphones.

Sound from the front reaches both ears at about the same time. The separator has one more head that extracts the frontal
speaker; the speaker encoder reads the output of that head, and its vectors are averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.tse.losses import leak_db
from audio_llm.tse.speaker import chunk_features
from audio_llm.tse.target_speaker import TargetSpeakerNetwork

LEAST_S, MOST_S = 1.0, 10.0  # length of an enrollment recording
_LEAST_DB = -60.0  # frontal level reported for silence
_RISE = 100  # chunks over which the weight of a chunk's vector rises to 1, 0.8 s


class EnrollmentOutput(NamedTuple):
    """Result of encoding enrollment recordings.

    Attributes:
        vector: (B, 256) float32, unit vectors of the speakers.
        frontal: (B, 2, T) float32, the frontal speaker, 64 samples later than the recording.
        frontal_level_db: (B,) float32, level of the frontal speaker relative to the recording, dB.
    """

    vector: Tensor
    frontal: Tensor
    frontal_level_db: Tensor


class EnrollmentEncoder(nn.Module):
    """Encodes enrollment recordings with the networks of a `TargetSpeakerNetwork`; it has no weights of its own."""

    def __init__(self, network: TargetSpeakerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, enrollment: Tensor) -> Tensor:
        """Return unit vectors (B, 256) of (B, 2, T) float32 at 16 kHz, T a multiple of 128, left ear first."""
        return self.encode(enrollment).vector

    def encode(self, enrollment: Tensor) -> EnrollmentOutput:
        """Return the vectors, the extracted frontal speakers and their levels."""
        frontal = self.network.extractor(enrollment, frontal=True)[:, 0]
        encoder = self.network.selector.speaker
        top = encoder.lstm(chunk_features(frontal.mean(dim=1)))[0]
        rising = torch.arange(1, top.shape[1] + 1, device=enrollment.device).clamp_max(_RISE) / _RISE
        weights = torch.sigmoid(self.network.selector.counted(top)) * rising[:, None]
        vector = functional.normalize((encoder.project(top) * weights).sum(dim=1), dim=-1)
        level_db = leak_db(frontal, enrollment, least_db=_LEAST_DB).mean(dim=-1)
        return EnrollmentOutput(vector, frontal, level_db)
