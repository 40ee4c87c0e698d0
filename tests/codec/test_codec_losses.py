"""Distances between decoded and original speech, and which network gets which gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audio_llm.codec.discriminators import RESOLUTIONS, Discriminators
from audio_llm.codec.losses import (
    SCALES,
    adversarial_loss,
    discriminator_loss,
    feature_distance,
    spectral_distance,
)
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.codec.sound_loss import SoundLossConfig
from audio_llm.codec.train import CodecTrainingConfig, _Training
from audio_llm.training.loop import TrainingConfig

torch.set_num_threads(1)


def speech(seed: int = 0, batch: int = 2, samples: int = 4800) -> Tensor:
    time_s = torch.arange(samples) / 16_000
    noise = torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))
    return 0.2 * torch.sin(2 * torch.pi * 300 * time_s) + 0.02 * noise


def test_equal_sounds_have_no_distance() -> None:
    assert spectral_distance(speech(), speech()) == 0.0


def test_the_distance_grows_with_the_noise() -> None:
    clean, noise = speech(), torch.randn(2, 4800, generator=torch.Generator().manual_seed(5))
    distances = [spectral_distance(clean + level * noise, clean).item() for level in (0.001, 0.01, 0.1, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 0.0
    assert distances[-1] > 3 * distances[1]


def test_level_and_tone_count_but_the_distance_is_finite_for_silence() -> None:
    clean = speech()
    assert spectral_distance(0.5 * clean, clean) > 0.3
    assert spectral_distance(clean.roll(40, -1), clean) < spectral_distance(speech(3) * 3.0, clean)
    silent = torch.zeros(1, 4800, requires_grad=True)
    distance = spectral_distance(silent, torch.zeros(1, 4800))
    distance.backward()
    assert distance == 0.0
    assert torch.isfinite(silent.grad).all()


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_reacts_to_a_tone_at_any_frequency(scale: object) -> None:
    time_s = torch.arange(4800) / 16_000
    silence = torch.zeros(1, 4800)
    for hertz in (60.0, 250.0, 1000.0, 3100.0, 7000.0):
        tone = 0.1 * torch.sin(2 * torch.pi * hertz * time_s)[None]
        assert spectral_distance(tone, silence, (scale,)) > 0.05, hertz


def test_the_gradient_goes_to_the_decoded_sound_alone() -> None:
    decoded, original = speech(1).requires_grad_(), speech(2).requires_grad_()
    spectral_distance(decoded, original).backward()
    assert original.grad is None
    assert decoded.grad is not None
    assert decoded.grad.abs().max() > 0
    with torch.no_grad():  # a step downhill helps
        better = decoded - 1e-3 * decoded.grad / decoded.grad.abs().max()
        assert spectral_distance(better, original) < spectral_distance(decoded, original)


def test_hinge_losses_have_their_values() -> None:
    sure, wrong = [torch.full((2, 3), 2.0)], [torch.full((2, 3), -3.0)]
    assert discriminator_loss(sure, wrong) == 0.0
    assert discriminator_loss(wrong, sure) == pytest.approx(4.0 + 3.0)
    assert adversarial_loss(sure) == 0.0
    assert adversarial_loss(wrong) == pytest.approx(4.0)
    both = [torch.zeros(1), torch.ones(1)]
    assert adversarial_loss(both) == pytest.approx(0.5)


def test_feature_distance_is_relative_and_pulls_the_fake_one_only() -> None:
    real = [[torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).add(1.0).requires_grad_()]]
    fake = [[(1.5 * real[0][0]).detach().requires_grad_()]]
    distance = feature_distance(real, fake)
    assert distance.item() == pytest.approx(0.5, abs=1e-3)
    scaled = feature_distance([[10 * real[0][0]]], [[10 * fake[0][0]]])
    assert scaled.item() == pytest.approx(0.5, abs=1e-3)
    distance.backward()
    assert real[0][0].grad is None
    assert fake[0][0].grad is not None


def test_discriminators_score_at_every_resolution_and_can_learn() -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(channels=4)
    real, fake = speech(0, 2, 2400), 0.2 * torch.randn(2, 2400, generator=torch.Generator().manual_seed(9))
    outputs = discriminators(real)
    assert len(outputs.scores) == len(outputs.layers) == len(RESOLUTIONS)
    assert all(scores.shape[0] == 2 for scores in outputs.scores)
    optimizer = torch.optim.Adam(discriminators.parameters(), lr=2e-2)
    losses = []
    for _ in range(20):
        loss = discriminator_loss(discriminators(real).scores, discriminators(fake).scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def gradients(codec: CodecConfig, **changes: object) -> dict[str, Tensor]:
    """Return the gradients of one pass of a training whose weights are always the same."""
    sound = replace(SoundLossConfig(channels=4), **changes)
    config = CodecTrainingConfig(codec, TrainingConfig(max_steps=1), sound=sound)
    torch.manual_seed(0)
    network = CodecNetwork(codec)
    torch.manual_seed(1)
    module = _Training(config, network).train()
    module(speech()).backward()
    by_name = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient is not None for gradient in by_name.values())
    return by_name


def same(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> bool:
    names = [name for name in one if name.startswith(part)]
    assert names
    return all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-7) for name in names)


@pytest.mark.parametrize("weights", [{"adversarial_weight": 30.0}, {"feature_weight": 30.0}])
def test_losses_of_the_codec_do_not_train_the_discriminators(tiny: CodecConfig, weights: dict[str, float]) -> None:
    off = {"adversarial_from": 0, "adversarial_weight": 0.0, "feature_weight": 0.0}
    without, with_it = gradients(tiny, **off), gradients(tiny, **{**off, **weights})
    assert same(without, with_it, "judge.discriminators")
    assert not same(without, with_it, "codec")  # while the codec does learn from it
    assert max(gradient.abs().max() for name, gradient in without.items() if name.startswith("judge.disc")) > 1e-4


def test_losses_of_the_discriminators_do_not_train_the_codec(tiny: CodecConfig) -> None:
    alone = gradients(tiny, adversarial_from=-1)
    unweighted = gradients(tiny, adversarial_from=0, adversarial_weight=0.0, feature_weight=0.0)
    assert not any(name.startswith("judge.discriminators") for name in alone)
    assert same(alone, unweighted, "codec")


def test_discriminators_take_part_from_their_step_on(
    tiny: CodecConfig, make_codec: Callable[..., CodecNetwork]
) -> None:
    loop = TrainingConfig(max_steps=9, batches_per_step=2)
    config = CodecTrainingConfig(tiny, loop, sound=SoundLossConfig(adversarial_from=2, channels=4))
    torch.manual_seed(0)
    module = _Training(config, make_codec()).train()
    learned = []
    for _ in range(5):
        module.zero_grad()
        module(speech()).backward()
        learned.append(any(p.grad is not None for p in module.judge.discriminators.parameters()))
    assert learned == [False, False, False, True, True]
