"""The enrolment encoder: a noisy binaural look to the vector of the person who stood in front.

What comes from the front reaches both ears at once. A mask over mel bands and frames, read from what the ears have in
common and apart, keeps the person looked at; the speaker encoder reads what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.tse.speaker import BANDS, SpeakerEncoder, at_level, mel_filters, mel_power, spectra

_FEATURES = 6  # of a band in a frame
_FLOOR = 1e-9  # of a mel power
_RISE = 80  # frames over which what has been heard comes to count in full


@dataclass(frozen=True)
class EnrolmentConfig:
    """Size of the network.

    Attributes:
        channels: Of the mask's first layer.
        mask_hidden: Of the mask's GRU, in each direction.
        hidden: Of the speaker encoder's LSTM.
        layers: Of it.
    """

    channels: int = 128
    mask_hidden: int = 96
    hidden: int = 256
    layers: int = 3


class EnrolmentEncoder(nn.Module):
    """A mask and a speaker encoder."""

    def __init__(self, config: EnrolmentConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Sequential(nn.Linear(_FEATURES * BANDS, config.channels), nn.SiLU())
        self.gru = nn.GRU(config.channels, config.mask_hidden, batch_first=True, bidirectional=True)
        self.mask = nn.Linear(2 * config.mask_hidden, BANDS + 1)
        self.speaker = SpeakerEncoder(config.hidden, config.layers)
        nn.init.normal_(self.mask.weight, std=0.02)
        nn.init.constant_(self.mask.bias, 1.0)

    def forward(self, look: Tensor) -> Tensor:
        """Return unit vectors (B, 256) of looks (B, 2, T) float32 at 16 kHz, left ear first."""
        vectors, _ = self.encode(look)
        return vectors

    def encode(self, look: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors as `forward` does, and the mask's logits (B, F, 40)."""
        logits, counted, middle = self.look_at(look)
        kept = torch.sigmoid(logits) * middle
        level = middle.sum((1, 2), keepdim=True) / (kept.sum((1, 2), keepdim=True) + _FLOOR)
        vectors = self.speaker.project(self.speaker.lstm(kept * level)[0])  # by each frame, (B, F, 256)
        heard = torch.arange(1, vectors.shape[1] + 1, device=look.device).clamp_max(_RISE) / _RISE
        weights = torch.sigmoid(counted) * heard[:, None]
        return functional.normalize((vectors * weights).sum(dim=1), dim=-1), logits

    def look_at(self, look: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of the mask (B, F, 40) and of how much a frame counts (B, F, 1), and mel powers (B, F, 40).

        The powers are those of the mean of both ears.
        """
        features, middle = look_features(look)
        found = self.mask(self.gru(self.embed(features))[0])
        return found[..., :BANDS], found[..., BANDS:], middle


def ideal_mask(look: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the mask should be, and how much each of its numbers matters.

    Args:
        look: (B, 2, T) float32.
        target: (B, 2, T) float32, the share of the person in front.

    Returns:
        (B, F, 40): the person's share of the mel power of the mean of both ears; and (B, F, 40), compressed powers
        with mean 1.
    """
    wanted, rest = mel_power(target.mean(dim=1)), mel_power((look - target).mean(dim=1))
    weight = (wanted + rest + _FLOOR) ** 0.3
    return wanted / (wanted + rest + _FLOOR), weight / weight.mean(dim=(1, 2), keepdim=True)


def look_features(look: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the mask is read from, and mel powers of the mean of both ears.

    Args:
        look: (B, 2, T) float32 at 16 kHz.

    Returns:
        (B, F, 240): logarithms of the power of the ears' mean and half difference and of each ear, and both parts of
        the coherence between the ears; and (B, F, 40), at the speaker encoder's level.
    """
    level = at_level(look.mean(dim=1)).square().sum(-1) / (look.mean(dim=1).square().sum(-1) + 1e-8)
    (left, right), (left_i, right_i) = (p.unbind(1) for p in spectra(look * level.sqrt()[:, None, None]))
    mel = mel_filters().to(look.device)
    middle = 0.25 * ((left + right).square() + (left_i + right_i).square()) @ mel
    side = 0.25 * ((left - right).square() + (left_i - right_i).square()) @ mel
    powers = [(left.square() + left_i.square()) @ mel, (right.square() + right_i.square()) @ mel]
    scale = (powers[0] * powers[1] + _FLOOR**2).sqrt()
    parts = [(part + _FLOOR).log() * 0.25 + 2.0 for part in (middle, side, *powers)]
    parts += [(left * right + left_i * right_i) @ mel / scale, (left_i * right - left * right_i) @ mel / scale]
    return torch.cat(parts, dim=-1), middle
