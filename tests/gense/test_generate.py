"""Speaking a stretch anew, and training what does it, with the smallest of networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_llm.gense.guards import Limits

from audio_llm import hub
from audio_llm.codec.codec import KIND as CODEC
from audio_llm.codec.codec import load_codec_network, to_level
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.errors import ConfigError, DataError, ModelFormatError
from audio_llm.gense.generate import SpeechGenerator, Spoken, _matched
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork
from audio_llm.gense.models import ACOUSTIC_SAMPLING, GenseModel, Parts, load_gense, load_parts
from audio_llm.gense.network import Chain, GenseConfig, GenseNetwork
from audio_llm.gense.train import PACK_S, GenseTrainingConfig, TokenPackConfig, _partly_wrong, pack_tokens, train_gense
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
    one, again, other = (SpeechGenerator(model).speak(noisy, 0.5 * noisy, seed) for seed in (1, 1, 2))
    assert one.waveform.shape == noisy.shape
    assert np.array_equal(one.waveform, again.waveform)
    assert np.array_equal(one.tokens, other.tokens)  # the likeliest, whatever the seed
    if samples > 640:
        assert not np.array_equal(one.codes, other.codes)


def test_forced_tokens_are_spoken_and_seen_by_the_evidence(model: GenseModel) -> None:
    noisy, generator = sound(), SpeechGenerator(model)
    own = generator.speak(noisy, noisy, 1, greedy=True)
    forced = (own.tokens + 4) % 9
    spoken = generator.speak(noisy, noisy, 1, greedy=True, force=forced)
    assert np.array_equal(spoken.tokens, forced)
    assert not np.array_equal(spoken.codes, own.codes)
    waveform = torch.from_numpy(noisy * np.float32(own.gain))[None]
    heard = model.parts.tokenizer.encode(waveform, torch.tensor([len(noisy)])).tokens[0].numpy()
    assert generator.speak(noisy, noisy, 1, force=heard).evidence.input_distance == 0.0
    other = (heard + 1) % 9
    wanted = model.parts.tokenizer.network.quantizer.distance(torch.from_numpy(other), torch.from_numpy(heard)).mean()
    assert generator.speak(noisy, noisy, 1, force=other).evidence.input_distance == pytest.approx(float(wanted))
    assert wanted > 0.0


def test_what_was_spoken_before_is_kept(model: GenseModel) -> None:
    noisy = sound()
    before = Spoken(np.full(10, 5), np.full(40, 7), to_level(noisy))
    spoken = SpeechGenerator(model).speak(noisy, noisy, 1, before=before)
    assert spoken.tokens[:10].tolist() == [5] * 10
    assert spoken.codes[:40].tolist() == [7] * 40
    assert len(spoken.codes) == 200


def test_another_level_begins_anew(model: GenseModel) -> None:
    noisy = sound()
    before = Spoken(np.full(10, 5), np.full(40, 7), 30.0 * to_level(noisy))
    spoken = SpeechGenerator(model).speak(noisy, noisy, 1, before=before)
    assert spoken.gain == pytest.approx(to_level(noisy))
    assert spoken.codes[:40].tolist() != [7] * 40


def test_the_level_does_not_matter(model: GenseModel) -> None:
    noisy, generator = sound(), SpeechGenerator(model)
    one, loud = (generator.speak(gain * noisy, gain * noisy, 1) for gain in (1.0, 4.0))
    assert np.array_equal(one.codes, loud.codes)
    np.testing.assert_allclose(4.0 * one.waveform, loud.waveform, rtol=1e-3, atol=1e-6)


def test_evidence_is_of_the_stretch_alone(model: GenseModel) -> None:
    noisy, generator = sound(), SpeechGenerator(model)
    masked = noisy.copy()
    masked[:RATE] = 0.0
    whole = generator.speak(noisy, masked, 1)
    part = generator.speak(noisy, masked, 1, stretch=slice(RATE, 2 * RATE))
    assert np.array_equal(whole.codes, part.codes)
    assert part.evidence.snr_db == 60.0
    assert whole.evidence.snr_db < 1.0


def test_confidence_is_of_the_stretch_and_not_of_what_was_known(model: GenseModel) -> None:
    noisy, generator = sound(), SpeechGenerator(model)
    before = Spoken(np.full(10, 5), np.full(40, 7), to_level(noisy))
    stretch = slice(20 * 640, 30 * 640)
    made = generator.speak(noisy, noisy, 1, before=before, stretch=stretch)
    waveform = torch.from_numpy(noisy * np.float32(made.gain))[None]
    heard = model.parts.tokenizer.encode(waveform, torch.tensor([len(noisy)])).tokens
    found = model.network.clean_tokens(heard, torch.full((1, 10), 5))
    assert made.evidence.confidence == pytest.approx(float(found.log_probs[0, 10:20].mean()), rel=1e-5)


def test_each_arm_is_told_something_else(model: GenseModel) -> None:
    noisy = sound()
    chains = (Chain(), Chain(acoustic="masked"), Chain(acoustic="none"), Chain(clean_semantic="none"))
    codes = [SpeechGenerator(model, chain=c).speak(noisy, sound(seed=5), 1, greedy=True).codes for c in chains]
    assert len({tuple(own.tolist()) for own in codes}) == 4


def test_what_is_said_is_never_drawn_at_random(model: GenseModel) -> None:
    with pytest.raises(ConfigError, match="the likeliest or the median"):
        SpeechGenerator(model, semantic=Sampling(0.5))


def test_trained_on_what_these_parts_made_only(speech_pack: Path, tmp_path: Path) -> None:
    parts, others = make_parts(tmp_path), make_parts(tmp_path / "others", seed=9)
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
    with pytest.raises(DataError, match="other models made these tokens"):
        train_gense(pack, pack, others, tmp_path / "out", config, device="cpu")
    train_gense(pack, pack, parts, tmp_path / "out", config, device="cpu")
    best = tmp_path / "out" / "best"
    (tmp_path / "out" / "tokens").symlink_to(tmp_path / "tokens")  # beside the model, where it looks first
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
    settings["config"] |= {"semantic_sampling": {"median": True}, "sampling": {"median": True}}
    (best / "config.json").write_text(json.dumps(settings))
    loaded = load_gense(best)
    assert loaded.semantic_sampling == loaded.sampling == MEDIAN
    assert len(SpeechGenerator(loaded).speak(sound(), sound(), 1).codes) == 200

    shutil.rmtree(tmp_path / "out" / "codes")
    (tmp_path / "out" / "codes").symlink_to(tmp_path / "others" / "codes")
    with pytest.raises(ModelFormatError, match="another model"):
        load_gense(best)


def test_packs_are_as_long_as_what_is_spoken() -> None:
    assert TokenPackConfig().pairs.seconds == PACK_S == pytest.approx(7.48)


def test_levels_follow_the_mask_network_from_moment_to_moment() -> None:
    masked = sound(4.0)
    gains = np.interp(np.arange(len(masked)), [0, len(masked)], [10 ** (-5 / 20), 10 ** (5 / 20)])
    found = _matched((masked * gains).astype(np.float32), masked)
    inner = slice(RATE // 2, -RATE // 2)
    assert found.dtype == np.float32
    assert np.abs(found - masked)[inner].max() < 0.1 * np.abs(masked).max()
    assert np.abs(masked * gains - masked)[inner].max() > 0.4 * np.abs(masked).max()


def test_levels_change_by_some_decibels_at_most_and_not_in_pauses() -> None:
    spoken = sound(3.0)
    np.testing.assert_allclose(_matched(0.1 * spoken, spoken), 0.1 * 10 ** (6 / 20) * spoken, rtol=1e-4, atol=1e-7)
    masked = spoken.copy()
    masked[RATE:] *= 1e-3  # somebody stopped talking; noise that was made up is no speech to be matched
    found = _matched(np.where(np.arange(len(spoken)) < RATE, spoken, 1e-3 * sound(3.0, 5)).astype(np.float32), masked)
    assert np.abs(found[-RATE:]).max() == pytest.approx(1e-3 * np.abs(sound(3.0, 5)[-RATE:]).max(), rel=0.05)
    assert not _matched(np.zeros(100, np.float32), np.zeros(100, np.float32)).any()
    assert not _matched(np.zeros(RATE, np.float32), np.zeros(RATE, np.float32)).any()


def test_a_wrong_past_is_what_was_heard_or_said_twice() -> None:
    clean, heard = torch.arange(2000).view(2, 1000), torch.arange(2000).view(2, 1000) + 5000
    told = _partly_wrong(clean, heard, 0.4, np.random.default_rng(0))
    before = torch.cat([clean[:, :1], clean[:, :-1]], dim=1)
    is_heard, is_twice = told == heard, (told == before) & (told != clean)
    assert ((told == clean) | is_heard | is_twice).all()
    assert float(is_heard.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(is_twice.float().mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.equal(_partly_wrong(clean, heard, 0.0, np.random.default_rng(0)), clean)
