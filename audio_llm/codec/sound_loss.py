"""What codec and vocoder learn by: spectra, a listener, and from a set step on discriminators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audio_llm.codec.discriminators import Discriminators
from audio_llm.codec.losses import adversarial_loss, discriminator_loss, feature_distance, spectral_distance
from audio_llm.training.config import renamed
from audio_llm.training.perceptual import PerceptualLoss


@dataclass(frozen=True)
class SoundLossConfig:
    """How much each part counts beside the distance of spectra.

    Attributes:
        adversarial_from: Optimiser step from which discriminators take part; -1: never.
        adversarial_weight: Of deceiving them.
        feature_weight: Of the likeness of their inner layers.
        channels: Of the discriminators.
        perceptual_weight: Weight of the perceptual loss, where there is one.
    """

    adversarial_from: int = -1
    adversarial_weight: float = 0.05
    feature_weight: float = 0.1
    channels: int = 16
    perceptual_weight: float = renamed("listener_weight", 0.3)


class SoundLoss(nn.Module):
    """The loss, with the discriminators in it.

    The network learns from the discriminators as they are, they from what it gives: no gradient goes both ways.

    Args:
        config: Weights.
        listener: Hears what was made, if anybody does.
        batches_per_step: Of the training.
    """

    batches: Tensor

    def __init__(
        self, config: SoundLossConfig, listener: PerceptualLoss | None = None, batches_per_step: int = 1
    ) -> None:
        super().__init__()
        self.config, self.listener, self.first = config, listener, config.adversarial_from * batches_per_step
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.discriminators = Discriminators(config.channels) if config.adversarial_from >= 0 else None

    def forward(self, made: Tensor, original: Tensor) -> Tensor:
        """Return the loss of made sounds (B, T) float32 at 16 kHz; a scalar."""
        config, made = self.config, made.float()
        loss = spectral_distance(made, original)
        if self.listener is not None:
            loss = loss + config.perceptual_weight * self.listener.distance(made, original)
        if self.training:
            self.batches += 1
        if self.discriminators is None or int(self.batches) < self.first:
            return loss
        fixed = {name: parameter.detach() for name, parameter in self.discriminators.named_parameters()}
        of_real, of_fake = self.discriminators(original), self.discriminators(made.detach())
        seen = torch.func.functional_call(self.discriminators, fixed, (made,))
        loss = loss + config.adversarial_weight * adversarial_loss(seen.scores)
        loss = loss + config.feature_weight * feature_distance(of_real.layers, seen.layers)
        return loss + discriminator_loss(of_real.scores, of_fake.scores)
