"""Training loss of codec and vocoder: spectra, a perceptual loss, and from a given step on discriminators."""

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
    """Weights of the parts; the distance of spectra has the weight 1.

    Attributes:
        adversarial_from: Optimizer step from which discriminators are used; -1: never.
        adversarial_weight: Weight of the adversarial loss.
        feature_weight: Weight of the feature matching loss.
        channels: Channels of the discriminators.
        perceptual_weight: Weight of the perceptual loss.
    """

    adversarial_from: int = -1
    adversarial_weight: float = 0.05
    feature_weight: float = 0.1
    channels: int = 16
    perceptual_weight: float = renamed("listener_weight", 0.3)


class SoundLoss(nn.Module):
    """The loss, including the discriminators.

    The generator's losses have no gradient to the discriminators, nor the discriminators' loss to the generator.

    Args:
        config: Weights.
        perceptual_loss: Compares sounds by features of a trained network; None: not used.
        batches_per_step: Batches per optimizer step of the training.
    """

    batches: Tensor

    def __init__(
        self, config: SoundLossConfig, perceptual_loss: PerceptualLoss | None = None, batches_per_step: int = 1
    ) -> None:
        super().__init__()
        self.config, self.perceptual_loss, self.first = (
            config,
            perceptual_loss,
            config.adversarial_from * batches_per_step,
        )
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.discriminators = Discriminators(config.channels) if config.adversarial_from >= 0 else None

    def forward(self, generated: Tensor, original: Tensor) -> Tensor:
        """Return the loss of generated waveforms (B, T) float32 at 16 kHz; a scalar."""
        config, generated = self.config, generated.float()
        loss = spectral_distance(generated, original)
        if self.perceptual_loss is not None:
            loss = loss + config.perceptual_weight * self.perceptual_loss.distance(generated, original)
        if self.training:
            self.batches += 1
        if self.discriminators is None or int(self.batches) < self.first:
            return loss
        fixed = {name: parameter.detach() for name, parameter in self.discriminators.named_parameters()}
        of_real, of_fake = self.discriminators(original), self.discriminators(generated.detach())
        seen = torch.func.functional_call(self.discriminators, fixed, (generated,))
        loss = loss + config.adversarial_weight * adversarial_loss(seen.scores)
        loss = loss + config.feature_weight * feature_distance(of_real.layers, seen.layers)
        return loss + discriminator_loss(of_real.scores, of_fake.scores)
