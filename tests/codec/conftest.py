"""Tiny codecs of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from audio_llm.codec.model import CodecConfig, CodecNetwork

TINY = CodecConfig(
    width=16, encoder_blocks=1, decoder_blocks=1, expansion=2, levels=(8, 5, 5), codes=64, group_codes=(8, 8), vector=4
)


@pytest.fixture
def make_codec() -> Callable[..., CodecNetwork]:
    """Return a function that makes a codec with random weights, in eval mode; its keywords change the size."""

    def make(seed: int = 0, **changes: Any) -> CodecNetwork:
        torch.manual_seed(seed)
        return CodecNetwork(replace(TINY, **changes)).eval()

    return make


@pytest.fixture
def tiny() -> CodecConfig:
    """Return the smallest size."""
    return TINY
