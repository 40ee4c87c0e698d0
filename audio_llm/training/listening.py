"""What a listener hears: a distance of sounds by what a trained network makes of them, beside that of their spectra."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Waveforms (B, T) float32 at 16 kHz and lengths (B,) int64 to features of any shape, with gradients; no torch module,
# which would be trained with what it listens to.
Listener = Callable[[Tensor, Tensor], Tensor]


def listening_distance(listener: Listener, made: Tensor, original: Tensor) -> Tensor:
    """Return the mean absolute difference of what a listener hears in two sounds, (B, T) both; a scalar.

    Gradients go to what was made alone.
    """
    lengths = torch.full((len(original),), original.shape[1], device=original.device)
    with torch.no_grad():
        wanted = listener(original, lengths)
    return (listener(made, lengths) - wanted).abs().mean()
