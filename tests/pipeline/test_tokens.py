"""Recordings of any length to tokens and back: as many as the length says, and none that hangs on where it was cut."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audio_llm import audio
from audio_llm.asr.conformer import output_lengths
from audio_llm.codec.codec import LEVEL_DB, Codes, SpeechCodec
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.errors import AudioFileError, DataError, ModelFormatError
from audio_llm.features import frame_lengths
from audio_llm.pipeline import tokens
from audio_llm.pipeline.tokens import TokenFile, detokenize, read_tokens, tokenize, write_sound
from audio_llm.quantizers import fsq
from audio_llm.simulation.mono import active_power
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.tokenizer.s3_model import S3Config, S3Network

torch.set_num_threads(1)
RATE = 16_000
CODEC = CodecConfig(width=8, encoder_blocks=1, decoder_blocks=1, expansion=2, levels=(8, 5, 5))
TOKENIZER = S3Config(
    channels=2, width=8, before=1, after=1, heads=2, feedforward=8, kernel=3, levels=(5, 4, 4), dropout=0.0
)


@pytest.fixture
def make_codec(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SpeechCodec]:
    """Return a function that makes a codec that has adapted to noise; its keyword is the fold."""

    def make(fold: int = 1) -> SpeechCodec:
        torch.manual_seed(0)
        network = CodecNetwork(replace(CODEC, fold=fold)).train()
        with monkeypatch.context() as patched, torch.no_grad():
            patched.setattr(fsq, "_MOMENTUM", 1.0)
            network.quantize(torch.from_numpy(hiss(8000))[None], torch.tensor([8000]))
        return SpeechCodec(network)

    return make


@pytest.fixture
def codec(make_codec: Callable[..., SpeechCodec]) -> SpeechCodec:
    return make_codec()


@pytest.fixture
def tokenizer() -> S3Tokenizer:
    torch.manual_seed(0)
    return S3Tokenizer(S3Network(TOKENIZER), "5" * 64)


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "WINDOW_S", 1.2)
    monkeypatch.setattr(tokens, "MARGIN_S", 0.4)


def hiss(samples: int, seed: int = 0) -> np.ndarray:
    """Return noise that comes and goes: (T,) float32."""
    swell = 1.1 + np.sin(2 * np.pi * 1.7 * np.arange(samples) / RATE)
    return (0.03 * swell * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def record(path: Path, samples: int, rate: int = RATE) -> Path:
    audio.write(path, hiss(samples), rate)
    return path


def single_pass(path: Path, codec: SpeechCodec) -> list[int]:
    sound = audio.read(path)
    gain = np.float32(10 ** (LEVEL_DB / 20) / active_power(sound) ** 0.5)
    return codec.encode(torch.from_numpy(sound * gain)[None], torch.tensor([len(sound)])).codes[0].tolist()


@pytest.mark.parametrize("fold", [1, 2])
def test_windows_of_half_a_minute_leave_no_trace(
    make_codec: Callable[..., SpeechCodec], tmp_path: Path, fold: int
) -> None:
    codec = make_codec(fold)
    path = record(tmp_path / "long.wav", 36 * RATE + 77)
    row = tokenize(path, codec, "tiny")
    assert len(row.tokens) == 36 * 100 // fold + 1
    assert list(row.tokens) == single_pass(path, codec)
    assert row.samples == 36 * RATE + 77


@pytest.mark.parametrize("seconds", [0.3, 1.2, 1.6, 1.99, 2.0, 2.01, 3.2, 4.37, 6.8])
@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.usefixtures("short_windows")
def test_codes_do_not_hang_on_where_windows_end(
    make_codec: Callable[..., SpeechCodec], tmp_path: Path, seconds: float, fold: int
) -> None:
    codec = make_codec(fold)
    path = record(tmp_path / "sound.wav", round(seconds * RATE))
    row = tokenize(path, codec, "tiny")
    assert list(row.tokens) == single_pass(path, codec)
    assert len(set(row.tokens)) > 8
    assert row.samples == round(seconds * RATE)


@pytest.mark.parametrize("samples", [399, 400, 1039, 1040, 25_600, 31_999, 32_000, 32_640, 70_001, 100_000])
@pytest.mark.usefixtures("short_windows")
def test_semantic_tokens_are_as_many_as_the_length_says(tokenizer: S3Tokenizer, tmp_path: Path, samples: int) -> None:
    row = tokenize(record(tmp_path / "sound.wav", samples), tokenizer, "tiny")
    assert len(row.tokens) == int(output_lengths(frame_lengths(torch.tensor(samples))))
    assert all(0 <= token < tokenizer.size for token in row.tokens)
    assert (row.kind, row.gain_db, row.frame_rate, row.samples) == ("semantic", 0.0, 25.0, samples)


def test_a_long_recording_has_as_many_semantic_tokens_as_its_length_says(
    tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    row = tokenize(record(tmp_path / "long.wav", 65 * RATE + 5000), tokenizer, "tiny")
    assert len(row.tokens) == int(output_lengths(frame_lengths(torch.tensor(65 * RATE + 5000))))


@pytest.mark.usefixtures("short_windows")
def test_progress_counts_all_of_the_sound(codec: SpeechCodec, tmp_path: Path) -> None:
    seconds: list[float] = []
    tokenize(record(tmp_path / "sound.wav", 5 * RATE), codec, "tiny", seconds.append)
    assert len(seconds) > 2
    assert sum(seconds) == pytest.approx(5.0, abs=0.02)


def test_codes_do_not_hang_on_level_rate_or_channels(codec: SpeechCodec, tmp_path: Path) -> None:
    sound = hiss(2 * RATE)
    audio.write(tmp_path / "a.wav", sound, RATE)
    audio.write(tmp_path / "quiet.wav", 0.25 * sound, RATE)
    audio.write(tmp_path / "stereo.wav", np.stack([sound, sound], axis=1), RATE)
    rows = {name: tokenize(tmp_path / f"{name}.wav", codec, "tiny") for name in ("a", "quiet", "stereo")}
    assert rows["stereo"].tokens == rows["a"].tokens
    assert np.mean(np.array(rows["quiet"].tokens) != rows["a"].tokens) < 0.1  # but for rounding to 16 bits
    assert rows["quiet"].gain_db == pytest.approx(rows["a"].gain_db + 12.04, abs=0.02)
    level_db = 10 * np.log10(active_power(sound)) + rows["a"].gain_db
    assert level_db == pytest.approx(LEVEL_DB, abs=0.01)
    audio.write(tmp_path / "fast.wav", audio.resample(sound, RATE, 48_000), 48_000)
    row = tokenize(tmp_path / "fast.wav", codec, "tiny")
    assert len(row.tokens) == 200
    assert row.samples == pytest.approx(2 * RATE, abs=1)


def test_silence_and_nothing_have_tokens_for_their_length(
    codec: SpeechCodec, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    audio.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    audio.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    for model, count in ((codec, 100), (tokenizer, 25)):
        row = tokenize(tmp_path / "silent.wav", model, "tiny")
        assert len(row.tokens) == count
        assert row.gain_db == 0.0
        row = tokenize(tmp_path / "empty.wav", model, "tiny")
        assert (row.tokens, row.samples) == ((), 0)
    with pytest.raises(AudioFileError, match="no such file"):
        tokenize(tmp_path / "nowhere.wav", codec, "tiny")


@pytest.mark.parametrize("which", ["codec", "tokenizer"])
def test_standard_input_is_cut_as_the_file_is(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    model = request.getfixturevalue(which)
    path = record(tmp_path / "sound.wav", RATE)
    wanted = tokenize(path, model, "tiny")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    row = tokenize("-", model, "tiny")
    assert row.audio_filepath == "-"
    assert row.samples == RATE
    assert row.tokens == wanted.tokens


def test_a_pipe_is_cut_as_the_file_is(tokenizer: S3Tokenizer, tmp_path: Path) -> None:
    path = record(tmp_path / "sound.wav", RATE)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()), daemon=True)
    writer.start()
    assert tokenize(tmp_path / "pipe", tokenizer, "tiny").tokens == tokenize(path, tokenizer, "tiny").tokens
    writer.join(5)


@pytest.mark.parametrize("seconds", [0.005, 0.3, 2.0, 4.37])
@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.usefixtures("short_windows")
def test_codes_become_sound_as_in_a_single_pass(
    make_codec: Callable[..., SpeechCodec], tmp_path: Path, seconds: float, fold: int
) -> None:
    codec = make_codec(fold)
    row = tokenize(record(tmp_path / "sound.wav", round(seconds * RATE)), codec, "tiny")
    sound = detokenize(row, codec)
    assert sound.dtype == np.float32
    assert sound.shape == (round(seconds * RATE),)
    codes, lengths = torch.tensor([row.tokens]), torch.tensor([len(row.tokens)])
    whole = codec.decode(Codes(codes, lengths), torch.tensor([row.samples]))[0].numpy()
    assert np.abs(whole).max() > 0.0
    np.testing.assert_allclose(sound * 10 ** (row.gain_db / 20), whole, atol=1e-5, rtol=1e-3)


def test_the_gain_is_taken_back(codec: SpeechCodec) -> None:
    row = TokenFile("x.wav", "acoustic", "tiny", codec.fingerprint, 100.0, 1600, 0.0, tuple(range(10)))
    loud, quiet = detokenize(row, codec), detokenize(replace(row, gain_db=20.0), codec)
    np.testing.assert_allclose(10 * quiet, loud, rtol=1e-5)


def test_sound_is_as_long_as_the_row_says(codec: SpeechCodec) -> None:
    row = TokenFile("x.wav", "acoustic", "tiny", codec.fingerprint, 100.0, 1600, 0.0, tuple(range(10)))
    assert detokenize(replace(row, samples=1441), codec).shape == (1441,)
    longer = detokenize(replace(row, samples=1700), codec)
    assert longer.shape == (1700,)
    assert not longer[1600:].any()
    assert detokenize(replace(row, samples=0, tokens=()), codec).shape == (0,)


@pytest.mark.parametrize("codes", [(0, 200), (-1, 3), (1 << 40,)])
def test_numbers_that_are_no_codes_are_refused(codec: SpeechCodec, codes: tuple[int, ...]) -> None:
    row = TokenFile("x.wav", "acoustic", "tiny", codec.fingerprint, 100.0, 320, 0.0, codes)
    with pytest.raises(DataError, match=r"x.wav.*outside 0..199"):
        detokenize(row, codec)


def test_semantic_tokens_have_no_sound(codec: SpeechCodec) -> None:
    row = TokenFile("x.wav", "semantic", "tiny", codec.fingerprint, 25.0, 640, 0.0, (1,))
    for given in (None, codec):
        with pytest.raises(DataError, match=r"x.wav.*no sound.*tokenize --codec"):
            detokenize(row, given)


def test_codes_of_another_codec_are_refused(codec: SpeechCodec) -> None:
    row = TokenFile("x.wav", "acoustic", "other", "0" * 64, 100.0, 160, 0.0, (1,))
    with pytest.raises(ModelFormatError, match=r"another codec.*'other'"):
        detokenize(row, codec)


def test_rows_come_back_from_their_lines(codec: SpeechCodec, tmp_path: Path) -> None:
    rows = [
        tokenize(record(tmp_path / "é.wav", 4000), codec, "tiny"),
        TokenFile("-", "semantic", "s", "5" * 64, 25.0, 0, 0.0, ()),
    ]
    (tmp_path / "tokens").write_text("".join(row.to_line() + "\n" for row in rows), encoding="utf-8")
    assert read_tokens(tmp_path / "tokens") == rows
    assert all("\n" not in row.to_line() for row in rows)


@pytest.mark.parametrize(
    "line",
    ["no json", "[1, 2]", "{}", '{"tokens": [1]}', '{"tokens": ["x"]}', "null", '{"tokens": 5}'],
)
def test_what_is_no_row_of_tokens_is_named(tmp_path: Path, line: str) -> None:
    good = TokenFile("x.wav", "acoustic", "tiny", "0" * 64, 100.0, 160, 0.0, (1,)).to_line()
    (tmp_path / "tokens").write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=r"tokens: line 2 is not a row of tokens"):
        read_tokens(tmp_path / "tokens")


def test_a_row_with_more_than_it_should_have_is_named(tmp_path: Path) -> None:
    row = json.loads(TokenFile("x.wav", "acoustic", "tiny", "0" * 64, 100.0, 160, 0.0, (1,)).to_line())
    (tmp_path / "tokens").write_text(json.dumps({**row, "extra": 1}))
    with pytest.raises(DataError, match="extra"):
        read_tokens(tmp_path / "tokens")
    with pytest.raises(DataError, match=r"nowhere.*cannot be read"):
        read_tokens(tmp_path / "nowhere")
    (tmp_path / "tokens").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_tokens(tmp_path / "tokens")


def test_recordings_of_one_name_get_numbers(tmp_path: Path) -> None:
    taken: set[str] = set()
    rows = [TokenFile(name, "acoustic", "t", "0", 100.0, 5, 0.0, ()) for name in ("a/x.wav", "b/x.flac", "-", "x.wav")]
    paths = [write_sound(tmp_path / "new", row, hiss(5, seed), taken) for seed, row in enumerate(rows)]
    assert [path.name for path in paths] == ["x.wav", "x-2.wav", "-.wav", "x-3.wav"]
    np.testing.assert_allclose(audio.read(paths[1]), hiss(5, 1), atol=1.0 / 32768)
