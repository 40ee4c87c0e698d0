"""The baseline network: its published size, chunks equal the whole, and no lookahead."""

from __future__ import annotations

import pytest
import torch

from audio_llm.tse.frames import CHUNK, OVERLAP
from audio_llm.tse.gridnet import GridNet, GridNetConfig, macs_per_chunk

torch.set_num_threads(1)
TINY = GridNetConfig(channels=8, hidden=6, blocks=2, heads=2, window=5, embedding=7)


def make_model(config: GridNetConfig = TINY) -> GridNet:
    torch.manual_seed(0)
    return GridNet(config).eval()


def test_the_size_is_the_published_one() -> None:
    parameters = sum(p.numel() for p in GridNet(GridNetConfig()).parameters())
    assert parameters == pytest.approx(2_037_960, rel=0.05)
    assert macs_per_chunk(GridNetConfig()) == pytest.approx(39.0e6, rel=0.05)
    state = GridNet(GridNetConfig()).initial_state().tensors()
    assert sum(part.numel() for part in state.values()) == pytest.approx(1_305_620, rel=0.02)


@pytest.mark.parametrize("config", [TINY, GridNetConfig(8, 6, 1, 2, 5, embedding=0, outputs=3)])
def test_chunks_give_what_the_whole_gives(config: GridNetConfig) -> None:
    model = make_model(config)
    x = 0.1 * torch.randn(2, 2, 20 * CHUNK)
    embedding = torch.randn(2, config.embedding) if config.embedding else None
    with torch.inference_mode():
        whole = model(x, embedding)
        state, pieces = model.initial_state(2), []
        for chunk in x.split(CHUNK, dim=-1):
            piece, state = model.step(chunk, embedding, state)
            pieces.append(piece)
    assert whole.shape == (2, config.outputs, 2, 20 * CHUNK)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, atol=1e-5, rtol=1e-4)


def test_the_future_changes_nothing_before_its_lookahead() -> None:
    model = make_model()
    x = 0.1 * torch.randn(1, 2, 12 * CHUNK)
    other = x.clone()
    other[..., 1000:] += 0.1
    embedding = torch.randn(1, 7)
    with torch.inference_mode():
        same = (model(x, embedding) == model(other, embedding)).all(dim=(0, 1, 2))
    assert same[: 1000 // CHUNK * CHUNK].all()
    assert not same[1000 + OVERLAP :].all()


def test_gradients_reach_everything_and_the_speaker_matters() -> None:
    model = make_model().train()
    x, embedding = 0.1 * torch.randn(1, 2, 6 * CHUNK), torch.randn(1, 7)
    model(x, embedding).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert (model(x, embedding) - model(x, torch.randn(1, 7))).abs().max() > 1e-4
