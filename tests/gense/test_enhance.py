"""Enhancing files: as long, at their rate, of their channels, aligned, and nothing of one channel in another."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_llm import audio, hub
from audio_llm.errors import AudioFileError, ModelFormatError, UsageError
from audio_llm.gense.chunks import Policy
from audio_llm.gense.enhance import Enhancer
from audio_llm.gense.mask_model import MaskNetwork
from audio_llm.gense.models import MASK

torch.set_num_threads(1)
MakeMask = Callable[..., MaskNetwork]
ROUNDED = 1.01 / 32768  # of 16-bit samples


@pytest.fixture
def wire(make_mask: MakeMask) -> Enhancer:
    """Return an enhancer that lets everything pass."""
    return Enhancer(make_mask(random=False))


@pytest.fixture
def changed(make_mask: MakeMask) -> Enhancer:
    """Return an enhancer that changes every sound."""
    return Enhancer(make_mask())


def tones(rate: int, seconds: float, hertz: tuple[float, ...] = (440.0,)) -> np.ndarray:
    """Return (T, C): a tone that swells and fades in each channel, with some noise."""
    time_s = np.arange(round(seconds * rate)) / rate
    swell = 0.55 - 0.45 * np.cos(2 * np.pi * 3.0 * time_s)
    noise = 0.01 * np.random.default_rng(0).standard_normal((len(time_s), len(hertz)))
    return np.stack([0.3 * swell * np.sin(2 * np.pi * h * time_s) for h in hertz], axis=1) + noise


def run(enhancer: Enhancer, folder: Path, sound: np.ndarray, rate: int, mix: float = 0.0) -> np.ndarray:
    """Return the enhanced sound: (T, C)."""
    audio.write(folder / "in.wav", sound, rate)
    enhancer.enhance_file(folder / "in.wav", folder / "out.wav", mix)
    enhanced, enhanced_rate = soundfile.read(folder / "out.wav", always_2d=True)
    assert enhanced_rate == rate
    return enhanced


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("samples", [1, 777, 12_345])
def test_length_rate_and_channels_stay(changed: Enhancer, tmp_path: Path, rate: int, samples: int) -> None:
    sound = tones(rate, 2.0, (440.0, 700.0))[:samples]
    audio.write(tmp_path / "in.wav", sound, rate)
    done = changed.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.frames, info.samplerate, info.channels) == (samples, rate, 2)
    assert (done.samples, done.sample_rate, done.channels) == (samples, rate, 2)
    assert done.duration_s == pytest.approx(samples / rate)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_the_output_is_aligned_with_the_input(wire: Enhancer, tmp_path: Path, rate: int) -> None:
    sound = tones(rate, 0.9, (440.0, 1250.0))
    sound[:, 1] += 0.2 * np.sin(2 * np.pi * 2900 * np.arange(len(sound)) / rate)
    enhanced = run(wire, tmp_path, sound, rate)
    spectrum = np.fft.rfft(sound, axis=0)  # what a model at 16 kHz can hold
    spectrum[np.fft.rfftfreq(len(sound), 1 / rate) > min(7300.0, 0.45 * rate)] = 0
    expected = np.fft.irfft(spectrum, len(sound), axis=0)
    inside = slice(rate // 50, -rate // 50)
    error = (enhanced - expected)[inside]
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(expected**2))
    late = np.roll(expected, 2, axis=0)[inside]  # two samples would be noticed
    assert np.abs(error).mean() < 0.5 * np.abs(late - expected[inside]).mean()


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_channels_do_not_touch_each_other(changed: Enhancer, tmp_path: Path, rate: int) -> None:
    sound = tones(rate, 0.6, (440.0, 1250.0))
    enhanced = run(changed, tmp_path, sound, rate)
    assert np.abs(enhanced - sound).max() > 0.01
    swapped = run(changed, tmp_path, sound[:, ::-1], rate)
    np.testing.assert_allclose(swapped, enhanced[:, ::-1], atol=2 * ROUNDED)
    for channel in (0, 1):
        alone = run(changed, tmp_path, sound[:, channel], rate)
        np.testing.assert_allclose(alone[:, 0], enhanced[:, channel], atol=2 * ROUNDED)


@pytest.mark.parametrize("seconds", [0.05, 3.1, 15.0])
def test_stretches_are_joined_without_a_trace(changed: Enhancer, tmp_path: Path, seconds: float) -> None:
    sound = tones(16_000, seconds).astype(np.float32)
    enhanced = run(changed, tmp_path, sound, 16_000)[:, 0]
    with torch.inference_mode():
        read = torch.from_numpy(audio.read(tmp_path / "in.wav"))
        whole = changed.network(read[None])[0].numpy()
    np.testing.assert_allclose(enhanced, np.clip(whole, -1.0, 1.0), atol=2 * ROUNDED)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_the_report_covers_all_channels_without_gaps(changed: Enhancer, tmp_path: Path, rate: int) -> None:
    audio.write(tmp_path / "in.wav", tones(rate, 13.0, (440.0, 700.0)), rate)
    done = changed.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    for channel in (0, 1):
        chunks = [chunk for chunk in done.chunks if chunk.channel == channel]
        assert len(chunks) >= 2
        assert chunks[0].start_s == 0.0
        assert chunks[-1].end_s == pytest.approx(13.0, abs=0.001)
        for one, other in itertools.pairwise(chunks):
            assert one.start_s < one.end_s == other.start_s
        assert all(chunk.action == "mask" for chunk in chunks)
        assert all(-40.0 < chunk.input_db < -5.0 for chunk in chunks)
        assert all(chunk.end_s - chunk.start_s < 7.0 for chunk in chunks)


def test_levels_of_the_report_are_those_of_the_stretch(wire: Enhancer, tmp_path: Path) -> None:
    sound = tones(16_000, 2.0)
    audio.write(tmp_path / "in.wav", sound, 16_000)
    (chunk,) = wire.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav").chunks
    level_db = 10 * np.log10(np.mean(sound**2))
    assert chunk.input_db == pytest.approx(level_db, abs=0.06)
    assert chunk.output_db == pytest.approx(level_db, abs=0.2)


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_a_twentieth_of_a_second_is_enough(wire: Enhancer, tmp_path: Path, rate: int) -> None:
    sound = tones(rate, 0.05, (440.0,)) + 0.1
    enhanced = run(wire, tmp_path, sound, rate)
    assert enhanced.shape == sound.shape
    assert np.corrcoef(enhanced[:, 0], sound[:, 0])[0, 1] > 0.95


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_silence_stays_silent(changed: Enhancer, tmp_path: Path, rate: int) -> None:
    audio.write(tmp_path / "in.wav", np.zeros((rate, 2)), rate)
    done = changed.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert not soundfile.read(tmp_path / "out.wav")[0].any()
    assert [chunk.action for chunk in done.chunks] == ["silent", "silent"]
    assert done.chunks[0].input_db == -100.0


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_a_mix_of_one_is_the_recording(changed: Enhancer, tmp_path: Path, rate: int) -> None:
    sound = tones(rate, 0.7, (440.0, 700.0))
    enhanced = run(changed, tmp_path, sound, rate, mix=1.0)
    np.testing.assert_allclose(enhanced, soundfile.read(tmp_path / "in.wav")[0], atol=ROUNDED)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_mix_is_between(changed: Enhancer, tmp_path: Path, rate: int) -> None:
    sound = 0.5 * tones(rate, 0.7)
    wet, half, dry = (run(changed, tmp_path, sound, rate, mix) for mix in (0.0, 0.25, 1.0))
    assert np.abs(wet).max() < 1.0
    np.testing.assert_allclose(half, 0.75 * wet + 0.25 * dry, atol=3 * ROUNDED)
    for mix in (-0.1, 1.1):
        with pytest.raises(UsageError, match="0 to 1"):
            run(changed, tmp_path, sound, rate, mix)


def test_blocks_of_any_length_give_the_same(changed: Enhancer) -> None:
    sound = tones(44_100, 1.0, (440.0, 700.0)).astype(np.float32)
    whole = np.concatenate(list(changed.stream([sound], 44_100)))
    cuts = [0, 1, 2, 500, 501, 20_000, 44_100]
    blocks = [sound[a:b] for a, b in itertools.pairwise(cuts)]
    pieces = np.concatenate(list(changed.stream(blocks, 44_100)))
    assert whole.shape == pieces.shape == sound.shape
    np.testing.assert_allclose(pieces, whole, atol=1e-4)


def test_progress_counts_all_of_the_sound(wire: Enhancer, tmp_path: Path) -> None:
    audio.write(tmp_path / "in.wav", tones(8000, 9.5), 8000)
    seconds: list[float] = []
    wire.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", progress=seconds.append)
    assert len(seconds) > 1
    assert sum(seconds) == pytest.approx(9.5, abs=1e-3)


def test_the_warnings_name_what_is_odd(wire: Enhancer, changed: Enhancer, tmp_path: Path) -> None:
    def warnings(enhancer: Enhancer, rate: int, level: float = 1.0) -> str:
        audio.write(tmp_path / "in.wav", np.clip(level * tones(rate, 0.5), -1, 1), rate)
        return " ".join(enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav").warnings)

    assert warnings(wire, 16_000) == ""
    assert "nothing above 4000 Hz is generated" in warnings(wire, 8000)
    assert "nothing above 8000 Hz" in warnings(wire, 44_100)
    with torch.no_grad():
        for layer in changed.network.leave:
            layer.bias.mul_(30.0)
    assert "clipped" in warnings(changed, 16_000, 3.0)
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() <= 1.0


def test_the_input_is_never_overwritten(wire: Enhancer, tmp_path: Path) -> None:
    audio.write(tmp_path / "in.wav", tones(16_000, 0.5), 16_000)
    before = (tmp_path / "in.wav").read_bytes()
    (tmp_path / "link.wav").symlink_to(tmp_path / "in.wav")
    for output in ("in.wav", "link.wav"):
        with pytest.raises(UsageError, match="another output"):
            wire.enhance_file(tmp_path / "in.wav", tmp_path / output)
    assert (tmp_path / "in.wav").read_bytes() == before


def test_a_file_without_sound_is_an_error(wire: Enhancer, tmp_path: Path) -> None:
    audio.write(tmp_path / "in.wav", np.zeros(0), 16_000)
    (tmp_path / "zero.wav").write_bytes(b"")
    for name in ("in.wav", "zero.wav"):
        with pytest.raises(AudioFileError, match="no sound"):
            wire.enhance_file(tmp_path / name, tmp_path / "out.wav")
    with pytest.raises(AudioFileError, match="no such file"):
        wire.enhance_file(tmp_path / "nowhere.wav", tmp_path / "out.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "zero.wav"]


def test_a_failure_midway_leaves_no_output_file(wire: Enhancer, tmp_path: Path) -> None:
    sound = tones(16_000, 9.0).astype(np.float32)
    sound[120_000] = np.nan
    soundfile.write(tmp_path / "in.wav", sound, 16_000, subtype="FLOAT")
    with pytest.raises(AudioFileError, match="NaN"):
        wire.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_a_saved_mask_network_is_loaded(make_mask: MakeMask, tmp_path: Path) -> None:
    network = make_mask()
    folder = hub.save_model(tmp_path / "tiny", asdict(network.config), network.state_dict(), MASK, "Tiny.\n")
    sound = tones(16_000, 0.5)
    np.testing.assert_array_equal(
        run(Enhancer.load(folder), tmp_path, sound, 16_000), run(Enhancer(network), tmp_path, sound, 16_000)
    )
    for mode in ("balanced", "generative"):
        with pytest.raises(UsageError, match="language models"):
            Enhancer.load(folder, mode=mode)
        with pytest.raises(UsageError, match=mode):
            Enhancer(network, None, Policy(mode))
    other = hub.save_model(tmp_path / "x", asdict(network.config), network.state_dict(), "codec", "Another.\n")
    with pytest.raises(ModelFormatError, match="codec"):
        Enhancer.load(other)
