"""Training of the codec on synthetic voices: it learns, resumes, and continues with a reorganized codebook."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audio_llm import hub
from audio_llm.codec.codec import SpeechCodec, load_codec_network
from audio_llm.codec.losses import spectral_distance
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.codec.sound_loss import SoundLossConfig
from audio_llm.codec.train import CodecTrainingConfig, extended, make_batch, reorganized, train_codec
from audio_llm.errors import AudioLLMError, ConfigError, DataError
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.perceptual import PerceptualLoss

torch.set_num_threads(1)
SPEECH = NoisyConfig(seconds=0.25, clean_prob=0.75, silent_prob=0.0, room_prob=0.1, clipped_prob=0.0)


def settings(model: CodecConfig, steps: int, **changes: object) -> CodecTrainingConfig:
    loop = TrainingConfig(steps, learning_rate=1e-2, warmup_steps=2, log_every=2, validate_every=10)
    config = CodecTrainingConfig(model, loop, SPEECH, batch=3, epoch_batches=8, validation=5)
    return replace(config, **changes)


def barely_moving(config: CodecTrainingConfig) -> CodecTrainingConfig:
    """Return a configuration that hardly changes the weights, so that what the training starts from is visible."""
    return replace(config, training=replace(config.training, learning_rate=1e-9))


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def validated(folder: Path) -> list[dict[str, float]]:
    return [row["validation"] for row in rows(folder) if "validation" in row]


def test_training_lowers_the_distance_and_leaves_a_model(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    out = tmp_path / "out"
    result = train_codec(speech_pack, speech_pack, out, settings(tiny, 30), device="cpu", provenance={"made": "here"})
    assert (result.steps, result.stopped_by) == (30, "steps")
    losses = [values["loss"] for values in validated(out)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert losses[-1] < 0.9 * rows(out)[0]["loss"]
    assert result.best_value == min(losses)
    assert validated(out)[-1].keys() == {"loss", "codes_used", "perplexity"}
    assert 1.0 <= validated(out)[-1]["perplexity"] <= validated(out)[-1]["codes_used"] <= 200

    codec = SpeechCodec.load(out / "best")
    assert codec.network.config == tiny
    provenance = hub.load_model(out / "best").provenance
    assert provenance["made"] == "here"
    assert provenance["training"]["batch"] == 3
    batch = make_batch(NoisySpeech(SpeechPack(speech_pack), replace(SPEECH, clean_prob=1.0)), range(100, 104))
    lengths = torch.full((4,), batch.waveforms.shape[1])
    codes = codec.encode(batch.waveforms, lengths)
    trained = spectral_distance(codec.decode(codes, lengths), batch.waveforms)
    torch.manual_seed(0)
    fresh = CodecNetwork(tiny).eval()
    with torch.no_grad():
        assert trained < 0.8 * spectral_distance(fresh(batch.waveforms, lengths).waveforms, batch.waveforms)


def test_training_with_discriminators_resumes(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    config = settings(tiny, 4, sound=SoundLossConfig(adversarial_from=2, channels=4))
    train_codec(speech_pack, speech_pack, tmp_path / "out", config, device="cpu")
    config = replace(config, training=replace(config.training, max_steps=8))
    again = train_codec(speech_pack, speech_pack, tmp_path / "out", config, device="cpu", resume=True)
    assert again.steps == 8
    assert [row["step"] for row in rows(tmp_path / "out") if "loss" in row] == [2, 4, 6, 8]
    losses = [row["loss"] for row in rows(tmp_path / "out") if "loss" in row]
    assert losses[1] > losses[0]  # from here on what the discriminators learn by counts too
    # the discriminators are no part of the model
    assert not [name for name in hub.load_model(tmp_path / "out/best").tensors if "discriminator" in name]
    assert SpeechCodec.load(tmp_path / "out/best").size == 200


def test_a_stop_and_a_resume_end_where_one_run_does(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    config = settings(tiny, 6)
    config = replace(config, training=replace(config.training, schedule="constant", validate_every=3))
    train_codec(speech_pack, speech_pack, tmp_path / "whole", config, device="cpu")
    halves = replace(config, training=replace(config.training, max_steps=3))
    train_codec(speech_pack, speech_pack, tmp_path / "halves", halves, device="cpu")
    train_codec(speech_pack, speech_pack, tmp_path / "halves", config, device="cpu", resume=True)
    one, other = (validated(tmp_path / name) for name in ("whole", "halves"))
    assert len(one) == len(other) == 2
    assert [values["loss"] for values in other] == pytest.approx([values["loss"] for values in one], rel=1e-4)


def test_the_second_stage_starts_from_the_first(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    grouped = replace(tiny, quantizer="group")
    train_codec(speech_pack, speech_pack, tmp_path / "one", settings(grouped, 20), device="cpu")
    first = load_codec_network(tmp_path / "one/best")
    assert first.quantizer.first.uses.sum() > 0
    config_of_stage_2 = replace(
        tiny, quantizer="reorganized", codes=16, width=999
    )  # the size of the start model counts
    config, start = barely_moving(settings(config_of_stage_2, 2)), tmp_path / "one/best"
    train_codec(speech_pack, speech_pack, tmp_path / "two", config, device="cpu", start_from=start)
    codec = SpeechCodec.load(tmp_path / "two/best")
    assert codec.network.config == replace(grouped, quantizer="reorganized", codes=16)
    assert codec.size == 16
    one, two = dict(first.named_parameters()), dict(codec.network.named_parameters())
    shared = [name for name in one if not name.startswith("quantizer.")]
    assert len(shared) > 10
    for name in shared:
        torch.testing.assert_close(two[name], one[name], atol=1e-3, rtol=1e-3)


def test_reorganizing_keeps_everything_else(tiny: CodecConfig) -> None:
    torch.manual_seed(0)
    codec = CodecNetwork(replace(tiny, quantizer="group"))
    codec.quantizer.first.uses.copy_(torch.arange(8))
    codec.quantizer.second.uses.copy_(torch.arange(8).flip(0))
    for count, halves in ((16, (4, 4)), (32, (8, 4)), (64, (8, 8))):
        new = reorganized(codec, replace(tiny, quantizer="reorganized", codes=count))
        assert new.config == replace(codec.config, quantizer="reorganized", codes=count)
        old = codec.state_dict()
        for name, value in new.state_dict().items():
            if not name.startswith("quantizer."):
                assert torch.equal(value, old[name]), name
        rows = new.quantizer.codebook
        assert rows.shape == (count, 4)
        assert len(rows[:, :2].unique(dim=0)) == halves[0]
        assert len(rows[:, 2:].unique(dim=0)) == halves[1]
        assert torch.equal(rows[0], torch.cat([codec.quantizer.first.codebook[7], codec.quantizer.second.codebook[0]]))
    # with every pair in the codebook it is the same codec
    waveforms, lengths = 0.1 * torch.randn(1, 1600), torch.tensor([1600])
    with torch.no_grad():
        one, other = codec.eval()(waveforms, lengths), new.eval()(waveforms, lengths)
    torch.testing.assert_close(one.waveforms, other.waveforms)


def test_a_number_of_codes_that_does_not_split_is_refused_or_kept(tiny: CodecConfig) -> None:
    codec = CodecNetwork(replace(tiny, quantizer="group"))
    try:
        new = reorganized(codec, replace(tiny, quantizer="reorganized", codes=50))
    except AudioLLMError:
        return
    assert new.quantizer.size == new.config.codes


def test_training_continues_from_a_given_codec(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    train_codec(speech_pack, speech_pack, tmp_path / "one", settings(tiny, 20), device="cpu")
    config = barely_moving(settings(replace(tiny, width=24), 1))
    start = tmp_path / "one/best"
    train_codec(speech_pack, speech_pack, tmp_path / "two", config, device="cpu", start_from=start)
    one, two = (load_codec_network(tmp_path / name / "best") for name in ("one", "two"))
    assert two.config == tiny
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), atol=1e-3, rtol=1e-3)


def test_a_missing_pack_is_an_error(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train_codec(tmp_path / "nowhere", speech_pack, tmp_path / "out", settings(tiny, 1), device="cpu")
    with pytest.raises(DataError, match="nowhere"):
        train_codec(speech_pack, tmp_path / "nowhere", tmp_path / "out", settings(tiny, 1), device="cpu")


def test_a_decoder_trained_alone_leaves_the_codes_as_they_are(
    speech_pack: Path, tmp_path: Path, tiny: CodecConfig
) -> None:
    train_codec(speech_pack, speech_pack, tmp_path / "one", settings(tiny, 10), device="cpu")
    config = settings(replace(tiny, width=999), 20, frozen_codes=True, more_blocks=2)
    start = tmp_path / "one/best"
    train_codec(speech_pack, speech_pack, tmp_path / "two", config, device="cpu", start_from=start)
    one, two = (SpeechCodec.load(tmp_path / name / "best") for name in ("one", "two"))
    assert two.network.config == replace(tiny, decoder_blocks=tiny.decoder_blocks + 2)
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(3))
    lengths = torch.full((2,), 8000)
    codes = [codec.encode(waveforms, lengths) for codec in (one, two)]
    assert torch.equal(codes[0].codes, codes[1].codes)
    assert not torch.allclose(*(codec.decode(codes[0], lengths) for codec in (one, two)))
    assert validated(tmp_path / "two")[-1]["loss"] < validated(tmp_path / "one")[-1]["loss"]


def test_more_blocks_change_nothing_at_first(tiny: CodecConfig) -> None:
    torch.manual_seed(0)
    codec = CodecNetwork(tiny).eval()
    longer, codes = extended(codec, 3).eval(), torch.arange(40).view(2, 20)
    assert len(longer.decoder.blocks) == tiny.decoder_blocks + 3
    with torch.no_grad():
        one, other = (network.decode(codes, torch.tensor([20, 20])) for network in (codec, longer))
    torch.testing.assert_close(other, one)


@pytest.mark.parametrize("changes", [{"frozen_codes": True}, {"more_blocks": 1}])
def test_nothing_is_frozen_or_extended_without_a_start(
    speech_pack: Path, tmp_path: Path, tiny: CodecConfig, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="name a codec to start from"):
        train_codec(speech_pack, speech_pack, tmp_path / "out", settings(tiny, 2, **changes), device="cpu")


def test_the_perceptual_loss_lowers_its_distance(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    def power(waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert lengths.tolist() == [waveforms.shape[1]] * len(waveforms)
        return (waveforms.square().mean(-1) + 1e-6).log()

    ends, perceptual_loss = [], PerceptualLoss("power", "0" * 64, power)
    for name, weight in (("without", 0.0), ("with", 20.0)):
        config = settings(tiny, 20, sound=SoundLossConfig(perceptual_weight=weight))
        train_codec(speech_pack, speech_pack, tmp_path / name, config, device="cpu", perceptual_loss=perceptual_loss)
        codec = SpeechCodec.load(tmp_path / name / "best")
        assert hub.load_model(tmp_path / name / "best").provenance["listener"]["name"] == "power"
        assert validated(tmp_path / name)[-1]["listening"] > 0.0
        speech = make_batch(NoisySpeech(SpeechPack(speech_pack), SPEECH), range(100, 108)).waveforms
        lengths = torch.full((8,), speech.shape[1])
        decoded = codec.decode(codec.encode(speech, lengths), lengths)
        ends.append(float((power(decoded, lengths) - power(speech, lengths)).abs().mean()))
    assert ends[1] < 0.8 * ends[0]


def test_a_codebook_that_is_reorganized_is_not_frozen(speech_pack: Path, tmp_path: Path, tiny: CodecConfig) -> None:
    grouped = replace(tiny, quantizer="group")
    train_codec(speech_pack, speech_pack, tmp_path / "one", settings(grouped, 1), device="cpu")
    config = settings(replace(tiny, quantizer="reorganized", codes=16), 1, frozen_codes=True)
    with pytest.raises(ConfigError, match="changes its codes"):
        train_codec(speech_pack, speech_pack, tmp_path / "two", config, device="cpu", start_from=tmp_path / "one/best")
    with pytest.raises(ConfigError, match="more_blocks"):
        settings(tiny, 1, more_blocks=-1)
