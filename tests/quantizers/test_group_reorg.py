"""Two small codebooks, and the large codebook of their most used entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audio_llm.errors import UsageError
from audio_llm.quantizers.group_reorg import GradientVQ, GroupVQ, reorganize

torch.set_num_threads(1)
SIZES, WIDTH = (12, 10), 6


def make_groups(seed: int = 0) -> GroupVQ:
    torch.manual_seed(seed)
    return GroupVQ(SIZES, WIDTH)


def vectors(count: int, seed: int = 1) -> Tensor:
    return 0.6 * torch.randn(2, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def all_of(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def test_codes_are_the_nearest_by_distance() -> None:
    torch.manual_seed(0)
    quantizer, x = GradientVQ(20, WIDTH).eval(), vectors(30)
    distances = torch.cdist(x, quantizer.codebook.detach()[None].expand(2, -1, -1))
    result = quantizer(x, all_of(x))
    assert torch.equal(result.codes, distances.argmin(-1))
    torch.testing.assert_close(result.values, quantizer.decode(result.codes))


def test_a_half_does_not_care_about_the_other() -> None:
    groups, x = make_groups().eval(), vectors(50)
    changed = x.clone()
    changed[..., WIDTH // 2 :] = -3.0 * changed[..., WIDTH // 2 :]
    one, other = groups(x, all_of(x)), groups(changed, all_of(x))
    assert groups.size == 120
    assert torch.equal(one.codes // SIZES[1], other.codes // SIZES[1])
    assert not torch.equal(one.codes % SIZES[1], other.codes % SIZES[1])
    assert torch.equal(one.values[..., : WIDTH // 2], other.values[..., : WIDTH // 2])
    torch.testing.assert_close(one.values, groups.decode(one.codes))


def test_uses_are_counted_in_training_and_without_padding() -> None:
    groups, x = make_groups().train(), vectors(50)
    mask = torch.arange(50)[None] < torch.tensor([[50], [20]])
    result = groups(x, mask)
    counts = torch.bincount((result.codes // SIZES[1])[mask], minlength=SIZES[0])
    assert torch.equal(groups.first.uses, counts)
    assert groups.second.uses.sum() == 70
    groups.eval()(x, mask)
    assert groups.second.uses.sum() == 70
    most = groups.first.most_used(4)
    assert counts[most].tolist() == sorted(counts.tolist(), reverse=True)[:4]


def test_reorganizing_pairs_the_most_used_entries() -> None:
    groups = make_groups()
    groups.first.uses.copy_(torch.tensor([0, 9, 0, 3, 0, 7, 0, 0, 1, 0, 0, 0]))
    groups.second.uses.copy_(torch.tensor([5, 0, 0, 0, 0, 0, 0, 0, 0, 8]))
    single = reorganize(groups, 3, 2)
    assert single.codebook.shape == (6, WIDTH)
    assert single.size == 6
    for i, first in enumerate((1, 5, 3)):
        for j, second in enumerate((9, 0)):
            row = torch.cat([groups.first.codebook[first], groups.second.codebook[second]])
            assert torch.equal(single.codebook[2 * i + j], row)
    assert single.uses.sum() == 0


def test_reorganized_with_all_entries_nothing_is_lost() -> None:
    groups, x = make_groups().eval(), vectors(80)
    single = reorganize(groups, *SIZES).eval()
    torch.testing.assert_close(single(x, all_of(x)).values, groups(x, all_of(x)).values)


@pytest.mark.parametrize("counts", [(13, 2), (2, 11)])
def test_more_entries_than_there_are_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="12 and 10"):
        reorganize(make_groups(), *counts)


def test_the_reorganized_codebook_learns_by_itself() -> None:
    groups = make_groups()
    single = reorganize(groups, 4, 4).train()
    before = groups.first.codebook.detach().clone()
    x = vectors(200)
    optimizer = torch.optim.SGD(single.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        loss = single(x, all_of(x)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(groups.first.codebook, before)


@pytest.mark.parametrize("make", [make_groups, lambda: reorganize(make_groups(), 4, 4)])
def test_a_stored_codebook_decodes_alike(make: object) -> None:
    assert callable(make)
    torch.manual_seed(0)
    trained = make().train()
    trained(vectors(20), all_of(vectors(20)))
    torch.manual_seed(77)
    other = GroupVQ(SIZES, WIDTH) if isinstance(trained, GroupVQ) else GradientVQ(16, WIDTH)
    codes = torch.arange(trained.size).view(2, -1)
    assert not torch.equal(other.decode(codes), trained.decode(codes))
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.decode(codes), trained.decode(codes))
    assert {name for name in trained.state_dict() if "uses" in name}  # the counts for the reorganization are stored


@pytest.mark.parametrize("kind", ["group", "single"])
def test_the_gradient_passes_straight_through(kind: str) -> None:
    torch.manual_seed(0)
    quantizer = (make_groups() if kind == "group" else GradientVQ(20, WIDTH)).eval()
    x = vectors(10).requires_grad_()
    expected = vectors(10, seed=5)
    (quantizer(x, all_of(x)).values * expected).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_input_and_codebook_draw_near_each_other() -> None:
    quantizer = GradientVQ(20, WIDTH).eval()
    x = vectors(10).requires_grad_()
    result = quantizer(x, all_of(x))
    result.loss.backward()
    away = x.detach() - quantizer.decode(result.codes).detach()
    assert x.grad is not None
    assert ((x.grad * away).sum(-1) >= 0).all()  # a step against the gradient shortens the way
    assert quantizer.codebook.grad is not None
    chosen = torch.zeros(20, dtype=torch.bool)
    chosen[result.codes.unique()] = True
    assert (quantizer.codebook.grad[chosen].abs().sum(-1) > 0).all()
    assert not quantizer.codebook.grad[~chosen].any()


def test_padding_has_no_effect() -> None:
    x = vectors(20)
    mask = torch.arange(20)[None] < torch.tensor([[20], [7]])
    padded = torch.where(mask[..., None], x, torch.tensor(50.0))
    losses, uses = [], []
    for given in (x, padded):
        groups = make_groups().train()
        losses.append(groups(given, mask).loss)
        uses.append(groups.first.uses)
    torch.testing.assert_close(*losses)
    assert torch.equal(*uses)
