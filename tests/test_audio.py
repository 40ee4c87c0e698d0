"""The sound door: what every kind of file gives, whole, cut off, empty or wrong."""

from __future__ import annotations

import io
import os
import shlex
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from audio_llm import audio
from audio_llm.errors import AudioFileError

RATE = audio.SAMPLE_RATE
FORMATS = ["wav", "flac", "ogg", "opus", "mp3"]


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """Return a tone in a little noise, (T,) float32."""
    time_s = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    return (0.3 * np.sin(2 * np.pi * hertz * time_s) + 0.01 * noise).astype(np.float32)


def read_all(path: Path, **options: float) -> tuple[np.ndarray, tuple[str, ...]]:
    with audio.BlockReader(path, **options) as reader:
        blocks = list(reader)
    return np.concatenate([*blocks, np.zeros(0, np.float32)]), reader.warnings


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    audio.write(path, tone(3), RATE)
    info = audio.probe(path)
    assert (info.sample_rate, info.channels, info.duration_s) == (RATE, 1, pytest.approx(3, abs=0.08))
    sound, warnings = read_all(path)
    assert warnings == ()
    assert sound.dtype == np.float32
    assert np.corrcoef(sound[: 2 * RATE], tone(3)[: 2 * RATE])[0, 1] > 0.99
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("block_s", [0.01, 0.37, 30.0])
def test_blocks_make_up_the_whole(tmp_path: Path, kind: str, block_s: float) -> None:
    path = tmp_path / f"a.{kind}"
    rate = 24_000 if kind == "opus" else 22_050
    audio.write(path, tone(2.5, rate), rate)
    with audio.BlockReader(path, block_s=block_s) as reader:
        blocks = list(reader)
    assert {len(block) for block in blocks[:-1]} <= {round(block_s * RATE)}
    np.testing.assert_array_equal(np.concatenate(blocks), audio.read(path))


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 44_100, 48_000, 192_000])
def test_any_rate_and_channel_count(tmp_path: Path, rate: int) -> None:
    left = tone(1, rate, 200)
    audio.write(tmp_path / "a.wav", np.stack([left, -left, left, left], axis=1), rate)
    sound = audio.read(tmp_path / "a.wav")
    assert len(sound) == pytest.approx(RATE, abs=2)
    middle = slice(RATE // 4, -RATE // 4)
    np.testing.assert_allclose(sound[middle], audio.resample(left / 2, rate, RATE)[: len(sound)][middle], atol=1e-4)


def test_64_channels_are_averaged(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 64)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), sound.mean(axis=1), atol=1e-6)


def test_memory_does_not_grow_with_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than one piece of 64 channels and one block of mono are held."""
    import tracemalloc

    peaks = []
    for seconds in (10, 40):
        path = tmp_path / f"{seconds}.wav"
        with soundfile.SoundFile(path, "w", 8_000, 64) as file:
            for _ in range(seconds):
                file.write(np.zeros((8_000, 64), np.int16))
        tracemalloc.start()
        with audio.BlockReader(path, block_s=2) as reader:
            assert sum(len(block) for block in reader) == pytest.approx(seconds * RATE, abs=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.1
    assert peaks[1] < 20e6


def test_empty_and_one_sample_files_are_empty_sound(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    assert audio.read(tmp_path / "empty.wav").shape == (0,)
    assert audio.probe(tmp_path / "empty.wav").duration_s == 0
    for kind in ("wav", "flac", "ogg"):
        for samples in (0, 1, 2):
            soundfile.write(tmp_path / f"a.{kind}", np.full(samples, 0.5, np.float32), RATE)
            sound, warnings = read_all(tmp_path / f"a.{kind}")
            empty = (tmp_path / f"a.{kind}").stat().st_size == 0  # so libsndfile writes a FLAC of no samples
            assert (len(sound), warnings) == (samples, ("the file is empty (0 bytes)",) if empty else ())
    soundfile.write(tmp_path / "b.wav", np.full(1, 0.5, np.float32), 44_100)
    assert len(audio.read(tmp_path / "b.wav")) <= 1


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "aiff", "au", "w64", "rf64"])
@pytest.mark.parametrize("share", [0.97, 0.6, 0.1])
def test_cut_off_file_gives_what_is_there_and_the_seconds_lost(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tone(20), RATE)
    whole, _ = read_all(path)
    sound, warnings = read_all(cut(path, share))
    (warning,) = warnings
    got_s = len(sound) / RATE
    assert got_s == pytest.approx(20 * share, abs=0.5)
    lost_s = float(warning.split(" s lost")[0].split()[-1])
    assert lost_s + got_s == pytest.approx(20, abs=0.04)
    np.testing.assert_allclose(sound[: -RATE // 4], whole[: len(sound) - RATE // 4], atol=1e-6)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_cut_off_ogg_says_that_the_end_is_missing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    audio.write(path, tone(20), RATE)
    sound, warnings = read_all(cut(path, 0.6))
    (warning,) = warnings
    assert 9 < len(sound) / RATE < 12.5
    assert f"after {len(sound) / RATE:.2f} s" in warning


def test_truncated_after_the_header(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2), RATE)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:44])
    sound, warnings = read_all(tmp_path / "a.wav")
    assert len(sound) == 0
    assert "2.00 s lost after 0.00 s" in warnings[0]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_wav_written_to_a_pipe_is_whole(tmp_path: Path, size: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(data)
    sound, warnings = read_all(tmp_path / "a.wav")
    assert (len(sound), warnings) == (2 * RATE, ())


def test_unfinished_recording_is_a_warning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = b"\0\0\0\0"
    (tmp_path / "a.wav").write_bytes(data)
    assert "recording was not finished" in read_all(tmp_path / "a.wav")[1][0]


def test_flac_that_does_not_tell_its_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(2), RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = b"\0\0\0\0"
    (tmp_path / "a.flac").write_bytes(data)
    assert audio.probe(tmp_path / "a.flac").duration_s == float("inf")
    sound, warnings = read_all(tmp_path / "a.flac")
    assert (len(sound), warnings) == (2 * RATE, ())


def test_mp3_without_a_length_is_read_or_the_rest_is_reported(tmp_path: Path) -> None:
    """libsndfile guesses the length of an MP3 without a header of its own, and reads no further."""
    loud, quiet = 0.5 * np.random.default_rng(0).standard_normal(5 * RATE), np.zeros(30 * RATE)
    audio.write(tmp_path / "a.mp3", np.concatenate([loud, quiet]), RATE)
    data = (tmp_path / "a.mp3").read_bytes()
    second_frame = data.index(data[:2], 200)
    (tmp_path / "a.mp3").write_bytes(data[second_frame:])
    sound, warnings = read_all(tmp_path / "a.mp3")
    assert len(sound) > 34 * RATE or "could be read" in warnings[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_not_finite_samples_are_refused(tmp_path: Path, value: float, channels: int) -> None:
    sound = np.zeros((4 * RATE, channels), np.float32)
    sound[3 * RATE, 0] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, sound, RATE, subtype="FLOAT")
    with pytest.raises(AudioFileError, match=r"a\.wav: NaN or infinite sample at 3\.00 s \(export it again"):
        audio.read(path)


def test_too_loud_float_samples_are_clipped_with_a_warning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 1.5, -2.0, 1.0], np.float32), RATE, subtype="FLOAT")
    sound, warnings = read_all(tmp_path / "a.wav")
    np.testing.assert_array_equal(sound, [0.5, 1.0, -1.0, 1.0])
    assert "up to 2 were clipped" in warnings[0]


def bad_files() -> dict[str, tuple[bytes, str]]:
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 44, b"WAVE", b"fmt ", 16, 1, 1, 0, 0, 2, 16, b"data", 8)
    one_hertz = header[:24] + struct.pack("<I", 1) + header[28:]
    return {
        "zero.wav": (header + bytes(8), "sample rate is 0"),
        "slow.wav": (one_hertz + bytes(8), "claims a sample rate of 1 Hz"),
        "text.wav": (b"not a sound\n" * 50, "cannot be read as sound"),
        "text.mp3": (b"not a sound\n" * 50, "cannot be read as sound"),
        "text.raw": (b"not a sound\n" * 50, "cannot be read as sound"),
        "cut.ogg": (b"OggS" + bytes(30), "cannot be read as sound"),
        "a.m4a": (b"\0\0\0\x20ftypM4A " + bytes(99), "MP4"),
        "a.mp4": (b"\0\0\0\x20ftypisom" + bytes(99), "MP4"),
        "a.aac": (b"\xff\xf1\x50\x80" + bytes(99), "AAC"),
        "a.wma": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(99), "WMA"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_file_is_one_line_with_file_and_remedy(tmp_path: Path, name: str) -> None:
    data, message = bad_files()[name]
    (tmp_path / name).write_bytes(data)
    for action in (audio.probe, audio.read):
        with pytest.raises(AudioFileError) as caught:
            action(tmp_path / name)
        line = str(caught.value)
        assert "\n" not in line
        assert message in line
        assert caught.value.path == tmp_path / name
        assert caught.value.remedy


def test_the_ffmpeg_line_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "my memo.mp3"
    path.write_bytes(b"no sound\n" * 50)
    with pytest.raises(AudioFileError) as caught:
        audio.read(path)
    words = shlex.split((caught.value.remedy or "").partition("does: ")[2])
    assert words == ["ffmpeg", "-i", str(path), "-ar", "16000", "-ac", "1", str(tmp_path / "my memo.wav")]
    (tmp_path / "b.wav").write_bytes(b"text")
    with pytest.raises(AudioFileError, match=r"-i \S+b\.wav -ar 16000 -ac 1 \S+b_16k\.wav"):
        audio.read(tmp_path / "b.wav")


def test_missing_folder_and_device(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.wav", "no such file"), (tmp_path, "a folder"), ("/dev/null", "a device")):
        with pytest.raises(AudioFileError, match=message):
            audio.read(path)


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1), RATE)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioFileError, match=r"no permission to read it \(chmod u\+r"):
        audio.read(path)


def test_standard_input_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", tone(2), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    np.testing.assert_array_equal(audio.read("-"), audio.read(tmp_path / "a.flac"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"text")))
    with pytest.raises(AudioFileError, match=r"^standard input: "):
        audio.read("-")
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    thread.start()
    assert len(audio.read(tmp_path / "pipe")) == 2 * RATE
    thread.join()


def test_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.opus", tone(1), 48_000)
    before = (tmp_path / "a.opus").read_bytes()
    with pytest.raises(AudioFileError, match="cannot be written"):
        audio.write(tmp_path / "a.opus", tone(1), 44_100)
    with pytest.raises(AudioFileError, match="NaN"):
        audio.write(tmp_path / "a.opus", np.array([np.nan], np.float32), 48_000)
    assert (tmp_path / "a.opus").read_bytes() == before
    with pytest.raises(AudioFileError, match=r"no format for this suffix \(use one of \.wav"):
        audio.write(tmp_path / "a.xyz", tone(1), RATE)
    with pytest.raises(AudioFileError):
        audio.write(tmp_path / "no folder" / "a.wav", tone(1), RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.opus"]


def test_write_stereo_and_long_vorbis(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.flac", np.stack([tone(1), 2 * tone(1)], axis=1) * 4, RATE)
    assert audio.probe(tmp_path / "a.flac").channels == 2
    audio.write(tmp_path / "a.ogg", np.zeros(1_200 * 8_000, np.float32), 8_000)  # in one call libsndfile may crash
    assert audio.probe(tmp_path / "a.ogg").duration_s == 1_200


def test_warnings_of_read_go_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2), RATE)
    audio.read(cut(tmp_path / "a.wav", 0.5))
    assert "s lost" in caplog.text


def test_mp3_read_in_blocks_equals_mp3_read_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    time_s = np.arange(6 * RATE) / RATE
    sweep = 0.5 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s) * (1 + np.sin(9 * time_s)) / 2
    path = tmp_path / "sweep.mp3"
    soundfile.write(path, sweep.astype(np.float32), RATE)
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(audio.read(path), whole, atol=1e-5)
    assert "mpg123" not in capfd.readouterr().err


def blocks_that_fail(error: BaseException) -> Iterator[np.ndarray]:
    """Yield two blocks of a tenth of a second, then raise."""
    for number in range(2):
        yield np.full(1600, 0.25 * (number + 1), np.float32)
    raise error


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_comment_is_kept_in_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    audio.write_blocks(path, [np.zeros(1600, np.float32)] * 2, 16_000, comment="synthetic speech, ünd mehr")
    with soundfile.SoundFile(str(path)) as file:
        assert file.comment == "synthetic speech, ünd mehr"
        assert file.frames >= 3200
    audio.write_blocks(path, [np.zeros(1600, np.float32)], 16_000)
    assert "synthetic" not in soundfile.SoundFile(str(path)).comment


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("oh")])
def test_the_finished_part_is_kept_on_request(
    tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = AudioFileError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        audio.write_blocks(tmp_path / "out.wav", blocks_that_fail(error), 16_000, keep_part=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.part.wav"]
    found = audio.read(tmp_path / "out.part.wav")
    np.testing.assert_allclose(found, np.repeat([0.25, 0.5], 1600), atol=1e-4)
    assert "out.part.wav" in caplog.text
    with pytest.raises(wanted):
        audio.write_blocks(tmp_path / "other.wav", blocks_that_fail(error), 16_000)
    assert [path.name for path in tmp_path.iterdir()] == ["out.part.wav"]


def test_nothing_finished_leaves_nothing(tmp_path: Path) -> None:

    def blocks() -> Iterator[np.ndarray]:
        raise RuntimeError("no sound at all")
        yield

    with pytest.raises(RuntimeError, match="no sound"):
        audio.write_blocks(tmp_path / "out.wav", blocks(), 16_000, keep_part=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_when_its_successor_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    audio.write(path, np.full(800, 0.1, np.float32), 16_000)
    before = path.read_bytes()
    with pytest.raises(AudioFileError, match=r"out\.wav"):
        audio.write_blocks(path, blocks_that_fail(OSError(28, "No space left")), 16_000, keep_part=True)
    assert path.read_bytes() == before


def test_all_is_well_and_no_part_is_left(tmp_path: Path) -> None:
    audio.write_blocks(
        tmp_path / "out.wav", [np.zeros(0, np.float32), np.zeros(1600, np.float32)], 16_000, keep_part=True
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]
