"""Enrolment: mel powers, a mask that finds the front, a teacher's weights, and a training on made-up people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from audio_llm import hub
from audio_llm.errors import DataError, ModelFormatError
from audio_llm.simulation.scene_plan import SceneConfig, Voice
from audio_llm.simulation.sources import read_sources
from audio_llm.training.loop import TrainingConfig
from audio_llm.tse.enrolment import EnrolmentConfig, EnrolmentEncoder, ideal_mask, look_features
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.hearing import HearingConfig, TargetHearing
from audio_llm.tse.models import TargetSpeechModel, load_model, load_separator, save_whole
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.speaker import SpeakerEncoder, at_level, embed, mel_filters, mel_power, spectra
from audio_llm.tse.train_enrolment import (
    EnrolmentTrainingConfig,
    load_teacher,
    read_vectors,
    train_enrolment,
    write_vectors,
)
from audio_llm.tse.train_hearing import HearingTrainingConfig, make_batch, train_hearing

torch.set_num_threads(1)
SCENES = SceneConfig(seconds=0.512, look_seconds=0.6)


def make_teacher(hidden: int = 256) -> SpeakerEncoder:
    torch.manual_seed(0)
    return SpeakerEncoder(hidden).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def taught(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack with the teacher's vectors."""
    folder = tmp_path_factory.mktemp("taught") / "pack"
    shutil.copytree(pack, folder)
    write_vectors(folder, make_teacher())
    return folder


def test_spectra_are_those_of_the_library() -> None:
    sound = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(0))
    real, imaginary = spectra(sound)
    window = torch.hann_window(400)
    wanted = torch.stft(sound.flatten(0, 1), 400, 160, window=window, pad_mode="constant", return_complex=True)
    assert real.shape == (2, 3, 26, 201)
    torch.testing.assert_close(torch.complex(real, imaginary).flatten(0, 1).mT, wanted, atol=1e-4, rtol=0)
    assert mel_filters().shape == (201, 40)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 16_000)
    assert int(mel_power(tone)[20].argmax()) == int(mel_filters()[25].argmax())


def test_vectors_are_unit_and_know_no_level() -> None:
    encoder = make_teacher()
    sounds = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    vectors = embed(encoder, sounds)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embed(encoder, 0.05 * sounds), vectors, atol=1e-3, rtol=0)
    assert at_level(sounds).square().mean(-1).sqrt() == pytest.approx([10**-1.5] * 2, rel=1e-3)
    assert torch.isfinite(embed(encoder, torch.zeros(1, 500))).all()


def test_the_front_and_the_side_look_different() -> None:
    generator = torch.Generator().manual_seed(0)
    front, side = (torch.randn(1, 1, 16_000, generator=generator) for _ in "ab")
    ahead = front.expand(1, 2, -1)
    beside = torch.cat([side, 0.5 * side.roll(10, -1)], dim=1)
    features, middle = look_features(ahead)
    assert features.shape == (1, 101, 240)
    assert middle.shape == (1, 101, 40)
    coherence = [look_features(look)[0][..., 160:200].mean() for look in (ahead, beside)]
    assert coherence[0] == pytest.approx(1.0, abs=0.01)
    assert coherence[1] < 0.7
    mask, weight = ideal_mask(ahead + beside, ahead)
    assert weight.mean() == pytest.approx(1.0, abs=1e-4)
    assert ((mask >= 0) & (mask <= 1)).all()
    assert ideal_mask(ahead, ahead)[0].min() > 0.9


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(ModelFormatError):
        load_teacher({"linear.weight": torch.zeros(3, 3)})
    own = load_teacher(make_teacher().state_dict())
    assert not any(parameter.requires_grad for parameter in own.parameters())


def test_a_pack_without_vectors_is_refused(taught: Path) -> None:
    sources = read_sources(taught)
    found = read_vectors(taught, sources.voices)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6))
    with pytest.raises(DataError, match="stranger"):
        read_vectors(taught, [Voice("stranger", "made", "", ())])


def test_training_enrolment_lowers_the_loss(taught: Path, tmp_path: Path) -> None:
    loop = TrainingConfig(10, learning_rate=3e-3, warmup_steps=2, log_every=5, validate_every=5)
    config = EnrolmentTrainingConfig(
        EnrolmentConfig(16, 8, 16, 1), loop, SCENES, batch_scenes=4, epoch_batches=50, validation_scenes=6
    )
    train_enrolment(taught, taught, make_teacher(), tmp_path / "out", config, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    losses = [row["validation"]["loss"] for row in rows if "validation" in row]
    assert losses[-1] < losses[0]
    assert hub.load_model(tmp_path / "out/best", "tse-enrolment").config["hidden"] == 16


def test_training_hearing_goes_from_made_streams_to_everything(taught: Path, tmp_path: Path) -> None:
    model = HearingConfig(
        ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3), SelectorConfig(12, 1, 3, 5)
    )
    torch.manual_seed(0)
    encoder = EnrolmentEncoder(EnrolmentConfig(8, 4, 8, 1))
    loop = TrainingConfig(4, warmup_steps=1, log_every=2, validate_every=4)
    last: torch.nn.Module | None = None
    names: dict[str, set[str]] = {}
    for streams in ("made", "frozen", "joint"):
        config = HearingTrainingConfig(
            model, loop, SCENES, streams, 0.5, batch_scenes=2, epoch_batches=9, validation_scenes=4
        )
        train_hearing(taught, taught, tmp_path / streams, config, start=last, encoder=encoder, device="cpu")
        loaded = hub.load_model(tmp_path / streams / "best", "tse-hearing")
        last = TargetHearing(model)
        last.load_state_dict(loaded.tensors)
        rows = [json.loads(line) for line in (tmp_path / streams / "train.jsonl").read_text().splitlines()]
        names[streams] = set(next(row["validation"] for row in rows if "validation" in row))
    assert names["made"] == {"loss", "weight", "told"}
    more = {"clean_db", "noisy_db", "swapped_db", "zeroed_db", "wrong", "cosine"}
    assert names["joint"] == names["frozen"] == names["made"] | more


def test_made_streams_hold_their_talker_and_some_of_the_others(taught: Path) -> None:
    config = HearingTrainingConfig(scenes=SCENES, leak_db=(10.0, 10.0))
    batch = make_batch(read_sources(taught), config, 1, range(6), with_look=False)
    own = batch.streams[torch.arange(6), batch.place] - batch.talkers[torch.arange(6), batch.place]
    rest = batch.mixture - batch.talkers[torch.arange(6), batch.place]
    torch.testing.assert_close(own, 10**-0.5 * rest, atol=1e-5, rtol=1e-3)
    assert (batch.people[torch.arange(6), batch.place] == batch.wanted).all()


def test_a_whole_model_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = HearingConfig(
        ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3), SelectorConfig(12, 1, 3, 5)
    )
    model = TargetSpeechModel(TargetHearing(config), EnrolmentEncoder(EnrolmentConfig(8, 4, 8, 1)))
    save_whole(tmp_path / "model", model, "# A model\n", {})
    loaded = load_model(tmp_path / "model")
    assert loaded.hearing.config == config
    for part, again in ((model.hearing, loaded.hearing), (model.enrolment, loaded.enrolment)):
        for name, tensor in part.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    with pytest.raises(ModelFormatError):
        load_separator(tmp_path / "model")
