"""Training of the vocoder on synthetic voices."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audio_llm import hub
from audio_llm.codec import vocoder_train as module
from audio_llm.codec.losses import spectral_distance
from audio_llm.codec.mel import log_mel
from audio_llm.codec.sound_loss import SoundLoss, SoundLossConfig
from audio_llm.codec.train import make_batch
from audio_llm.codec.vocoder import Vocoder, VocoderConfig, load_vocoder
from audio_llm.codec.vocoder_train import VocoderTrainingConfig, train_vocoder
from audio_llm.errors import DataError, UsageError
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.perceptual import PerceptualLoss

torch.set_num_threads(1)
SPEECH = NoisyConfig(seconds=0.26, clean_prob=0.75, silent_prob=0.0, room_prob=0.1, clipped_prob=0.0)
MODEL = VocoderConfig(width=16, blocks=1, fine_blocks=1, expansion=2)


def settings(steps: int, **changes: object) -> VocoderTrainingConfig:
    loop = TrainingConfig(steps, learning_rate=1e-2, warmup_steps=2, log_every=2, validate_every=10)
    return replace(VocoderTrainingConfig(MODEL, loop, SPEECH, batch=3, epoch_batches=8, validation=5), **changes)


def run(pack: Path, out: Path, config: VocoderTrainingConfig, **more: object) -> list[dict[str, float]]:
    """Train; return the validations."""
    train_vocoder(pack, pack, out, config, device="cpu", **more)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [row["validation"] for row in rows if "validation" in row]


def test_training_lowers_the_distance_and_leaves_a_model(speech_pack: Path, tmp_path: Path) -> None:
    validations = run(speech_pack, tmp_path / "out", settings(30), provenance={"made": "here"})
    assert [list(values) for values in validations] == [["latest", "loss"]] * 3
    assert validations[-1]["loss"] < validations[0]["loss"]
    vocoder = load_vocoder(tmp_path / "out/best")
    assert vocoder.config == MODEL
    about = hub.load_model(tmp_path / "out/best")
    assert about.provenance["made"] == "here"
    assert about.provenance["training"]["batch"] == 3
    waveforms = make_batch(
        NoisySpeech(SpeechPack(speech_pack), replace(SPEECH, clean_prob=1.0)), range(90, 94)
    ).waveforms
    torch.manual_seed(0)
    fresh = Vocoder(MODEL).eval()
    with torch.no_grad():
        trained, untrained = (
            spectral_distance(network(log_mel(waveforms))[:, : waveforms.shape[1]], waveforms)
            for network in (vocoder, fresh)
        )
    assert trained < 0.8 * untrained


def test_a_stop_and_a_resume_end_where_one_run_does(speech_pack: Path, tmp_path: Path) -> None:
    config = settings(6, sound=SoundLossConfig(adversarial_from=2, channels=4))
    config = replace(config, training=replace(config.training, schedule="constant", validate_every=3))
    whole = run(speech_pack, tmp_path / "whole", config)
    run(speech_pack, tmp_path / "halves", replace(config, training=replace(config.training, max_steps=3)))
    with pytest.raises(UsageError, match="resume"):
        run(speech_pack, tmp_path / "halves", config)
    halves = run(speech_pack, tmp_path / "halves", config, resume=True)
    assert [values["loss"] for values in halves] == pytest.approx([values["loss"] for values in whole], rel=1e-4)
    assert not [name for name in hub.load_model(tmp_path / "halves/best").tensors if "discriminator" in name]


def test_training_continues_from_a_model(speech_pack: Path, tmp_path: Path) -> None:
    run(speech_pack, tmp_path / "one", settings(10))
    bigger = settings(1, model=replace(MODEL, width=48))  # the size of the start model counts
    bigger = replace(bigger, training=replace(bigger.training, learning_rate=1e-9))  # the weights hardly move
    run(speech_pack, tmp_path / "two", bigger, start_from=tmp_path / "one/best")
    one, two = (load_vocoder(tmp_path / name / "best") for name in ("one", "two"))
    assert two.config == MODEL
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), atol=1e-3, rtol=1e-3)


def test_the_perceptual_loss_is_validated_and_recorded(speech_pack: Path, tmp_path: Path) -> None:
    perceptual_loss = PerceptualLoss(
        "features", "abc", lambda waveforms, lengths: waveforms.abs().cumsum(-1)[:, ::1600, None]
    )
    validations = run(speech_pack, tmp_path / "out", settings(2), perceptual_loss=perceptual_loss)
    assert validations[0].keys() == {"loss", "listening", "latest"}
    assert hub.load_model(tmp_path / "out/best").provenance["listener"]["name"] == "features"


def test_a_pack_that_is_missing_is_named(speech_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        train_vocoder(tmp_path / "none", speech_pack, tmp_path / "out", settings(1), device="cpu")


def test_discriminators_start_at_their_step() -> None:
    torch.manual_seed(0)
    sound_loss = SoundLoss(SoundLossConfig(adversarial_from=2, channels=4), batches_per_step=2).train()
    generated, original = 0.1 * torch.randn(2, 3200), 0.1 * torch.randn(2, 3200)
    plain = float(spectral_distance(generated, original))
    losses = [sound_loss(generated, original).item() for _ in range(5)]
    assert losses[:3] == pytest.approx([plain] * 3)
    assert min(losses[3:]) > plain + 0.1  # from the fourth batch, the second of the second step
    sound_loss.eval()
    sound_loss(generated, original)
    assert int(sound_loss.batches) == 5


def test_no_gradient_goes_from_the_sound_to_the_discriminators_and_back() -> None:
    torch.manual_seed(0)
    config = SoundLossConfig(adversarial_from=0, channels=4)
    sound_loss = SoundLoss(config).train()
    generated, original = (0.1 * torch.randn(2, 3200)).requires_grad_(), 0.1 * torch.randn(2, 3200)
    sound_loss(generated, original).backward()
    assert generated.grad.abs().max() > 0
    alone = SoundLoss(replace(config, adversarial_weight=0.0, feature_weight=0.0)).train()
    alone.load_state_dict(sound_loss.state_dict())
    alone(generated.detach().requires_grad_(), original).backward()
    for one, other in zip(sound_loss.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)  # they learn from their own loss, not from the adversarial one


@pytest.mark.parametrize(("adversarial_from", "best"), [(0, 6), (-1, 2)])
def test_with_discriminators_the_latest_one_is_kept(
    speech_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adversarial_from: int, best: int
) -> None:
    worse = itertools.count()
    monkeypatch.setattr(module, "spectral_distance", lambda generated, original: torch.tensor(float(next(worse))))
    config = settings(6, sound=SoundLossConfig(adversarial_from=adversarial_from, channels=4))
    config = replace(config, training=replace(config.training, validate_every=2))
    result = train_vocoder(speech_pack, speech_pack, tmp_path / "out", config, device="cpu")
    assert result.best_step == best
