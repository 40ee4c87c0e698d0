"""`tokenize` and `detokenize` as a user types them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_llm import audio, cli, hub
from audio_llm.codec.codec import SpeechCodec
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.tokenizer.s3_model import S3Config, S3Network

torch.set_num_threads(1)
CODEC = CodecConfig(width=8, encoder_blocks=1, decoder_blocks=1, expansion=2, levels=(8, 5, 5))
TOKENIZER = S3Config(
    channels=2, width=8, before=1, after=1, heads=2, feedforward=8, kernel=3, levels=(5, 4, 4), dropout=0.0
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Write models and recordings; return their names."""
    for seed, name in enumerate(("codec", "other")):
        torch.manual_seed(seed)
        hub.save_model(tmp_path / name, asdict(CODEC), CodecNetwork(CODEC).state_dict(), "codec", "Tiny.\n")
    torch.manual_seed(0)
    network = S3Network(TOKENIZER)
    hub.save_model(tmp_path / "s3", asdict(TOKENIZER), network.state_dict(), "s3-tokenizer", "Tiny.\n")
    random = np.random.default_rng(0)
    for name, samples, rate in (("a.wav", 16_000, 16_000), ("deep/a.wav", 6_400, 16_000), ("c.flac", 9_000, 8_000)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, 0.1 * random.standard_normal(samples), rate)
    (tmp_path / "broken.wav").write_bytes(b"this is no sound, whatever its name says")
    return {name: str(tmp_path / name) for name in ("codec", "other", "s3", "in", "broken.wav", "tokens", "out")}


def tokenize(files: dict[str, str], *more: str, kind: str = "codec", inputs: tuple[str, ...] = ("in",)) -> int:
    named = [files[name] for name in inputs]
    which = ["--tokenizer", files["s3"]] if kind == "s3" else ["--codec", files["codec"]]
    return cli.main(["tokenize", *named, "-o", files["tokens"], *which, *more])


def detokenize(files: dict[str, str], *more: str) -> int:
    return cli.main(["detokenize", files["tokens"], "-o", files["out"], *more])


def rows(files: dict[str, str]) -> list[dict]:
    return [json.loads(line) for line in Path(files["tokens"]).read_text().splitlines()]


def rewrite(files: dict[str, str], number: int, **changes: object) -> None:
    """Change a row of the tokens."""
    found = rows(files)
    found[number] = {**found[number], **changes}
    Path(files["tokens"]).write_text("".join(json.dumps(row) + "\n" for row in found))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_codes_of_a_tree_are_written(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{files['tokens']}\n"
    assert "3 done" in shown.err
    found = rows(files)
    assert [Path(row["audio_filepath"]).name for row in found] == ["a.wav", "c.flac", "a.wav"]
    assert [(len(row["tokens"]), row["samples"]) for row in found] == [(100, 16_000), (113, 18_000), (40, 6_400)]
    for row in found:
        assert row["kind"] == "acoustic"
        assert row["model"] == files["codec"]
        assert row["fingerprint"] == SpeechCodec.load(files["codec"]).fingerprint
        assert row["frame_rate"] == 100.0
        assert all(0 <= token < 200 for token in row["tokens"])


def test_semantic_tokens_are_written(files: dict[str, str]) -> None:
    assert tokenize(files, kind="s3") == 0
    found = rows(files)
    assert [len(row["tokens"]) for row in found] == [25, 28, 10]
    assert {row["kind"] for row in found} == {"semantic"}
    assert {row["fingerprint"] for row in found} == {hub.fingerprint(files["s3"])}


@pytest.mark.parametrize("kind", ["codec", "s3"])
def test_a_long_file_has_as_many_tokens_as_its_length_says(files: dict[str, str], tmp_path: Path, kind: str) -> None:
    audio.write(tmp_path / "in/a.wav", 0.1 * np.random.default_rng(0).standard_normal(35 * 16_000 + 10), 16_000)
    assert tokenize(files, "-q", kind=kind) == 0
    count = len(rows(files)[0]["tokens"])
    assert count == {"codec": 3501, "s3": 875}[kind]


def test_a_failed_file_does_not_stop_the_others(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q", inputs=("broken.wav", "in")) == 1
    shown = capsys.readouterr()
    assert shown.out == f"{files['tokens']}\n"
    (line,) = shown.err.splitlines()
    assert line.startswith(f"audio-llm: error: {files['broken.wav']}: cannot be read as sound")
    assert len(rows(files)) == 3


def test_existing_tokens_are_not_overwritten(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q") == 0
    before = Path(files["tokens"]).read_bytes()
    capsys.readouterr()
    assert tokenize(files, "-q", kind="s3") == 2
    assert "--overwrite" in error_line(capsys)
    assert Path(files["tokens"]).read_bytes() == before
    assert tokenize(files, "-q", "--overwrite", kind="s3") == 0
    assert rows(files)[0]["kind"] == "semantic"


def test_a_failure_leaves_nothing_half_written(files: dict[str, str], tmp_path: Path) -> None:
    assert cli.main(["tokenize", files["in"], "-o", files["tokens"], "--codec", files["s3"], "-q"]) == 3
    assert cli.main(["tokenize", files["in"], "-o", files["tokens"], "--codec", "no-such-model", "-q"]) == 3
    assert cli.main(["tokenize", files["in"], "-o", files["tokens"], "-q"]) == 2
    both = ["--codec", files["codec"], "--tokenizer", files["s3"]]
    assert cli.main(["tokenize", files["in"], "-o", files["tokens"], *both, "-q"]) == 2
    assert not [path for path in tmp_path.iterdir() if "tokens" in path.name]


def test_codes_become_sound_files(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q") == 0
    capsys.readouterr()
    assert detokenize(files) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    out = Path(files["out"])
    assert shown.out.splitlines() == [str(out / name) for name in ("a.wav", "c.wav", "a-2.wav")]
    for name, samples in (("a.wav", 16_000), ("c.wav", 18_000), ("a-2.wav", 6_400)):
        info = soundfile.info(str(out / name))
        assert (info.frames, info.samplerate, info.channels) == (samples, 16_000, 1)
        assert audio.read(out / name).any()


def test_existing_sound_files_are_not_overwritten(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q") == 0
    assert detokenize(files, "-q") == 0
    capsys.readouterr()
    assert detokenize(files, "-q") == 2
    assert "--overwrite" in error_line(capsys)
    assert detokenize(files, "-q", "--overwrite") == 0


def test_a_codec_that_has_moved_can_be_named(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q") == 0
    Path(files["codec"]).rename(Path(files["codec"]).with_name("moved"))
    capsys.readouterr()
    assert detokenize(files, "-q", "--codec", str(Path(files["codec"]).with_name("moved"))) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert detokenize(files, "-q", "--overwrite") == 1
    assert "codec" in capsys.readouterr().err


def test_semantic_tokens_have_no_sound(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q", kind="s3") == 0
    lines = Path(files["tokens"]).read_text().splitlines()
    Path(files["tokens"]).write_text(lines[0] + "\n")
    capsys.readouterr()
    assert detokenize(files) == 1
    line = error_line(capsys)
    assert "semantic tokens" in line
    assert "audio-llm tokenize --codec" in line
    assert not Path(files["out"]).exists()


def test_codes_of_another_codec_are_refused(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(files, "-q") == 0
    rewrite(files, 1, fingerprint="0" * 64)
    capsys.readouterr()
    assert detokenize(files) == 1  # the others are written all the same
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    (line,) = shown.err.splitlines()
    assert "c.flac: another codec made these codes" in line
    assert detokenize(files, "--overwrite", "--codec", files["other"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("codes", [[0, 200], [-1]])
def test_numbers_that_are_no_codes_are_refused(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], codes: list[int]
) -> None:
    assert tokenize(files, "-q") == 0
    rewrite(files, 0, tokens=codes)
    capsys.readouterr()
    assert detokenize(files) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    (line,) = shown.err.splitlines()
    assert "outside 0..199" in line
    assert "a.wav" in line


def test_a_file_that_is_missing_or_no_tokens_is_one_line(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert detokenize(files) == 1
    line = error_line(capsys)
    assert files["tokens"] in line
    assert "cannot be read" in line
    Path(files["tokens"]).write_text("hello\n")
    assert detokenize(files) == 1
    assert "line 1 is not a row of tokens" in error_line(capsys)
    assert not Path(files["out"]).exists()


def test_input_without_sound_files_is_an_error(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    status = cli.main(["tokenize", str(tmp_path / "none"), "-o", files["tokens"], "--codec", files["codec"]])
    assert status == 4
    assert "no sound file" in error_line(capsys)
    assert not Path(files["tokens"]).exists()
