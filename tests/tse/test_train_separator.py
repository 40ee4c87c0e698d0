"""Losses, the order of the talkers, and a training of the trunk on a few made-up people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.simulation.heads import load_head
from audio_llm.simulation.scene_plan import SceneConfig, Voice
from audio_llm.simulation.scenes import make_scene
from audio_llm.simulation.sources import read_sources, write_sources
from audio_llm.training.loop import TrainingConfig
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.losses import negative_ratios, si_sdr_db, snr_db
from audio_llm.tse.train_separator import KIND, SeparatorTrainingConfig, left_to_right, train_separator

torch.set_num_threads(1)
PAIRS = SceneConfig(seconds=0.512, talkers=(2, 2), moving_share=0.0, absent_share=0.0, fully_absent_share=0.0)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    rng = np.random.default_rng(0)
    time_s = np.arange(24_000) / 16_000
    voices = []
    for number in range(6):  # buzzes of different pitch, cut into syllables
        pitch = 90.0 + 40.0 * number
        buzz = sum(np.sin(2 * np.pi * pitch * k * time_s + k) / k for k in range(1, 20))
        sounds = tuple(
            (0.1 * buzz * (np.sin(2 * np.pi * rng.uniform(2, 5) * time_s) > 0)).astype(np.float32) for _ in "ab"
        )
        voices.append(Voice(f"v{number}", "made", "", sounds))
    write_sources(folder, voices, [rng.standard_normal(9000).astype(np.float32)], [load_head()])
    return folder


def test_ratios_are_what_they_are_called() -> None:
    target = torch.randn(3, 2, 8000)
    noise = torch.randn(3, 2, 8000)
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    noise = noise * (target.square().sum(-1, keepdim=True) / noise.square().sum(-1, keepdim=True)).sqrt()
    for wanted_db in (-5.0, 10.0):
        mixed = target + noise * 10 ** (-wanted_db / 20)
        torch.testing.assert_close(snr_db(mixed, target), torch.full((3, 2), wanted_db), atol=1e-3, rtol=0)
        torch.testing.assert_close(si_sdr_db(7.0 * mixed, target), torch.full((3, 2), wanted_db), atol=2e-2, rtol=0)
    assert snr_db(2.0 * target, target).mean() == pytest.approx(0.0, abs=1e-3)  # level counts
    silent = torch.zeros(1, 100, requires_grad=True)
    negative_ratios(silent, torch.zeros(1, 100)).backward()
    assert torch.isfinite(silent.grad).all()


def test_the_left_talker_comes_first(pack: Path) -> None:
    sources = read_sources(pack)
    for index in range(10):
        scene = make_scene(sources, PAIRS, 3, index, with_look=False)
        first, second = left_to_right(scene)
        order = np.argsort([-np.sin(np.radians(talker.azimuth)) for talker in scene.plan.talkers])
        talkers = [scene.target, scene.others[0]]
        np.testing.assert_array_equal(first, talkers[order[0]])
        np.testing.assert_array_equal(second, talkers[order[1]])


def test_training_lowers_the_loss_and_leaves_a_model(pack: Path, tmp_path: Path) -> None:
    model = ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=2)
    loop = TrainingConfig(24, learning_rate=5e-3, warmup_steps=3, log_every=5, validate_every=4, save_every=20)
    config = SeparatorTrainingConfig(model, loop, PAIRS, batch_scenes=4, epoch_batches=50, validation_scenes=6)
    train_separator(pack, pack, tmp_path / "out", config, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    losses = [row["validation"]["loss"] for row in rows if "validation" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1.0
    loaded = hub.load_model(tmp_path / "out/best", KIND)
    assert loaded.config["outputs"] == 2
