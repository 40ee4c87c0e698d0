"""Vector quantization by cosine: nearest by angle, a codebook that follows the data, no dead entries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from audio_llm.quantizers.vq import CosineVQ

torch.set_num_threads(1)
WIDTH = 6


def make_quantizer(size: int = 32, seed: int = 0) -> CosineVQ:
    torch.manual_seed(seed)
    return CosineVQ(size, WIDTH)


def clusters(count: int, vectors: int, generator: torch.Generator) -> Tensor:
    """Return (1, vectors, WIDTH) around `count` directions that are always the same, of any length."""
    centers = functional.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(7)), dim=-1)
    chosen = torch.randint(count, (vectors,), generator=generator)
    x = centers[chosen] + 0.05 * torch.randn(vectors, WIDTH, generator=generator)
    return (x * torch.rand(vectors, 1, generator=generator).add(0.1).mul(10.0))[None]


def all_of(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def mean_cosine(quantizer: CosineVQ, x: Tensor) -> float:
    result = quantizer(x, all_of(x))
    return float((result.bounded * result.values).sum(-1).mean())


def test_codes_are_the_nearest_by_cosine() -> None:
    quantizer = make_quantizer().eval()
    x = 5.0 * torch.randn(3, 20, WIDTH, generator=torch.Generator().manual_seed(1))
    result = quantizer(x, all_of(x))
    cosines = functional.cosine_similarity(x[:, :, None], quantizer.codebook, dim=-1)
    assert torch.equal(result.codes, cosines.argmax(-1))
    assert torch.equal(quantizer(0.01 * x, all_of(x)).codes, result.codes)  # length does not count


def test_values_are_those_of_the_codes() -> None:
    quantizer = make_quantizer().eval()
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    result = quantizer(x, all_of(x))
    torch.testing.assert_close(result.values, quantizer.decode(result.codes))
    torch.testing.assert_close(result.values.norm(dim=-1), torch.ones(2, 9))
    expected = 0.25 * (functional.normalize(x, dim=-1) - result.values).square().sum(-1).mean()
    torch.testing.assert_close(result.loss, expected)


def test_the_codebook_follows_clusters() -> None:
    quantizer = make_quantizer().train()
    generator = torch.Generator().manual_seed(0)
    held_out = clusters(24, 500, torch.Generator().manual_seed(99))
    before = mean_cosine(quantizer.eval(), held_out)
    quantizer.train()
    for _ in range(300):
        x = clusters(24, 200, generator)
        quantizer(x, all_of(x))
    after = mean_cosine(quantizer.eval(), held_out)
    assert after > max(0.95, before + 0.15)
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(32))


def test_unused_codes_are_restarted() -> None:
    quantizer = make_quantizer(size=64).train()
    generator = torch.Generator().manual_seed(0)
    # one direction first: the codes gather there and all but a few die; then many directions
    for _ in range(20):
        x = clusters(1, 100, generator)
        quantizer(x, all_of(x))
    for _ in range(700):
        x = clusters(48, 400, generator)
        quantizer(x, all_of(x))
    x = clusters(48, 4000, torch.Generator().manual_seed(5))
    uses = torch.bincount(quantizer.eval()(x, all_of(x)).codes[0], minlength=64)
    assert (uses > 0).float().mean() > 0.8
    assert mean_cosine(quantizer, x) > 0.97


def test_use_changes_nothing() -> None:
    quantizer = make_quantizer().train()
    x = clusters(8, 100, torch.Generator().manual_seed(0))
    quantizer(x, all_of(x))
    before = {name: buffer.clone() for name, buffer in quantizer.state_dict().items()}
    quantizer.eval()(x, all_of(x))
    for name, buffer in quantizer.state_dict().items():
        assert torch.equal(buffer, before[name]), name
    quantizer.train()(x, all_of(x))
    assert not torch.equal(quantizer.codebook, before["codebook"])


def test_padding_moves_nothing() -> None:
    x = clusters(8, 100, torch.Generator().manual_seed(0))
    mask = torch.arange(100)[None] < 60
    padded = torch.where(mask[..., None], x, torch.tensor(100.0))
    codebooks, losses = [], []
    for given in (x, padded):
        quantizer = make_quantizer().train()
        torch.manual_seed(3)
        quantizer(given, mask)
        losses.append(quantizer(given, mask).loss)
        codebooks.append(quantizer.codebook)
    assert torch.equal(*codebooks)
    assert torch.equal(*losses)
    assert quantizer(x, torch.zeros_like(mask)).loss == 0.0


def test_the_gradient_passes_straight_through() -> None:
    quantizer = make_quantizer().eval()
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    x = functional.normalize(x, dim=-1).requires_grad_()
    target = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(2))
    (quantizer(x, all_of(x)).values * target).sum().backward()
    # of the normalization only: what lies along a unit vector has no effect
    unit = x.detach()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, target - (target * unit).sum(-1, keepdim=True) * unit, atol=1e-5, rtol=1e-4)


def test_a_stored_quantizer_gives_the_same_codes() -> None:
    quantizer = make_quantizer().train()
    x = clusters(8, 100, torch.Generator().manual_seed(0))
    quantizer(x, all_of(x))
    other = make_quantizer(seed=5)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.eval()(x, all_of(x)).codes, quantizer.eval()(x, all_of(x)).codes)
