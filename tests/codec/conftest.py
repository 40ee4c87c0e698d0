"""Tiny codecs of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.quantizers import fsq

TINY = CodecConfig(
    width=16, encoder_blocks=1, decoder_blocks=1, expansion=2, levels=(8, 5, 5), codes=64, group_codes=(8, 8), vector=4
)


@pytest.fixture
def make_codec(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CodecNetwork]:
    """Return a function that makes a codec with random weights, in eval mode; its keywords change the size.

    Its quantizer knows the statistics of noise, so that many codes are in use.
    """
    noise = 0.1 * torch.randn(4, 8000, generator=torch.Generator().manual_seed(1))

    def make(seed: int = 0, **changes: Any) -> CodecNetwork:
        torch.manual_seed(seed)
        network = CodecNetwork(replace(TINY, **changes)).train()
        with monkeypatch.context() as patched, torch.no_grad():
            patched.setattr(fsq, "_MOMENTUM", 1.0)
            network.quantize(noise, torch.full((4,), 8000))
        return network.eval()

    return make


@pytest.fixture
def tiny() -> CodecConfig:
    """Return the smallest size."""
    return TINY
