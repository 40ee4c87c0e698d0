"""Enrollment: mel powers, a teacher's weights, vectors of recordings, and a training on synthetic speakers."""

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
from audio_llm.tse.enrollment import EnrollmentEncoder
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.models import load_model, load_separator, load_speaker, load_target_speaker, save_model
from audio_llm.tse.scene_batches import SceneProcesses
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.speaker import SpeakerEncoder, at_level, chunk_features, embed, mel_filters, mel_power
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork
from audio_llm.tse.teacher_vectors import load_teacher, read_vectors, write_vectors
from audio_llm.tse.train_joint import JointTrainingConfig, make_batch, train_joint
from audio_llm.tse.train_speaker import SpeakerTrainingConfig, train_speaker
from audio_llm.tse.train_speaker import make_batch as make_pieces

torch.set_num_threads(1)
SCENES = SceneConfig(seconds=0.512, enrollment_seconds=0.6)
TINY = TargetSpeakerConfig(
    ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3, front=True),
    SelectorConfig(12, 1, 3, 5),
)


def make_teacher(hidden: int = 256) -> SpeakerEncoder:
    torch.manual_seed(0)
    return SpeakerEncoder(hidden).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher_pack(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    expected = 0.25 * ((last.abs().square().mT @ mel_filters())[:, 0] + 1e-5).log() + 1.0
    torch.testing.assert_close(chunk_features(sound)[:, -1], expected, atol=1e-3, rtol=1e-3)


def test_vectors_are_unit_and_independent_of_the_level() -> None:
    encoder = make_teacher()
    sounds = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    vectors = embed(encoder, sounds)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embed(encoder, 0.05 * sounds), vectors, atol=1e-3, rtol=0)
    assert at_level(sounds).square().mean(-1).sqrt() == pytest.approx([10**-1.5] * 2, rel=1e-3)
    assert torch.isfinite(embed(encoder, torch.zeros(1, 500))).all()


def test_enrollments_have_unit_vectors_and_the_level_of_the_frontal_speaker() -> None:
    torch.manual_seed(0)
    network = TargetSpeakerNetwork(TINY).eval()
    encoder = EnrollmentEncoder(network)
    enrollment = 0.1 * torch.randn(2, 2, 12_800)
    with torch.inference_mode():
        vector, frontal, frontal_level_db = encoder.encode(enrollment)
        assert frontal.shape == enrollment.shape
        torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2))
        torch.testing.assert_close(frontal, network.extractor(enrollment, frontal=True)[:, 0])
        powers = [sound.square().mean(dim=-1).log10().mean(dim=-1) for sound in (frontal, enrollment)]
        torch.testing.assert_close(frontal_level_db, 10.0 * (powers[0] - powers[1]), atol=0.01, rtol=0)
        assert not torch.allclose(frontal, network.extractor(enrollment)[:, 0], atol=1e-3)
        assert torch.equal(encoder(enrollment[:1]), vector[:1]) or torch.allclose(
            encoder(enrollment[:1]), vector[:1], atol=1e-5
        )


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(ModelFormatError):
        load_teacher({"linear.weight": torch.zeros(3, 3)})
    teacher = load_teacher(make_teacher().state_dict())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_pack_without_vectors_is_refused(teacher_pack: Path) -> None:
    sources = read_sources(teacher_pack)
    stored = read_vectors(teacher_pack, sources.voices)
    torch.testing.assert_close(stored.norm(dim=-1), torch.ones(6))
    with pytest.raises(DataError, match="stranger"):
        read_vectors(teacher_pack, [Voice("stranger", "made", "", ())])


def test_joint_training_goes_from_synthetic_streams_to_all_networks(
    teacher_pack: Path, scenes_here: None, tmp_path: Path
) -> None:
    loop = TrainingConfig(2, warmup_steps=1, log_every=2, validate_every=2)
    scenes = replace(SCENES, no_speaker_prob=0.4)
    latest: TargetSpeakerNetwork | None = None
    names: dict[str, set[str]] = {}
    for streams in ("synthetic", "frozen", "joint"):
        config = JointTrainingConfig(
            TINY, loop, scenes, streams, "best", 0.5, batch_scenes=2, epoch_batches=9, validation_scenes=3
        )
        train_joint(teacher_pack, teacher_pack, tmp_path / streams, config, start=latest, device="cpu")
        latest = load_target_speaker(tmp_path / streams / "best")
        rows = [json.loads(line) for line in (tmp_path / streams / "train.jsonl").read_text().splitlines()]
        names[streams] = set(next(row["validation"] for row in rows if "validation" in row))
    assert names["synthetic"] == {"loss", "target_weight", "selection_accuracy"}
    more = {
        "enrollment_accuracy",
        "frontal_level_db",
        "no_speaker_level_db",
        "target_stream_db",
        "clean_db",
        "noisy_db",
        "swapped_db",
        "zeroed_db",
        "wrong_speaker_rate",
        "cosine",
    }
    assert names["joint"] == names["frozen"] == names["synthetic"] | more


def test_synthetic_streams_contain_their_talker_and_leakage_of_the_others(teacher_pack: Path) -> None:
    config = JointTrainingConfig(scenes=SCENES, leak_db=(10.0, 10.0))
    batch = make_batch(read_sources(teacher_pack), config, 1, range(6))
    leakage = batch.streams[torch.arange(6), batch.target_stream] - batch.talkers[torch.arange(6), batch.target_stream]
    rest = batch.mixture - batch.talkers[torch.arange(6), batch.target_stream]
    torch.testing.assert_close(leakage, 10**-0.5 * rest, atol=1e-5, rtol=1e-3)
    assert (batch.speakers[torch.arange(6), batch.target_stream] == batch.target_speaker).all()


def test_a_complete_model_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TargetSpeakerNetwork(TINY)
    save_model(tmp_path / "model", model, "# A model\n", {})
    loaded = load_model(tmp_path / "model")
    assert loaded.network.config == TINY
    assert loaded.enrollment_encoder.network is loaded.network
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    with pytest.raises(ModelFormatError):
        load_separator(tmp_path / "model")


def test_a_small_encoder_learns_from_the_teacher(teacher_pack: Path, tmp_path: Path) -> None:
    loop = TrainingConfig(20, learning_rate=5e-3, warmup_steps=2, log_every=5, validate_every=10)
    config = SpeakerTrainingConfig(16, 1, loop, 0.96, batch_pieces=6, epoch_batches=50, validation_pieces=6)
    train_speaker(teacher_pack, teacher_pack, make_teacher(), tmp_path / "out", config, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    losses = [row["validation"]["loss"] for row in rows if "validation" in row]
    assert losses[-1] < losses[0]
    assert load_speaker(tmp_path / "out/best").lstm.hidden_size == 16


def test_pieces_do_not_depend_on_the_number_of_workers(teacher_pack: Path) -> None:
    sources, config = read_sources(teacher_pack), SpeakerTrainingConfig(seconds=0.96)
    whole = make_pieces(sources, config, 1, range(4))
    with SceneProcesses(teacher_pack, 2) as processes:
        parted = processes.make(make_pieces, config, 1, range(4))
    for one, other in zip(whole, parted, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole.clean, whole.degraded)
