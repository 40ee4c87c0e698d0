"""What a listener hears: a distance of sounds by what a trained network makes of them, beside that of their spectra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Listener:
    """A trained network that hears what another one learns to make.

    Attributes:
        name: Of its model.
        fingerprint: Of its weights.
        hear: Waveforms (B, T) float32 at 16 kHz and lengths (B,) int64 to features of any shape, with gradients.
    """

    name: str
    fingerprint: str
    hear: Callable[[Tensor, Tensor], Tensor]

    def distance(self, made: Tensor, original: Tensor) -> Tensor:
        """Return the mean absolute difference of what is heard in two sounds (B, T); a scalar.

        Gradients go to what was made alone.
        """
        lengths = torch.full((len(original),), original.shape[1], device=original.device)
        with torch.no_grad():
            wanted = self.hear(original, lengths)
        return (self.hear(made, lengths) - wanted).abs().mean()


def heard_by(listener: Listener | None) -> dict[str, dict[str, str]]:
    """Return who listened to a training, as a model directory records it."""
    return {"listener": {"name": listener.name, "fingerprint": listener.fingerprint}} if listener else {}
