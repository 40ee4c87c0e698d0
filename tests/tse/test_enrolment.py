"""Enrolment: mel powers, a teacher's weights, vectors of looks, and a training on made-up people."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audio_llm.errors import DataError, ModelFormatError
from audio_llm.simulation.scene_plan import SceneConfig, Voice
from audio_llm.simulation.sources import read_sources
from audio_llm.training.loop import TrainingConfig
from audio_llm.tse.enrolment import EnrolmentEncoder
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.hearing import HearingConfig, TargetHearing
from audio_llm.tse.models import load_hearing, load_model, load_separator, load_speaker, save_model
from audio_llm.tse.scene_batches import SceneProcesses
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.speaker import SpeakerEncoder, at_level, chunk_features, embed, mel_filters, mel_power
from audio_llm.tse.teacher_vectors import load_teacher, read_vectors, write_vectors
from audio_llm.tse.train_hearing import HearingTrainingConfig, make_batch, train_hearing
from audio_llm.tse.train_speaker import SpeakerTrainingConfig, train_speaker
from audio_llm.tse.train_speaker import make_batch as make_pieces

torch.set_num_threads(1)
SCENES = SceneConfig(seconds=0.512, look_seconds=0.6)
TINY = HearingConfig(
    ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3, front=True),
    SelectorConfig(12, 1, 3, 5),
)


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


def test_mel_powers_are_those_of_the_library() -> None:
    sound = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(400)
    spectra = torch.stft(sound, 400, 160, window=window, pad_mode="constant", return_complex=True)
    torch.testing.assert_close(mel_power(sound), spectra.abs().square().mT @ mel_filters(), atol=1e-3, rtol=1e-4)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 16_000)
    assert int(mel_power(tone)[20].argmax()) == int(mel_filters()[25].argmax())
    last = torch.stft(at_level(sound)[:, -400:], 400, 400, window=window, center=False, return_complex=True)
    wanted = 0.25 * ((last.abs().square().mT @ mel_filters())[:, 0] + 1e-5).log() + 1.0
    torch.testing.assert_close(chunk_features(sound)[:, -1], wanted, atol=1e-3, rtol=1e-3)


def test_vectors_are_unit_and_know_no_level() -> None:
    encoder = make_teacher()
    sounds = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    vectors = embed(encoder, sounds)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embed(encoder, 0.05 * sounds), vectors, atol=1e-3, rtol=0)
    assert at_level(sounds).square().mean(-1).sqrt() == pytest.approx([10**-1.5] * 2, rel=1e-3)
    assert torch.isfinite(embed(encoder, torch.zeros(1, 500))).all()


def test_looks_have_unit_vectors_that_their_level_does_not_change() -> None:
    torch.manual_seed(0)
    hearing = TargetHearing(TINY).eval()
    encoder = EnrolmentEncoder(hearing)
    look = 0.1 * torch.randn(2, 2, 12_800)
    with torch.inference_mode():
        vector, front, front_db = encoder.encode(look)
        assert front.shape == look.shape
        torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2))
        torch.testing.assert_close(front, hearing.extractor(look, front=True)[:, 0])
        powers = [sound.square().mean(dim=-1).log10().mean(dim=-1) for sound in (front, look)]
        torch.testing.assert_close(front_db, 10.0 * (powers[0] - powers[1]), atol=0.01, rtol=0)
        assert not torch.allclose(front, hearing.extractor(look)[:, 0], atol=1e-3)
        assert torch.equal(encoder(look[:1]), vector[:1]) or torch.allclose(encoder(look[:1]), vector[:1], atol=1e-5)


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


def test_training_hearing_goes_from_made_streams_to_everything(taught: Path, scenes_here: None, tmp_path: Path) -> None:
    loop = TrainingConfig(2, warmup_steps=1, log_every=2, validate_every=2)
    scenes = replace(SCENES, nobody_share=0.4)
    last: TargetHearing | None = None
    names: dict[str, set[str]] = {}
    for streams in ("made", "frozen", "joint"):
        config = HearingTrainingConfig(
            TINY, loop, scenes, streams, "best", 0.5, batch_scenes=2, epoch_batches=9, validation_scenes=3
        )
        train_hearing(taught, taught, tmp_path / streams, config, start=last, device="cpu")
        last = load_hearing(tmp_path / streams / "best")
        rows = [json.loads(line) for line in (tmp_path / streams / "train.jsonl").read_text().splitlines()]
        names[streams] = set(next(row["validation"] for row in rows if "validation" in row))
    assert names["made"] == {"loss", "weight", "told"}
    more = {
        "look",
        "front_db",
        "nobody_db",
        "right_stream_db",
        "clean_db",
        "noisy_db",
        "swapped_db",
        "zeroed_db",
        "wrong",
        "cosine",
    }
    assert names["joint"] == names["frozen"] == names["made"] | more


def test_made_streams_hold_their_talker_and_some_of_the_others(taught: Path) -> None:
    config = HearingTrainingConfig(scenes=SCENES, leak_db=(10.0, 10.0))
    batch = make_batch(read_sources(taught), config, 1, range(6))
    own = batch.streams[torch.arange(6), batch.place] - batch.talkers[torch.arange(6), batch.place]
    rest = batch.mixture - batch.talkers[torch.arange(6), batch.place]
    torch.testing.assert_close(own, 10**-0.5 * rest, atol=1e-5, rtol=1e-3)
    assert (batch.people[torch.arange(6), batch.place] == batch.wanted).all()


def test_a_whole_model_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TargetHearing(TINY)
    save_model(tmp_path / "model", model, "# A model\n", {})
    loaded = load_model(tmp_path / "model")
    assert loaded.hearing.config == TINY
    assert loaded.enrolment.hearing is loaded.hearing
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.hearing.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    with pytest.raises(ModelFormatError):
        load_separator(tmp_path / "model")


def test_a_small_encoder_learns_from_the_teacher(taught: Path, tmp_path: Path) -> None:
    loop = TrainingConfig(20, learning_rate=5e-3, warmup_steps=2, log_every=5, validate_every=10)
    config = SpeakerTrainingConfig(16, 1, loop, 0.96, batch_pieces=6, epoch_batches=50, validation_pieces=6)
    train_speaker(taught, taught, make_teacher(), tmp_path / "out", config, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    losses = [row["validation"]["loss"] for row in rows if "validation" in row]
    assert losses[-1] < losses[0]
    assert load_speaker(tmp_path / "out/best").lstm.hidden_size == 16


def test_pieces_do_not_depend_on_who_makes_them(taught: Path) -> None:
    sources, config = read_sources(taught), SpeakerTrainingConfig(seconds=0.96)
    whole = make_pieces(sources, config, 1, range(4))
    with SceneProcesses(taught, 2) as processes:
        parted = processes.make(make_pieces, config, 1, range(4))
    for one, other in zip(whole, parted, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole.clean, whole.spoilt)
