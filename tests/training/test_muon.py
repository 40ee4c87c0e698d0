"""Muon: matrices take orthogonal steps, the rest AdamW's, and a resumed training continues unchanged."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from audio_llm.training.checkpoint import load_checkpoint, save_checkpoint
from audio_llm.training.muon import Muon, orthogonal

torch.set_num_threads(1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = nn.Linear(24, 32), nn.Linear(32, 20), nn.Linear(20, 16)
        self.stack = nn.Parameter(torch.randn(3, 16, 16) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.inner(self.first(x).tanh()).tanh())
        return torch.einsum("bi,kij->bj", x, self.stack)


def make(network: Network, rate: float = 1e-2) -> Muon:
    return Muon(network, ["first", "last"], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)


def learn(network: Network, optimizer: Muon, steps: int, seed: int = 0) -> float:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, 24, generator=generator)
        loss = (network(x) - x[:, :16]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def test_singular_values_are_near_one_and_vectors_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 40), (40, 16), (5, 20, 20)):
        matrix = torch.randn(shape, generator=generator)
        result = orthogonal(matrix)
        assert result.shape == matrix.shape
        values = torch.linalg.svdvals(result)
        assert values.median() > 0.6
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        turned = u.mT @ result @ v.mT  # diagonal, where the vectors are the same
        rest = turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))
        assert rest.abs().max() < 1e-3
    torch.testing.assert_close(orthogonal(1e-3 * matrix), result, atol=1e-3, rtol=0)  # no size


def test_matrices_move_by_the_rate_and_the_rest_is_adamw() -> None:
    network, twin = Network(), Network()
    optimizer, adamw = make(network), torch.optim.AdamW(twin.parameters(), 1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    for each, steps in ((network, optimizer), (twin, adamw)):
        learn(each, steps, 1)
    before = Network()
    for name in ("first.weight", "first.bias", "inner.bias", "last.weight"):
        assert torch.equal(network.get_parameter(name), twin.get_parameter(name)), name
    for name in ("inner.weight", "stack"):
        step = (network.get_parameter(name) - before.get_parameter(name)).detach()
        size = 0.2 * max(step.shape[-2:]) ** 0.5 * 1e-2
        values = torch.linalg.svdvals(step) / size
        assert values.median() > 0.6
        assert values.max() < 1.3


def test_it_learns_and_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    network, again = Network(), Network()
    optimizer = make(network)
    first = learn(network, optimizer, 1)
    learn(network, optimizer, 60)
    save_checkpoint(tmp_path / "last", network, optimizer, torch.zeros(1, 8, dtype=torch.uint8), {})
    resumed = make(again)
    load_checkpoint(tmp_path / "last", again, resumed)
    last = learn(network, optimizer, 5, seed=1)
    assert last < 0.3 * first
    assert learn(again, resumed, 5, seed=1) == last
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
