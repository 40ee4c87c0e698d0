"""Losses, the order of the talkers, and a training of the separator on a few synthetic speakers."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.simulation.scene_plan import SceneConfig
from audio_llm.simulation.scenes import make_scene
from audio_llm.simulation.sources import read_sources
from audio_llm.sound_metrics import si_sdr_db, snr_db
from audio_llm.training.config import config_from_dict, load_config
from audio_llm.training.loop import TrainingConfig
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.losses import _loss, _pair_losses, best_order, in_order, leak_db, separation_loss, talking
from audio_llm.tse.models import load_separator
from audio_llm.tse.train_separator import SeparatorTrainingConfig, slots, talkers_by_stream, train_separator

torch.set_num_threads(1)
PAIRS = SceneConfig(seconds=0.512, talkers=(2, 2), moving_prob=0.0, absent_prob=0.0, fully_absent_prob=0.0)


def test_ratios_are_what_they_are_called() -> None:
    target = torch.randn(3, 2, 8000)
    noise = torch.randn(3, 2, 8000)
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    noise = noise * (target.square().sum(-1, keepdim=True) / noise.square().sum(-1, keepdim=True)).sqrt()
    for expected_db in (-5.0, 10.0):
        mixed = target + noise * 10 ** (-expected_db / 20)
        torch.testing.assert_close(snr_db(mixed, target), torch.full((3, 2), expected_db), atol=1e-3, rtol=0)
        torch.testing.assert_close(si_sdr_db(7.0 * mixed, target), torch.full((3, 2), expected_db), atol=2e-2, rtol=0)
    assert snr_db(2.0 * target, target).mean() == pytest.approx(0.0, abs=1e-3)  # level counts
    silent = torch.zeros(1, 1, 2, 100, requires_grad=True)
    separation_loss(silent, torch.zeros(1, 1, 2, 100), torch.ones(1, 2, 100)).backward()
    assert torch.isfinite(silent.grad).all()


def test_talkers_are_in_streams_from_left_to_right(pack: Path) -> None:
    sources = read_sources(pack)
    counts = set()
    for index in range(12):
        scene = make_scene(sources, replace(PAIRS, talkers=(2, 3)), 3, index, with_enrollment=False)
        count = len(scene.plan.talkers)
        counts.add(count)
        streams = talkers_by_stream(scene, 3)
        order = np.argsort([-np.sin(np.radians(talker.azimuth)) for talker in scene.plan.talkers])
        talkers = [scene.target, *scene.interferers]
        np.testing.assert_array_equal(streams[0], talkers[order[0]])
        np.testing.assert_array_equal(streams[2], talkers[order[-1]])
        np.testing.assert_array_equal(streams[1], talkers[order[1]] if count == 3 else 0.0 * scene.target)
        np.testing.assert_array_equal(streams[slots(scene, 3)[0]], scene.target)
    assert counts == {2, 3}


def test_an_empty_stream_is_trained_to_be_silent() -> None:
    mixture = torch.randn(1, 2, 4000)
    target = torch.stack([mixture, torch.zeros_like(mixture)], dim=1)
    losses = [separation_loss(torch.stack([0.9 * mixture, x * mixture], 1), target, mixture) for x in (1.0, 0.1, 0.0)]
    assert losses[0] > losses[1] > losses[2]
    assert leak_db(mixture, mixture).mean() == pytest.approx(0.0, abs=0.1)
    assert leak_db(0.0 * mixture, mixture).mean() == pytest.approx(-20.0, abs=0.1)
    assert talking(target).tolist() == [[True, False]]


def test_the_best_order_is_the_one_of_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 3, 2, 800, generator=generator)
    target[1:3, 1] = 0.0  # two scenes where one of three streams is empty
    mixture = target.sum(1)
    orders = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
    noise = torch.randn(4, 3, 2, 800, generator=generator)
    estimates = in_order(target, orders) + 0.3 * noise
    assert torch.equal(best_order(estimates, target, mixture), orders)
    for scene, best in enumerate(orders):
        one = slice(scene, scene + 1)
        least = separation_loss(estimates[one], target[one, best], mixture[one])
        for other in permutations(range(3)):
            assert separation_loss(estimates[one], target[one, list(other)], mixture[one]) >= least


def test_losses_of_pairs_are_those_of_the_loss_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(3, 3, 2, 800, generator=generator) + 0.1
    target[1, 2] = 0.0
    estimate = 0.7 * target.flip(1) + 0.2 * torch.randn(3, 3, 2, 800, generator=generator)
    mixture = target.sum(1)
    direct = _loss(estimate[:, :, None], target[:, None], mixture[:, None], 0.3)
    torch.testing.assert_close(_pair_losses(estimate, target, mixture, 0.3), direct, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("order", ["location", "best"])
def test_training_lowers_the_loss_and_leaves_a_model(pack: Path, scenes_here: None, tmp_path: Path, order: str) -> None:
    model = ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3, front=True)
    loop = TrainingConfig(16, learning_rate=5e-3, warmup_steps=3, log_every=1, validate_every=8)
    config = SeparatorTrainingConfig(
        model=model,
        training=loop,
        scenes=PAIRS,
        batch_scenes=4,
        front_weight=1.0,
        order=order,
        epoch_batches=50,
        validation_scenes=4,
    )
    train_separator(pack, pack, tmp_path / "out", config, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    losses = [row["validation"]["loss"] for row in rows if "validation" in row]
    assert len(losses) == 2
    assert losses[-1] < losses[0] < rows[0]["loss"] - 0.2  # of the first batch, before anything was learned
    loaded = hub.load_model(tmp_path / "out/best", "tse-separator")
    assert loaded.config["outputs"] == 3


def test_the_committed_separator_and_its_settings_load() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "tse"
    separator = load_separator(recipe / "separator")
    config = load_config(SeparatorTrainingConfig, recipe / "config" / "separate.yaml")
    assert separator.config == config.model
    Extractor(config.model).load_state_dict(separator.state_dict())
    stored = hub.model_info(recipe / "separator").provenance["training"]
    assert config_from_dict(SeparatorTrainingConfig, stored).model == config.model
