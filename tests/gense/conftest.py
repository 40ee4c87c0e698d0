"""Tiny mask networks with random weights that all have an effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from audio_llm.gense.mask_model import MaskConfig, MaskNetwork

TINY = MaskConfig(width=8, blocks=2, expansion=1, taps=3)


@pytest.fixture
def make_mask() -> Callable[..., MaskNetwork]:
    """Return a function that makes a mask network in eval mode.

    `random` gives its last layers random weights too, which would otherwise let everything pass.
    """

    def make(random: bool = True, config: MaskConfig = TINY, seed: int = 0) -> MaskNetwork:
        torch.manual_seed(seed)
        network = MaskNetwork(config)
        if random:
            with torch.no_grad():
                for layer in network.leave:
                    part: Any = layer
                    part.weight.normal_(std=0.5)
                    part.bias.normal_(std=0.3)
        return network.eval()

    return make


@pytest.fixture
def tiny() -> MaskConfig:
    """Return the smallest size."""
    return TINY
