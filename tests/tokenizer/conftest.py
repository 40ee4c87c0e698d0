"""A tiny tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from audio_llm.quantizers import fsq
from audio_llm.tokenizer.s3_model import S3Config, S3Network, log_mel

TINY = S3Config(
    channels=4, width=16, before=1, after=1, heads=2, feedforward=32, kernel=5, levels=(5, 4, 4), dropout=0.0
)


@pytest.fixture
def make_network(monkeypatch: pytest.MonkeyPatch) -> Callable[..., S3Network]:
    """Return a function that makes a network with random weights, in eval mode; its keywords change the size.

    Its quantizer knows the statistics of noise, so that many tokens are in use.
    """
    noise = 0.1 * torch.randn(4, 16_000, generator=torch.Generator().manual_seed(1))
    mel, frames = log_mel(noise, torch.full((4,), 16_000))

    def make(seed: int = 0, **changes: Any) -> S3Network:
        torch.manual_seed(seed)
        network = S3Network(replace(TINY, **changes)).train()
        with monkeypatch.context() as patched, torch.no_grad():
            patched.setattr(fsq, "_MOMENTUM", 1.0)
            network.quantize(mel, frames)
        return network.eval()

    return make


@pytest.fixture
def tiny() -> S3Config:
    """Return the smallest size."""
    return TINY
