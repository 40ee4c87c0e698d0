"""The perceptual loss: a distance of two waveforms in the features of a trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PerceptualLoss:
    """A trained network whose features compare generated with original speech.

    Attributes:
        name: Name of the network's model.
        fingerprint: Fingerprint of its weights.
        features: Waveforms (B, T) float32 at 16 kHz and lengths (B,) int64 to features of any shape, with gradients.
    """

    name: str
    fingerprint: str
    features: Callable[[Tensor, Tensor], Tensor]

    def distance(self, generated: Tensor, original: Tensor) -> Tensor:
        """Return the mean absolute difference of the features of two waveforms (B, T); a scalar.

        Gradients flow to `generated` only.
        """
        lengths = torch.full((len(original),), original.shape[1], device=original.device)
        with torch.no_grad():
            target = self.features(original, lengths)
        return (self.features(generated, lengths) - target).abs().mean()


def provenance_of(loss: PerceptualLoss | None) -> dict[str, dict[str, str]]:
    """Return the network of a perceptual loss as the provenance of a model directory records it."""
    return {"listener": {"name": loss.name, "fingerprint": loss.fingerprint}} if loss else {}
