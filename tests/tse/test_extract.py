"""Extraction from files: length, rate and channels are kept, blocks do not matter, bad files are reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audio_llm
from audio_llm import audio
from audio_llm.errors import AudioFileError, ModelNotFoundError, UsageError
from audio_llm.tse.extract import extract, extract_stream, read_enrollment
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.frames import CHUNK, OVERLAP
from audio_llm.tse.models import load_model, save_model
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork

torch.set_num_threads(1)
TINY = TargetSpeakerConfig(
    ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3, front=True),
    SelectorConfig(12, 2, 3, 5),
)
ONE_STEP = 1.01 / 32768  # of 16-bit samples


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, TargetSpeakerNetwork(TINY).eval(), "A tiny one.", {})
    return folder


@pytest.fixture
def enrollment(tmp_path: Path) -> Path:
    return noise(tmp_path / "enrollment.wav", 1.5, seed=1)


def noise(path: Path, seconds: float, rate: int = 16_000, channels: int = 2, seed: int = 0, level: float = 0.1) -> Path:
    random = np.random.default_rng(seed)
    audio.write(path, level * random.standard_normal((round(seconds * rate), channels)), rate)
    return path


@pytest.mark.parametrize(("rate", "seconds"), [(16_000, 1.0), (48_000, 0.7), (44_100, 1.2345), (8_000, 0.01)])
def test_output_is_as_long_as_the_mixture_at_its_rate(
    model: Path, enrollment: Path, tmp_path: Path, rate: int, seconds: float
) -> None:
    mixture = noise(tmp_path / "mix.wav", seconds, rate)
    done = extract(mixture, enrollment, tmp_path / "out.wav", model=model)
    extracted, extracted_rate = soundfile.read(tmp_path / "out.wav")
    expected, _ = soundfile.read(mixture)
    assert (extracted.shape, extracted_rate) == (expected.shape, rate)
    assert (done.samples, done.sample_rate, done.warnings) == (len(expected), rate, ())
    assert done.enrollment_s == pytest.approx(1.5, abs=CHUNK / 16_000)
    assert done.duration_s == pytest.approx(seconds, abs=1e-3)
    if seconds > 0.5:
        assert np.abs(extracted).max() > 1e-3
        assert not np.allclose(extracted, expected, atol=1e-2)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_mix_of_1_is_the_mixture_and_of_half_lies_between(
    model: Path, enrollment: Path, tmp_path: Path, rate: int
) -> None:
    mixture = noise(tmp_path / "mix.wav", 0.8, rate)
    out = {}
    for mix in (0.0, 0.5, 1.0):
        extract(mixture, enrollment, tmp_path / "out.wav", mix, model)
        out[mix] = soundfile.read(tmp_path / "out.wav")[0]
    np.testing.assert_allclose(out[1.0], soundfile.read(mixture)[0], atol=ONE_STEP)
    np.testing.assert_allclose(out[0.5], 0.5 * (out[0.0] + out[1.0]), atol=2 * ONE_STEP)


@pytest.mark.parametrize("size", [1, 100, 128, 1000, 10_000])
def test_blocks_give_what_the_whole_gives_without_its_delay(model: Path, size: int) -> None:
    network = load_model(model).network
    sound = 0.1 * np.random.default_rng(0).standard_normal((3001, 2)).astype(np.float32)
    enrolled = torch.nn.functional.normalize(torch.ones(1, 256), dim=-1)
    padded = np.zeros((25 * CHUNK, 2), np.float32)
    padded[: len(sound)] = sound
    with torch.inference_mode():
        whole = network(torch.from_numpy(padded.T)[None].contiguous(), enrolled).sound[0].T.numpy()
    blocks: Iterator[np.ndarray] = (sound[start : start + size] for start in range(0, len(sound), size))
    extracted = np.concatenate(list(extract_stream(network, enrolled, blocks, 16_000)))
    assert extracted.shape == sound.shape
    np.testing.assert_allclose(extracted, whole[OVERLAP : OVERLAP + len(sound)], atol=1e-5)


def test_the_enrollment_matters(model: Path, enrollment: Path, tmp_path: Path) -> None:
    mixture = noise(tmp_path / "mix.wav", 0.5)
    time_s = np.arange(24_000) / 16_000
    tone = 0.2 * np.sin(2 * np.pi * 300 * time_s)[:, None] * [1.0, 0.7]
    audio.write(tmp_path / "tone.wav", tone, 16_000)
    vectors = [
        load_model(model).enrollment_encoder(read_enrollment(path).waveform[None])
        for path in (enrollment, tmp_path / "tone.wav")
    ]
    assert (vectors[0] - vectors[1]).abs().max() > 1e-4
    extract(mixture, tmp_path / "tone.wav", tmp_path / "out.flac", model=model)
    assert soundfile.info(tmp_path / "out.flac").format == "FLAC"


def test_a_missing_frontal_speaker_is_reported(model: Path, enrollment: Path, tmp_path: Path) -> None:
    mixture = noise(tmp_path / "mix.wav", 0.5)
    loaded = load_model(model)
    assert not any(
        "no frontal speaker" in line
        for line in extract(mixture, enrollment, tmp_path / "out.wav", model=loaded).warnings
    )
    loaded.network.config = replace(loaded.network.config, least_front_db=60.0)
    warned = extract(mixture, enrollment, tmp_path / "out.wav", model=loaded).warnings
    assert any(line.startswith(str(enrollment)) and "no frontal speaker" in line for line in warned)


def test_progress_goes_to_the_end(model: Path, enrollment: Path, tmp_path: Path) -> None:
    reported: list[tuple[float, float]] = []
    mixture = noise(tmp_path / "mix.wav", 9.0)
    extract(mixture, enrollment, tmp_path / "out.wav", model=model, progress=lambda *values: reported.append(values))
    assert reported == sorted(reported)
    assert len(reported) > 2
    assert reported[-1] == (9.0, 9.0)


def test_one_channel_works_and_the_loss_is_reported(model: Path, tmp_path: Path) -> None:
    mixture = noise(tmp_path / "mix.wav", 0.5, channels=1)
    enrollment = noise(tmp_path / "enrollment.wav", 1.0, channels=1, seed=1)
    done = extract(mixture, enrollment, tmp_path / "out.wav", model=model)
    assert soundfile.info(tmp_path / "out.wav").channels == 2
    assert len(done.warnings) == 2
    assert done.warnings[0].startswith(f"{mixture}: has one channel")
    assert done.warnings[1].startswith(f"{enrollment}: has one channel")


def test_more_channels_than_ears_are_reported(model: Path, enrollment: Path, tmp_path: Path) -> None:
    done = extract(noise(tmp_path / "mix.wav", 0.5, channels=4), enrollment, tmp_path / "out.wav", model=model)
    assert "has 4 channels" in done.warnings[0]


def test_problems_of_enrollments_are_reported(tmp_path: Path) -> None:
    loud = noise(tmp_path / "loud.wav", 1.0, level=1.0)
    assert "are clipped" in read_enrollment(loud).warnings[0]
    long = read_enrollment(noise(tmp_path / "long.wav", 11.0))
    assert "first 10 s" in long.warnings[0]
    assert long.waveform.shape == (2, 160_000)
    one = 0.1 * np.random.default_rng(0).standard_normal((16_000, 1))
    audio.write(tmp_path / "same.wav", np.repeat(one, 2, axis=1), 16_000)
    assert "both channels are identical" in read_enrollment(tmp_path / "same.wav").warnings[0]
    audio.write(tmp_path / "left.wav", one * [1.0, 0.0], 16_000)
    assert "one ear is silent" in read_enrollment(tmp_path / "left.wav").warnings[0]
    assert read_enrollment(noise(tmp_path / "high.wav", 1.5, 48_000)).waveform.shape == (2, 24_000 // CHUNK * CHUNK)


def test_unusable_enrollments_are_refused(model: Path, tmp_path: Path) -> None:
    mixture, out = noise(tmp_path / "mix.wav", 0.5), tmp_path / "out.wav"
    short = noise(tmp_path / "short.wav", 0.9)
    silent = noise(tmp_path / "silent.wav", 2.0, level=0.0)
    soundfile.write(tmp_path / "nan.wav", np.full((16_000, 2), np.nan), 16_000, subtype="FLOAT")
    cases = {
        short: "0.90 s is too short",
        silent: "silent",
        tmp_path / "nan.wav": "NaN",
        tmp_path / "none.wav": "no such",
    }
    for path, reason in cases.items():
        with pytest.raises(AudioFileError, match=reason) as caught:
            extract(mixture, path, out, model=model)
        assert caught.value.path == path
        assert caught.value.remedy
        assert not out.exists()


def test_unusable_mixtures_are_refused_and_nothing_is_written(model: Path, enrollment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    broken = 0.1 * np.ones((80_000, 2))
    broken[-1, 1] = np.inf
    soundfile.write(tmp_path / "broken.wav", broken, 16_000, subtype="FLOAT")
    (tmp_path / "empty.wav").touch()
    before = sorted(tmp_path.iterdir())
    for name, reason in (
        ("broken.wav", "NaN or infinite sample at 5.00 s"),
        ("empty.wav", "no sound"),
        ("no.wav", "no"),
    ):
        with pytest.raises(AudioFileError, match=reason) as caught:
            extract(tmp_path / name, enrollment, out, model=model)
        assert caught.value.path == tmp_path / name
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_settings_are_refused(model: Path, enrollment: Path, tmp_path: Path) -> None:
    mixture = noise(tmp_path / "mix.wav", 0.5)
    for mix in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="outside 0 to 1"):
            extract(mixture, enrollment, tmp_path / "out.wav", mix, model)
    with pytest.raises(UsageError, match="is an input"):
        extract(mixture, enrollment, mixture, model=model)
    with pytest.raises(ModelNotFoundError, match="no-such"):
        audio_llm.extract(mixture, enrollment, model="no-such")
    with pytest.raises(AudioFileError, match="suffix"):
        extract(mixture, enrollment, tmp_path / "out.xyz", model=model)


def test_silence_stays_silence(model: Path, enrollment: Path, tmp_path: Path) -> None:
    extract(noise(tmp_path / "mix.wav", 0.5, level=0.0), enrollment, tmp_path / "out.wav", model=model)
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() < 1e-3
