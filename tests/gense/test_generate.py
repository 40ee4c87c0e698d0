"""Resynthesis of a chunk, and training of its models, with tiny networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.codec.codec import KIND as CODEC
from audio_llm.codec.codec import load_codec_network, to_level
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.errors import ConfigError, DataError, ModelFormatError
from audio_llm.gense.checks import Limits
from audio_llm.gense.generate import GeneratedContext, Resynthesizer, _match_level
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork
from audio_llm.gense.models import ACOUSTIC_SAMPLING, GenseModel, Parts, load_gense, load_parts
from audio_llm.gense.network import Chain, GenseConfig, GenseNetwork
from audio_llm.gense.train import PACK_S, GenseTrainingConfig, TokenPackConfig, _corrupted, pack_tokens, train_gense
from audio_llm.lm.sampling import GREEDY, MEDIAN, Sampling
from audio_llm.lm.token_lm import TokenLmConfig
from audio_llm.simulation.noisy import NoisyConfig
from audio_llm.tokenizer.s3 import KIND as TOKENIZER
from audio_llm.tokenizer.s3_model import S3Config, S3Network
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.shards import ShardReader

torch.set_num_threads(1)
RATE = 16_000
SMALL = TokenLmConfig(width=16, layers=1, heads=2, feed_forward=32, dropout=0.0)


def make_parts(folder: Path, seed: int = 0) -> Parts:
    """Write a tokenizer and a codec with random weights, and load them."""
    torch.manual_seed(seed)
    tokenizer = S3Network(S3Config(4, 16, 1, 1, 2, 16, 5, (3, 3)))
    codec = CodecNetwork(CodecConfig(16, 1, 1, 2, levels=(4, 4)))
    with torch.no_grad():
        codec.quantizer.variance.fill_(0.01)
    hub.save_model(folder / "tokens", asdict(tokenizer.config), tokenizer.state_dict(), TOKENIZER, "#")
    hub.save_model(folder / "codes", asdict(codec.config), codec.state_dict(), CODEC, "#")
    return load_parts(folder / "tokens", folder / "codes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GenseModel:
    parts = make_parts(tmp_path_factory.mktemp("parts"))
    config = GenseConfig(parts.tokenizer.size, parts.codec.size, parts.ratio, SMALL, SMALL)
    torch.manual_seed(1)
    network = GenseNetwork(config, parts.vectors())
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    return GenseModel(network.eval(), parts, "mask-small", Chain(), ACOUSTIC_SAMPLING, Limits(), None)


def sound(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("samples", [640, 6400, 6401, 32_000])
def test_as_long_as_the_noisy_sound_and_a_seed_gives_it_again(model: GenseModel, samples: int) -> None:
    noisy = sound()[:samples]
    one, again, other = (Resynthesizer(model).generate(noisy, 0.5 * noisy, seed) for seed in (1, 1, 2))
    assert one.waveform.shape == noisy.shape
    assert np.array_equal(one.waveform, again.waveform)
    assert np.array_equal(one.tokens, other.tokens)  # the likeliest, whatever the seed
    if samples > 640:
        assert not np.array_equal(one.codes, other.codes)


def test_forced_tokens_are_generated_and_measured_by_the_evidence(model: GenseModel) -> None:
    noisy, generator = sound(), Resynthesizer(model)
    unforced = generator.generate(noisy, noisy, 1, greedy=True)
    forced = (unforced.tokens + 4) % 9
    result = generator.generate(noisy, noisy, 1, greedy=True, force=forced)
    assert np.array_equal(result.tokens, forced)
    assert not np.array_equal(result.codes, unforced.codes)
    waveform = torch.from_numpy(noisy * np.float32(unforced.gain))[None]
    input_tokens = model.parts.tokenizer.encode(waveform, torch.tensor([len(noisy)])).tokens[0].numpy()
    assert generator.generate(noisy, noisy, 1, force=input_tokens).evidence.input_distance == 0.0
    other = (input_tokens + 1) % 9
    expected = model.parts.tokenizer.network.quantizer.distance(
        torch.from_numpy(other), torch.from_numpy(input_tokens)
    ).mean()
    assert generator.generate(noisy, noisy, 1, force=other).evidence.input_distance == pytest.approx(float(expected))
    assert expected > 0.0


def test_the_context_is_kept(model: GenseModel) -> None:
    noisy = sound()
    before = GeneratedContext(np.full(10, 5), np.full(40, 7), to_level(noisy))
    result = Resynthesizer(model).generate(noisy, noisy, 1, before=before)
    assert result.tokens[:10].tolist() == [5] * 10
    assert result.codes[:40].tolist() == [7] * 40
    assert len(result.codes) == 200


def test_a_context_of_another_level_is_dropped(model: GenseModel) -> None:
    noisy = sound()
    before = GeneratedContext(np.full(10, 5), np.full(40, 7), 30.0 * to_level(noisy))
    result = Resynthesizer(model).generate(noisy, noisy, 1, before=before)
    assert result.gain == pytest.approx(to_level(noisy))
    assert result.codes[:40].tolist() != [7] * 40


def test_the_level_does_not_matter(model: GenseModel) -> None:
    noisy, generator = sound(), Resynthesizer(model)
    one, loud = (generator.generate(gain * noisy, gain * noisy, 1) for gain in (1.0, 4.0))
    assert np.array_equal(one.codes, loud.codes)
    np.testing.assert_allclose(4.0 * one.waveform, loud.waveform, rtol=1e-3, atol=1e-6)


def test_evidence_is_about_the_chunk_alone(model: GenseModel) -> None:
    noisy, generator = sound(), Resynthesizer(model)
    masked = noisy.copy()
    masked[:RATE] = 0.0
    whole = generator.generate(noisy, masked, 1)
    part = generator.generate(noisy, masked, 1, chunk=slice(RATE, 2 * RATE))
    assert np.array_equal(whole.codes, part.codes)
    assert part.evidence.snr_db == 60.0
    assert whole.evidence.snr_db < 1.0


def test_confidence_is_about_the_chunk_and_not_the_context(model: GenseModel) -> None:
    noisy, generator = sound(), Resynthesizer(model)
    before = GeneratedContext(np.full(10, 5), np.full(40, 7), to_level(noisy))
    chunk = slice(20 * 640, 30 * 640)
    result = generator.generate(noisy, noisy, 1, before=before, chunk=chunk)
    waveform = torch.from_numpy(noisy * np.float32(result.gain))[None]
    input_tokens = model.parts.tokenizer.encode(waveform, torch.tensor([len(noisy)])).tokens
    continuation = model.network.clean_tokens(input_tokens, torch.full((1, 10), 5))
    assert result.evidence.confidence == pytest.approx(float(continuation.log_probs[0, 10:20].mean()), rel=1e-5)


def test_each_arm_has_another_prompt(model: GenseModel) -> None:
    noisy = sound()
    chains = (Chain(), Chain(acoustic="masked"), Chain(acoustic="none"), Chain(clean_semantic="none"))
    codes = [Resynthesizer(model, chain=c).generate(noisy, sound(seed=5), 1, greedy=True).codes for c in chains]
    assert len({tuple(row.tolist()) for row in codes}) == 4


def test_semantic_tokens_are_never_drawn_at_random(model: GenseModel) -> None:
    with pytest.raises(ConfigError, match="the likeliest or the median"):
        Resynthesizer(model, semantic=Sampling(0.5))


def test_training_accepts_only_tokens_of_its_own_parts(speech_pack: Path, tmp_path: Path) -> None:
    parts, other_parts = make_parts(tmp_path), make_parts(tmp_path / "others", seed=9)
    mask = MaskNetwork(MaskConfig(width=8, blocks=1)).eval()
    pairs = NoisyConfig(seconds=1.0, early_s=0.0)
    assert pack_tokens(speech_pack, parts, mask, tmp_path / "pack", TokenPackConfig(pairs, 6)) == 6
    row = ShardReader(tmp_path / "pack")[0]
    assert {name: len(column) for name, column in row.items()} == {
        "noisy_semantic": 25,
        "clean_semantic": 25,
        "noisy_acoustic": 100,
        "clean_acoustic": 100,
        "masked_acoustic": 100,
    }
    training = TrainingConfig(max_steps=3, validate_every=3, warmup_steps=1)
    config = GenseTrainingConfig(GenseConfig(n2s=SMALL, s2s=SMALL), training, batch=2, validation=2)
    pack = tmp_path / "pack"
    with pytest.raises(DataError, match="come from other models"):
        train_gense(pack, pack, other_parts, tmp_path / "out", config, device="cpu")
    train_gense(pack, pack, parts, tmp_path / "out", config, device="cpu")
    best = tmp_path / "out" / "best"
    (tmp_path / "out" / "tokens").symlink_to(tmp_path / "tokens")  # next to the model, which is searched first
    (tmp_path / "out" / "codes").symlink_to(tmp_path / "codes")
    loaded = load_gense(best)
    assert loaded.parts.names() == parts.names()
    assert loaded.balanced_below_db is None
    assert (loaded.semantic_sampling, loaded.sampling) == (GREEDY, ACOUSTIC_SAMPLING)

    (tmp_path / "out" / "codes").unlink()
    codec = load_codec_network(tmp_path / "codes")
    with torch.no_grad():
        codec.leave.bias += 1.0  # another decoder of the same codes
    hub.save_model(tmp_path / "out" / "codes", asdict(codec.config), codec.state_dict(), CODEC, "#")
    settings = json.loads((best / "config.json").read_text())
    settings["config"] |= {"semantic_sampling": {"median": True}, "sampling": {"median": True}, "heard_share": 0.25}
    (best / "config.json").write_text(json.dumps(settings))
    loaded = load_gense(best)
    assert loaded.semantic_sampling == loaded.sampling == MEDIAN
    assert loaded.copy_weight == 0.25
    assert len(Resynthesizer(loaded).generate(sound(), sound(), 1).codes) == 200

    shutil.rmtree(tmp_path / "out" / "codes")
    (tmp_path / "out" / "codes").symlink_to(tmp_path / "others" / "codes")
    with pytest.raises(ModelFormatError, match="another model"):
        load_gense(best)


def test_packed_segments_are_as_long_as_the_longest_generated_window() -> None:
    assert TokenPackConfig().pairs.seconds == PACK_S == pytest.approx(7.48)


def test_levels_follow_the_mask_network_from_moment_to_moment() -> None:
    masked = sound(4.0)
    gains = np.interp(np.arange(len(masked)), [0, len(masked)], [10 ** (-5 / 20), 10 ** (5 / 20)])
    matched = _match_level((masked * gains).astype(np.float32), masked)
    inner = slice(RATE // 2, -RATE // 2)
    assert matched.dtype == np.float32
    assert np.abs(matched - masked)[inner].max() < 0.1 * np.abs(masked).max()
    assert np.abs(masked * gains - masked)[inner].max() > 0.4 * np.abs(masked).max()


def test_levels_change_by_some_decibels_at_most_and_not_in_pauses() -> None:
    speech = sound(3.0)
    np.testing.assert_allclose(_match_level(0.1 * speech, speech), 0.1 * 10 ** (6 / 20) * speech, rtol=1e-4, atol=1e-7)
    masked = speech.copy()
    masked[RATE:] *= 1e-3  # the speaker stopped; invented noise is no speech to match
    matched = _match_level(
        np.where(np.arange(len(speech)) < RATE, speech, 1e-3 * sound(3.0, 5)).astype(np.float32), masked
    )
    assert np.abs(matched[-RATE:]).max() == pytest.approx(1e-3 * np.abs(sound(3.0, 5)[-RATE:]).max(), rel=0.05)
    assert not _match_level(np.zeros(100, np.float32), np.zeros(100, np.float32)).any()
    assert not _match_level(np.zeros(RATE, np.float32), np.zeros(RATE, np.float32)).any()


def test_a_corrupted_history_holds_noisy_and_repeated_tokens() -> None:
    clean, noisy = torch.arange(2000).view(2, 1000), torch.arange(2000).view(2, 1000) + 5000
    corrupted = _corrupted(clean, noisy, 0.4, np.random.default_rng(0))
    before = torch.cat([clean[:, :1], clean[:, :-1]], dim=1)
    is_noisy, is_repeated = corrupted == noisy, (corrupted == before) & (corrupted != clean)
    assert ((corrupted == clean) | is_noisy | is_repeated).all()
    assert float(is_noisy.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(is_repeated.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.equal(_corrupted(clean, noisy, 0.0, np.random.default_rng(0)), clean)
