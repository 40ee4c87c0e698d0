"""Training of the mask network on synthetic voices in noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audio_llm import hub
from audio_llm.codec.codec import LEVEL_DB
from audio_llm.errors import DataError
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork
from audio_llm.gense.mask_train import MaskTrainingConfig, PairBatch, make_batch, mask_loss, train_mask
from audio_llm.gense.models import load_mask
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.training.batching import fresh_batches
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.perceptual import PerceptualLoss

torch.set_num_threads(1)
PAIRS = NoisyConfig(
    seconds=0.4, snr_db=(-5.0, 5.0), clean_prob=0.0, silent_prob=0.1, babble_prob=0.0, colored_prob=1.0,
    room_prob=0.0, narrow_prob=0.0, clipped_prob=0.0,
)  # fmt: skip


def settings(model: MaskConfig, steps: int, **changes: object) -> MaskTrainingConfig:
    loop = TrainingConfig(steps, learning_rate=2e-2, warmup_steps=2, log_every=2, validate_every=8)
    config = MaskTrainingConfig(model, loop, PAIRS, batch_pairs=4, epoch_batches=10, validation_pairs=6)
    return replace(config, **changes)


def validated(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [row["validation"] for row in rows if "validation" in row]


def batch(silent: bool = False, seed: int = 0) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    clean = 0.1 * torch.randn(2, 4000, generator=generator) * (0.0 if silent else 1.0)
    return PairBatch(clean + 0.05 * torch.randn(2, 4000, generator=generator), clean)


def test_training_removes_noise_and_leaves_a_model(speech_pack: Path, tmp_path: Path, tiny: MaskConfig) -> None:
    out, config = tmp_path / "out", settings(tiny, 24)
    result = train_mask(speech_pack, speech_pack, out, config, device="cpu", provenance={"made": "here"})
    assert result.steps == 24
    values = validated(out)
    assert len(values) == 3
    assert values[0].keys() == {"loss", "si_sdri_db"}
    assert values[-1]["loss"] < values[0]["loss"]
    assert values[-1]["si_sdri_db"] > 1.0
    assert result.best_value == min(row["loss"] for row in values)
    trained = load_mask(out / "best")
    assert trained.config == tiny
    assert hub.load_model(out / "best").provenance["made"] == "here"
    pairs = make_batch(NoisySpeech(SpeechPack(speech_pack), PAIRS), range(500, 506))
    with torch.no_grad():
        before = mask_loss(MaskNetwork(tiny)(pairs.noisy), pairs, config)  # everything passes
        assert mask_loss(trained(pairs.noisy), pairs, config) < 0.8 * before


def test_a_stopped_training_resumes(speech_pack: Path, tmp_path: Path, tiny: MaskConfig) -> None:
    config = settings(tiny, 6)
    config = replace(config, training=replace(config.training, schedule="constant", validate_every=3))
    train_mask(speech_pack, speech_pack, tmp_path / "whole", config, device="cpu")
    half = replace(config, training=replace(config.training, max_steps=3))
    train_mask(speech_pack, speech_pack, tmp_path / "halves", half, device="cpu")
    again = train_mask(speech_pack, speech_pack, tmp_path / "halves", config, device="cpu", resume=True)
    assert again.steps == 6
    one, other = (validated(tmp_path / name)[-1] for name in ("whole", "halves"))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_training_continues_from_a_given_model(speech_pack: Path, tmp_path: Path, tiny: MaskConfig) -> None:
    train_mask(speech_pack, speech_pack, tmp_path / "one", settings(tiny, 16), device="cpu")
    config = settings(tiny, 1)
    config = replace(config, training=replace(config.training, learning_rate=1e-9))
    train_mask(speech_pack, speech_pack, tmp_path / "two", config, device="cpu", start_from=tmp_path / "one/best")
    best = min(row["loss"] for row in validated(tmp_path / "one"))
    assert validated(tmp_path / "two")[0]["loss"] == pytest.approx(best, rel=1e-3)


def test_packs_that_are_missing_or_not_clean_enough_are_refused(
    speech_pack: Path, tmp_path: Path, tiny: MaskConfig
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train_mask(tmp_path / "nowhere", speech_pack, tmp_path / "out", settings(tiny, 1), device="cpu")
    strict = settings(tiny, 1, least_dynamics_db=41.0)
    with pytest.raises(DataError, match="lower the demands"):
        train_mask(speech_pack, speech_pack, tmp_path / "out", strict, device="cpu")


def test_every_epoch_draws_fresh_batches(speech_pack: Path, tiny: MaskConfig) -> None:
    config = settings(tiny, 1)
    batches = fresh_batches(config.batch_pairs, config.epoch_batches)
    one, other = batches(0), batches(1)
    seeds = [seed for batch in one + other for seed in batch]
    assert seeds == list(range(80))
    speech = NoisySpeech(SpeechPack(speech_pack), PAIRS)
    first, again = make_batch(speech, one[0]), make_batch(speech, one[0])
    assert first.noisy.shape == first.clean.shape == (4, 6400)
    assert torch.equal(first.noisy, again.noisy)
    assert torch.equal(first.clean, again.clean)
    assert not torch.equal(first.noisy, make_batch(speech, one[1]).noisy)
    assert not torch.equal(first.noisy, make_batch(speech, one[0], 1 << 40).noisy)


def test_the_loss_is_least_for_the_clean_sound(tiny: MaskConfig) -> None:
    config, pairs = settings(tiny, 1), batch()
    clean, half, noisy, silent = (
        mask_loss(sound, pairs, config).item()
        for sound in (pairs.clean, 0.5 * (pairs.clean + pairs.noisy), pairs.noisy, 0.0 * pairs.noisy)
    )
    assert clean < half < noisy < silent
    without = replace(config, ratio_weight=0.0)
    assert mask_loss(pairs.clean, pairs, without).item() == pytest.approx(0.0, abs=1e-9)


def test_level_does_not_change_the_loss(tiny: MaskConfig) -> None:
    config, pairs = settings(tiny, 1), batch()
    quiet = PairBatch(*(0.05 * part for part in pairs))
    one, other = mask_loss(pairs.noisy, pairs, config), mask_loss(quiet.noisy, quiet, config)
    assert other.item() == pytest.approx(one.item(), rel=1e-3)


def test_the_target_is_silence_where_there_is_no_speaker(tiny: MaskConfig) -> None:
    config, pairs = settings(tiny, 1), batch(silent=True)
    losses = [mask_loss(gain * pairs.noisy, pairs, config).item() for gain in (1.0, 0.1, 0.0)]
    assert losses[0] > losses[1] > losses[2] >= 0.0
    sound = (0.3 * pairs.noisy).requires_grad_()
    mask_loss(sound, pairs, config).backward()
    assert torch.isfinite(sound.grad).all()
    zero = torch.zeros(2, 4000, requires_grad=True)
    mask_loss(zero, PairBatch(torch.zeros(2, 4000), torch.zeros(2, 4000)), config).backward()
    assert torch.isfinite(zero.grad).all()


def test_the_perceptual_loss_is_added_where_there_is_speech() -> None:
    def loudness(waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert lengths.tolist() == [4000] * len(waveforms)
        return waveforms.abs().mean(-1) / 10 ** (LEVEL_DB / 20)  # at the level of use

    perceptual_loss = PerceptualLoss("an ear", "0" * 64, loudness)
    config, speech, silent = MaskTrainingConfig(perceptual_weight=0.5), batch(), batch(silent=True)
    level = speech.noisy.square().mean(-1, keepdim=True).sqrt() + 1e-6
    apart = 0.3 * (speech.clean / level).abs().mean()
    added = mask_loss(0.7 * speech.clean, speech, config, perceptual_loss) - mask_loss(
        0.7 * speech.clean, speech, config
    )
    assert added == pytest.approx(0.5 * float(apart), rel=1e-4)
    assert mask_loss(silent.noisy, silent, config, perceptual_loss) == mask_loss(silent.noisy, silent, config)
