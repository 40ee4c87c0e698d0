"""Channels and excerpts: what is mixed, what is chosen, where reading begins and ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from containers import encode

from audio_llm import audio
from audio_llm.audio_channels import Excerpt, Mixer, channel_name, parse_channel
from audio_llm.errors import AudioFileError, UsageError

RATE = audio.SAMPLE_RATE
SAMPLES = Path(__file__).parents[1] / "samples" / "speech"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Return 3 s of a recording: (48000,) float32 at 16 kHz."""
    return audio.read(SAMPLES / "librispeech-7021-85628-0022.flac", end_s=3.0)


def write(path: Path, sound: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, sound, rate, subtype=None if path.suffix == ".flac" else "FLOAT")
    return path


def test_inverted_channels_do_not_cancel_out(tmp_path: Path, speech: np.ndarray) -> None:
    for gain in (-1.0, -0.99, -0.95):
        path = write(tmp_path / "a.wav", np.stack([speech, gain * speech], axis=1))
        with audio.BlockReader(path) as reader:
            (mix,) = list(reader)
        assert np.abs(np.corrcoef(mix, speech)[0, 1]) > 0.999
        assert mix.std() > 0.9 * speech.std()
        assert reader.warnings == (
            "its channels are inverted copies of each other for 3.0 s and would cancel out: "
            "they were aligned before they were mixed",
        )


def test_inverted_channels_of_any_count_and_in_noise_are_aligned(tmp_path: Path, speech: np.ndarray) -> None:
    noise = 0.002 * np.random.default_rng(0).standard_normal((len(speech), 4))
    sound = np.array([1.0, -1.0, -0.9, 0.9]) * speech[:, None] + noise
    mix = audio.read(write(tmp_path / "a.wav", sound))
    assert abs(np.corrcoef(mix, speech)[0, 1]) > 0.99
    assert mix.std() > 0.9 * speech.std()


def test_polarity_does_not_change_within_a_recording(tmp_path: Path, speech: np.ndarray) -> None:
    sway = 1 + 0.05 * np.sin(np.arange(len(speech)) / RATE * 9)  # now the one, now the other channel is louder
    mix = audio.read(write(tmp_path / "a.wav", np.stack([speech * sway, -speech / sway], axis=1)))
    pieces = [slice(start, start + RATE // 4) for start in range(0, len(mix) - RATE // 4, RATE // 4)]
    assert len({bool(mix[piece] @ speech[piece] > 0) for piece in pieces}) == 1


def test_what_does_not_cancel_is_the_plain_mean(tmp_path: Path, speech: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for sound in (
        rng.uniform(-0.5, 0.5, (RATE, 2)),
        rng.uniform(-0.5, 0.5, (RATE, 64)),
        np.stack([speech, -0.5 * speech], axis=1),
        np.stack([speech, -speech, speech, speech], axis=1),
        np.stack([speech, np.zeros_like(speech)], axis=1),
        np.zeros((RATE, 2)),
    ):
        with audio.BlockReader(write(tmp_path / "a.wav", sound)) as reader:
            (mix,) = list(reader)
        np.testing.assert_allclose(mix, sound.mean(axis=1), atol=1e-6)
        assert reader.warnings == ()


def test_weights_change_without_a_click() -> None:
    tone = np.sin(2 * np.pi * 100 * np.arange(2 * RATE) / RATE).astype(np.float32)
    mixer = Mixer(2, RATE)
    first = mixer.mix(np.stack([tone, tone], axis=1)[:RATE])
    second = mixer.mix(np.stack([tone, -tone], axis=1)[RATE:])
    joined = np.concatenate([first, second])
    assert np.abs(np.diff(joined)).max() < 0.1
    assert mixer.aligned_s == 1.0


def test_channels_are_chosen_by_name_or_number(tmp_path: Path, speech: np.ndarray) -> None:
    sound = np.stack([speech * (k + 1) / 8 for k in range(8)], axis=1)
    path = write(tmp_path / "a.wav", sound)
    for channel, index in (("left", 0), ("right", 1), (1, 0), (3, 2), (8, 7)):
        np.testing.assert_allclose(audio.read(path, channel=channel), sound[:, index], atol=1e-6)
    np.testing.assert_allclose(audio.read(path, channel="each"), sound, atol=1e-6)
    with audio.BlockReader(path, channel="each", block_s=0.5) as reader:
        assert {block.shape for block in reader} == {(RATE // 2, 8)}
    low = write(tmp_path / "low.wav", audio.resample(sound.astype(np.float32), RATE, 8_000), 8_000)
    assert audio.read(low, channel="each").shape == pytest.approx((len(speech), 8), abs=2)
    assert [channel_name(index, 2) for index in range(2)] == ["left", "right"]
    assert channel_name(2, 8) == "channel 3"


def test_a_channel_that_is_not_there_is_one_line(tmp_path: Path, speech: np.ndarray) -> None:
    mono = write(tmp_path / "mono.wav", speech)
    stereo = write(tmp_path / "stereo.wav", np.stack([speech, speech], axis=1))
    for path, channel, message in (
        (mono, "right", "there is no channel right, the file has 1 channel"),
        (stereo, 3, "there is no channel 3, the file has 2 channels"),
    ):
        with pytest.raises(AudioFileError) as caught:
            audio.read(path, channel=channel)
        assert message in str(caught.value)
        assert caught.value.path == path
        assert caught.value.remedy
    for name in ("middle", "0", "-1", "1.5", ""):
        with pytest.raises(UsageError, match="use mix, left, right, each or a number from 1 on"):
            parse_channel(name)
    np.testing.assert_array_equal(audio.read(mono, channel="left"), audio.read(mono))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "m4a", "mka"])
def test_an_excerpt_is_that_part_of_the_whole(tmp_path: Path, speech: np.ndarray, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind in ("m4a", "mka"):
        encode(path, speech)
    else:
        soundfile.write(path, speech, RATE)
    whole = audio.read(path)
    with audio.BlockReader(path, start_s=1.2345, end_s=2.5) as reader:
        sound = np.concatenate(list(reader))
        assert reader.start_s == 1.2345
    np.testing.assert_allclose(sound, whole[19_752:40_000], atol=1e-6)
    np.testing.assert_allclose(audio.read(path, start_s=2.0), whole[32_000:], atol=1e-6)
    np.testing.assert_allclose(audio.read(path, end_s=99.0), whole, atol=1e-6)


def test_an_excerpt_at_another_rate_lies_where_it_should(tmp_path: Path, speech: np.ndarray) -> None:
    path = write(tmp_path / "a.wav", audio.resample(speech, RATE, 44_100), 44_100)
    part, whole = audio.read(path, start_s=1.0, end_s=2.0), audio.read(path)
    assert len(part) == RATE
    np.testing.assert_allclose(part[400:-400], whole[RATE + 400 : 2 * RATE - 400], atol=1e-3)


def test_a_start_after_the_end_is_one_line(tmp_path: Path, speech: np.ndarray) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    cut = write(tmp_path / "cut.flac", speech)
    cut.write_bytes(cut.read_bytes()[: int(0.5 * cut.stat().st_size)])  # claims 3 s
    paths = [write(tmp_path / "a.wav", speech), encode(tmp_path / "a.m4a", speech), encode(tmp_path / "a.aac", speech)]
    for path in (*paths, tmp_path / "empty.wav", cut):
        with pytest.raises(AudioFileError, match=r"ends after .* s, nothing can be read") as caught:
            audio.read(path, start_s=2.9 if path == cut else 5.0)
        assert caught.value.path == path
        assert caught.value.remedy == "choose an earlier start"
    for start_s, end_s in ((-1.0, None), (2.0, 2.0), (2.0, 1.0), (float("nan"), None), (0.0, float("nan"))):
        with pytest.raises(UsageError):
            Excerpt("mix", start_s, end_s)


def test_losses_after_the_excerpt_are_not_reported(tmp_path: Path, speech: np.ndarray) -> None:
    path = write(tmp_path / "a.flac", speech)
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    with audio.BlockReader(path, end_s=1.0) as reader:
        assert sum(map(len, reader)) == RATE
        assert reader.warnings == ()
