"""Containers and codecs beyond libsndfile: whole, late, with gaps, cut off, encrypted, or no sound at all."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from containers import encode, pictures, remux

from audio_llm import audio
from audio_llm.audio_containers import PIECE, _float_samples
from audio_llm.errors import AudioFileError

RATE = audio.SAMPLE_RATE
SAMPLE = Path(__file__).parents[1] / "samples" / "speech" / "librispeech-7021-85628-0022.flac"
KINDS = {  # suffix, encoder -> the rate that it takes
    (".m4a", "aac"): 16_000,
    (".mp4", "aac"): 44_100,
    (".mov", "pcm_s24le"): 48_000,
    (".m4a", "alac"): 22_050,
    (".3gp", "libopencore_amrnb"): 8_000,
    (".webm", "libopus"): 48_000,
    (".mkv", "aac"): 32_000,
    (".mka", "flac"): 16_000,
    (".aac", "aac"): 16_000,
    (".amr", "libopencore_amrnb"): 8_000,
    (".wma", "wmav2"): 44_100,
    (".ac3", "ac3"): 48_000,
    (".wv", "wavpack"): 16_000,
    (".oga", "flac"): 16_000,
}
WITHOUT_DELAY = {(".aac", "aac"), (".wma", "wmav2"), (".ac3", "ac3"), (".amr", "libopencore_amrnb")}
WITHOUT_DELAY |= {(".3gp", "libopencore_amrnb")}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Return 3 s of a recording: (48000,) float32 at 16 kHz."""
    return audio.read(SAMPLE, end_s=3.0)


def read_all(path: Path, **options: object) -> tuple[np.ndarray, tuple[str, ...]]:
    with audio.BlockReader(path, **options) as reader:  # type: ignore[arg-type]
        blocks = list(reader)
        return np.concatenate([*blocks, np.zeros(0, np.float32)]), reader.warnings


def lag_s(sound: np.ndarray, reference: np.ndarray) -> float:
    """Return by how many seconds a sound is later than its reference."""
    size = 1 << (len(sound) + len(reference)).bit_length()
    product = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference, size)))
    lag = int(np.argmax(product))
    return (lag - size if lag > size // 2 else lag) / RATE


@pytest.mark.parametrize(("suffix", "codec"), KINDS)
def test_what_players_play_is_read_on_their_time_line(
    tmp_path: Path, speech: np.ndarray, suffix: str, codec: str
) -> None:
    rate = KINDS[suffix, codec]
    path = encode(tmp_path / f"a{suffix}", audio.resample(speech, RATE, rate), rate, codec)
    sound, warnings = read_all(path)
    assert warnings == ()
    assert sound.dtype == np.float32
    exact = (suffix, codec) not in WITHOUT_DELAY  # the others do not say how much the encoder put in front
    assert lag_s(sound, speech) == pytest.approx(0.0, abs=0.002 if exact else 0.07)
    assert len(sound) / RATE == pytest.approx(3.0, abs=0.05 if exact else 0.15)
    shifted = np.roll(sound, -round(lag_s(sound, speech) * RATE))[: len(speech)]
    narrow = "amr" in codec
    assert np.corrcoef(shifted, speech[: len(shifted)])[0, 1] > (0.4 if narrow else 0.95)
    assert audio.probe(path).sample_rate == rate


@pytest.mark.parametrize("suffix", [".m4a", ".mov"])
def test_length_of_mp4_is_exact(tmp_path: Path, speech: np.ndarray, suffix: str) -> None:
    path = encode(tmp_path / f"a{suffix}", speech)
    assert audio.probe(path).duration_s == pytest.approx(3.0, abs=0.001)
    assert audio.probe(path).format == "MP4 AAC"
    assert len(audio.read(path)) == len(speech)


@pytest.mark.parametrize("block_s", [0.01, 0.37, 30.0])
def test_blocks_make_up_the_whole(tmp_path: Path, speech: np.ndarray, block_s: float) -> None:
    path = encode(tmp_path / "a.m4a", audio.resample(speech, RATE, 44_100), 44_100)
    with audio.BlockReader(path, block_s=block_s) as reader:
        blocks = list(reader)
    assert {len(block) for block in blocks[:-1]} <= {round(block_s * RATE)}
    np.testing.assert_array_equal(np.concatenate(blocks), audio.read(path))


def test_stereo_keeps_its_channels(tmp_path: Path, speech: np.ndarray) -> None:
    for name, codec in (("a.m4a", "aac"), ("a.mov", "pcm_s16le"), ("a.mka", "flac")):  # planar, packed, packed
        path = encode(tmp_path / name, np.stack([speech, np.zeros_like(speech)], axis=1), codec=codec)
        both = audio.read(path, channel="each")
        assert both.shape == (len(speech), 2)
        assert np.corrcoef(both[:, 0], speech)[0, 1] > 0.95
        assert np.abs(both[:, 1]).max() < 0.02
        np.testing.assert_allclose(audio.read(path, channel="left"), both[:, 0], atol=1e-6)


def test_every_sample_format_is_scaled_to_one() -> None:
    import av

    for format, kind in (("u8", "u1"), ("s16", "i2"), ("s32", "i4"), ("flt", "f4"), ("dbl", "f8")):
        for planar in (False, True):
            left = np.array([0.0, 0.5, -1.0])
            right = np.array([0.25, -0.5, 0.75])
            values = np.stack([left, right], axis=1)
            if kind[0] == "u":
                values = values * 128 + 128
            elif kind[0] == "i":
                values = values * 2.0 ** (8 * int(kind[1]) - 1)
            data = values.astype(kind)
            array = np.ascontiguousarray(data.T) if planar else data.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(array, format + "p" * planar, "stereo")
            np.testing.assert_allclose(_float_samples(frame), np.stack([left, right], axis=1), atol=1e-6)


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.mov"])
def test_sound_that_begins_after_the_pictures_keeps_its_time(tmp_path: Path, speech: np.ndarray, name: str) -> None:
    sound, warnings = read_all(encode(tmp_path / name, speech, start_s=1.5, video_s=5.0))
    assert warnings == ()
    assert lag_s(sound, speech) == pytest.approx(1.5, abs=0.002)


def test_sound_that_begins_late_without_pictures_keeps_its_time(tmp_path: Path, speech: np.ndarray) -> None:
    for name in ("late.m4a", "late.mka"):
        assert lag_s(read_all(encode(tmp_path / name, speech, start_s=0.75))[0], speech) == pytest.approx(
            0.75, abs=0.002
        )


def test_clock_of_a_live_stream_is_set_to_zero(tmp_path: Path, speech: np.ndarray) -> None:
    sound, _ = read_all(encode(tmp_path / "a.mka", speech, start_s=5_000.0))
    assert lag_s(sound, speech) == pytest.approx(0.0, abs=0.07)
    assert len(sound) / RATE < 3.2


@pytest.mark.parametrize("name", ["gap.mka", "gap.m4a"])
def test_a_gap_is_silence_and_times_after_it_are_right(tmp_path: Path, speech: np.ndarray, name: str) -> None:
    whole = encode(tmp_path / f"whole{Path(name).suffix}", speech)
    path = remux(whole, tmp_path / name, [(-1, 1.0), (2.0, 9.0)])
    sound, warnings = read_all(path)
    assert lag_s(sound[int(2.2 * RATE) :], speech[int(2.2 * RATE) :]) == pytest.approx(0.0, abs=0.002)
    assert np.abs(sound[int(1.2 * RATE) : int(1.9 * RATE)]).max() < 0.01
    if name == "gap.mka":  # in MP4 the gap is a long packet
        (warning,) = warnings
        assert float(warning.split()[2]) == pytest.approx(1.0, abs=0.1)


def test_cut_off_file_gives_what_is_there_and_the_seconds_lost(tmp_path: Path, speech: np.ndarray) -> None:
    fast = {"movflags": "faststart"}
    for name, codec, options in (("a.m4a", "aac", fast), ("a.mkv", "aac", {}), ("a.webm", "libopus", {})):
        rate = 48_000 if codec == "libopus" else RATE
        path = encode(tmp_path / name, audio.resample(speech, RATE, rate), rate, codec, options=options)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
        sound, warnings = read_all(path)
        (warning,) = warnings
        got_s = len(sound) / RATE
        assert 1.0 < got_s < 2.5
        assert float(warning.split(" s lost")[0].split()[-1]) + got_s == pytest.approx(3.0, abs=0.08)
        assert lag_s(sound, speech) == pytest.approx(0.0, abs=0.002)


def test_damaged_part_is_reported_and_does_not_shift_the_rest(tmp_path: Path, speech: np.ndarray) -> None:
    path = encode(tmp_path / "a.m4a", speech)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(data)
    sound, warnings = read_all(path)
    assert "the file is damaged" in warnings[0]
    assert lag_s(sound[2 * RATE :], speech[2 * RATE :]) == pytest.approx(0.0, abs=0.002)
    assert len(sound) == len(speech)


def test_the_first_of_several_tracks_is_read_with_a_warning(tmp_path: Path, speech: np.ndarray) -> None:
    sound, warnings = read_all(encode(tmp_path / "two.mka", speech, tracks=2))
    assert len(sound) / RATE == pytest.approx(3.0, abs=0.1)
    assert warnings[0].startswith("it has 2 audio tracks, number 1 is read")


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def common_encryption(path: Path) -> Path:
    """Mark the track of an MP4 as a protected one: its entry is `enca`, and says what it was."""
    inner = struct.pack(">I4s4s", 12, b"frma", b"mp4a") + struct.pack(">I4sI4sI", 20, b"schm", 0, b"cenc", 0x10000)
    info = struct.pack(">I4s", 8 + len(inner), b"sinf") + inner
    data = bytearray(path.read_bytes())
    entry = data.index(b"mp4a", data.index(b"stsd")) - 4
    (size,) = struct.unpack(">I", data[entry : entry + 4])
    data[entry + size : entry + size] = info
    data[entry : entry + 8] = struct.pack(">I4s", size + len(info), b"enca")
    for kind in (b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        place = data.rindex(kind, 0, entry) - 4
        data[place : place + 4] = struct.pack(">I", struct.unpack(">I", data[place : place + 4])[0] + len(info))
    path.write_bytes(data)
    return path


def test_what_holds_no_sound_to_read_is_one_line_with_file_and_remedy(tmp_path: Path, speech: np.ndarray) -> None:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200)
    broken_off = encode(tmp_path / "broken.mp4", speech)
    broken_off.write_bytes(broken_off.read_bytes()[: int(0.6 * broken_off.stat().st_size)])
    rubbish = encode(tmp_path / "rubbish.m4a", speech)
    data = rubbish.read_bytes()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    rubbish.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])
    (tmp_path / "image.m4a").write_bytes(png)
    (tmp_path / "letter.mp4").write_text("not a sound\n" * 50)
    (tmp_path / "list.m4a").write_text("#EXTM3U\n#EXTINF:3,\na.wav\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.wav\n")
    for path, message in (
        (pictures(tmp_path / "silent.mp4", 1.0), "holds pictures but no sound"),
        (patched(encode(tmp_path / "shop.m4a", speech), b"mp4a", b"drms"), "encrypted (DRM)"),
        (common_encryption(encode(tmp_path / "cenc.m4a", speech)), "encrypted (DRM)"),
        (encode(tmp_path / "nothing.m4a", speech[:0]), "sound"),
        (broken_off, "without its index (moov)"),
        (rubbish, "can be decoded"),
        (tmp_path / "image.m4a", "cannot be read as sound"),
        (tmp_path / "letter.mp4", "cannot be read as sound"),
        (tmp_path / "list.m4a", "cannot be read as sound"),
        (tmp_path / "list.mp4", "cannot be read as sound"),
    ):
        with pytest.raises(AudioFileError) as caught:
            audio.read(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.path == path
        assert caught.value.remedy


def test_file_of_no_bytes_is_empty_sound_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(b"")
    sound, warnings = read_all(tmp_path / "a.m4a")
    assert (len(sound), warnings) == (0, ("the file is empty (0 bytes)",))


def test_standard_input_may_be_a_container(tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.m4a", speech)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    np.testing.assert_array_equal(audio.read("-"), audio.read(path))


def test_the_content_counts_not_the_name(tmp_path: Path, speech: np.ndarray) -> None:
    path = encode(tmp_path / "a.m4a", speech)
    for name in ("a.wav", "odd:name.mp3", "http:", "näme"):
        (tmp_path / name).write_bytes(path.read_bytes())
        assert len(audio.read(tmp_path / name)) == len(speech)


def test_mp3_with_junk_in_front_is_read(tmp_path: Path, speech: np.ndarray) -> None:
    soundfile.write(tmp_path / "a.mp3", speech, RATE)
    (tmp_path / "a.mp3").write_bytes(bytes(2_000) + (tmp_path / "a.mp3").read_bytes())
    sound, _ = read_all(tmp_path / "a.mp3")
    assert len(sound) / RATE == pytest.approx(3.0, abs=0.15)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    for seconds in (20, 80):
        hiss = 0.1 * np.random.default_rng(0).standard_normal(seconds * RATE).astype(np.float32)
        path = encode(tmp_path / f"{seconds}.mka", hiss, codec="flac")
        del hiss
        tracemalloc.start()
        with audio.BlockReader(path, block_s=2) as reader:
            assert sum(len(block) for block in reader) == pytest.approx(seconds * RATE, abs=PIECE)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.1 < 5e6


def test_the_decoder_prints_nothing(tmp_path: Path, speech: np.ndarray) -> None:
    path = encode(tmp_path / "a.m4a", speech, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    code = f"from audio_llm import audio\nassert len(audio.read({str(path)!r})) > 16000"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(audio.__file__).parents[1]
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "mov" not in done.stderr.replace(str(path), "")
