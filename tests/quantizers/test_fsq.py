"""Finite scalar quantization: every code is reachable and used, and padding has no effect."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from audio_llm.errors import ConfigError
from audio_llm.quantizers.fsq import FSQ

torch.set_num_threads(1)
CODEC, TOKENIZER = (8, 8, 8, 4, 4), (8, 5, 5, 5)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def settled(levels: tuple[int, ...], scale: float, offset: float) -> FSQ:
    """Return a quantizer that was trained on much Gaussian input, in training mode."""
    quantizer = FSQ(levels).train()
    for seed in range(1500):
        x = scale * gaussian(1, 64, len(levels), seed=seed) + offset
        quantizer(x, everywhere(x))
    return quantizer


@pytest.mark.parametrize(("levels", "size"), [(CODEC, 8192), (TOKENIZER, 1000), ((2,), 2)])
def test_every_code_comes_back(levels: tuple[int, ...], size: int) -> None:
    quantizer = FSQ(levels)
    assert (quantizer.size, quantizer.width) == (size, len(levels))
    codes = torch.arange(size)
    values = quantizer.decode(codes)
    assert values.shape == (size, len(levels))
    assert torch.equal(quantizer.encode_values(values), codes)
    assert len(values.unique(dim=0)) == size
    assert values.abs().max() < 1.0
    together = quantizer.decode(codes.view(2, -1))
    assert torch.equal(together, values.view(2, -1, len(levels)))


def test_digits_count_as_in_a_number() -> None:
    quantizer = FSQ(TOKENIZER)
    digits = quantizer.digits(torch.arange(1000))
    counted = [list(reversed(row)) for row in product(range(5), range(5), range(5), range(8))]
    assert digits.tolist() == counted
    assert quantizer.decode(torch.tensor(0)).tolist() == pytest.approx([1 / n - 1 for n in TOKENIZER])


def test_values_are_those_of_the_codes_and_the_nearest_level() -> None:
    quantizer = FSQ(CODEC).eval()
    result = quantizer(gaussian(3, 50, 5), torch.ones(3, 50, dtype=torch.bool))
    assert torch.equal(result.codes, quantizer.encode_values(result.values))
    torch.testing.assert_close(result.values, quantizer.decode(result.codes))
    half_step = 1.0 / torch.tensor(CODEC)
    assert ((result.values - result.bounded).abs() <= half_step + 1e-6).all()
    assert result.loss == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_passes(training: bool) -> None:
    quantizer = FSQ(TOKENIZER).train(training)
    x = gaussian(2, 40, 4).requires_grad_()
    result = quantizer(x, everywhere(x))
    expected = gaussian(2, 40, 4, seed=1)
    (result.values * expected).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad.abs() > 0).all()
    if not training:  # straight through the rounding: the slope of the distribution function
        slope = 2.0 / math.sqrt(2.0 * math.pi) * torch.exp(-0.5 * x.detach().square())
        torch.testing.assert_close(x.grad, expected * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("levels", "scale", "offset"), [(CODEC, 0.05, 0.3), (CODEC, 300.0, -900.0), (TOKENIZER, 1, 0)])
def test_nearly_every_code_is_used_whatever_scale_and_offset(
    levels: tuple[int, ...], scale: float, offset: float
) -> None:
    quantizer = settled(levels, scale, offset)
    x = scale * gaussian(1, 60_000, len(levels), seed=9999) + offset
    for mode in (False, True):
        codes = quantizer.train(mode)(x, everywhere(x)).codes
        uses = torch.bincount(codes.flatten(), minlength=quantizer.size)
        assert (uses > 0).float().mean() > 0.9
        fractions = uses[uses > 0] / uses.sum()
        perplexity = float((-(fractions * fractions.log()).sum()).exp())
        assert perplexity > 0.75 * quantizer.size  # evenly, not only here and there


def test_running_statistics_become_those_of_the_data() -> None:
    quantizer = settled(TOKENIZER, 3.0, -7.0)
    torch.testing.assert_close(quantizer.mean, torch.full((4,), -7.0), atol=0.3, rtol=0)
    torch.testing.assert_close(quantizer.variance, torch.full((4,), 9.0), atol=1.0, rtol=0)


def test_in_use_a_batch_equals_one_by_one_and_nothing_is_learned() -> None:
    quantizer = settled(TOKENIZER, 2.0, 1.0).eval()
    before = {name: buffer.clone() for name, buffer in quantizer.state_dict().items()}
    x = 4.0 * gaussian(5, 30, 4)
    together = quantizer(x, everywhere(x))
    for row in range(5):
        alone = quantizer(x[row : row + 1], everywhere(x[row : row + 1]))
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.values[0], together.values[row])
    assert before.keys() == {"mean", "variance"}
    for name, buffer in quantizer.state_dict().items():
        assert torch.equal(buffer, before[name]), name


def test_padding_does_not_reach_the_statistics() -> None:
    x = gaussian(3, 40, 4)
    mask = torch.arange(40)[None] < torch.tensor([[40], [11], [0]])
    changed = torch.where(mask[..., None], x, torch.tensor(1e4))
    one, other = FSQ(TOKENIZER).train(), FSQ(TOKENIZER).train()
    clean, padded = one(x, mask), other(changed, mask)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.variance, other.variance)
    assert torch.equal(clean.codes[mask], padded.codes[mask])
    valid = x[mask]
    torch.testing.assert_close(one.mean, 0.01 * valid.mean(0))
    torch.testing.assert_close(one.variance, 0.99 + 0.01 * valid.var(0, unbiased=False))


def test_a_batch_of_padding_alone_is_harmless() -> None:
    quantizer = FSQ(TOKENIZER).train()
    result = quantizer(gaussian(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool))
    assert torch.isfinite(result.values).all()
    assert torch.equal(quantizer.mean, torch.zeros(4))


@pytest.mark.parametrize("levels", [(), (8, 1), (0,), (8, 8, -3)])
def test_too_few_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        FSQ(levels)


def test_the_largest_numbers_stay_in_the_codebook() -> None:
    quantizer = FSQ(CODEC).eval()
    extremes = torch.tensor([[[-1e9] * 5, [1e9] * 5]])
    assert quantizer(extremes, everywhere(extremes)).codes.tolist() == [[0, 8191]]


def test_codes_differ_by_the_mean_of_their_digits() -> None:
    quantizer = FSQ([8, 5, 5, 5])
    one, other = torch.tensor([0, 999, 3]), torch.tensor([8, 999, 4])
    assert quantizer.distance(one, other).tolist() == [0.25, 0.0, 0.25]
    assert float(quantizer.distance(torch.tensor(0), torch.tensor(999))) == (7 + 4 + 4 + 4) / 4
