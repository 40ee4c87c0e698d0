"""`speak`, `train touchtts` and `train vocoder` as a user types them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_llm import audio, cli, hub
from audio_llm.codec.vocoder import Vocoder, VocoderConfig, load_vocoder
from audio_llm.lm.token_lm import TokenLmConfig
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.tokenizer.s3 import KIND, S3Tokenizer
from audio_llm.tokenizer.s3_model import S3Config, S3Network
from audio_llm.touchtts.data import TtsUtterance, pack_utterances
from audio_llm.touchtts.flow import FlowConfig, FlowNetwork
from audio_llm.touchtts.models import TouchModel, load_flow, load_speech_text_lm, save_touchtts, speech_vectors
from audio_llm.touchtts.speech import TouchTTS
from audio_llm.touchtts.speech_text_lm import SpeechTextLm, SpeechTextLmConfig

torch.set_num_threads(1)
S3 = S3Config(channels=2, width=8, before=1, after=1, heads=2, feedforward=8, kernel=3, levels=(5, 4, 4), dropout=0.0)
TEXT = "Hello there. Good day to you."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models: a speaker of two voices in `touch`, its tokenizer in `s3`."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    hub.save_model(folder / "s3", asdict(S3), S3Network(S3).state_dict(), KIND, "Tiny.\n")
    tokenizer = S3Tokenizer.load(folder / "s3")
    vectors = speech_vectors(tokenizer)
    lm = TokenLmConfig(width=8, layers=1, heads=2, feed_forward=8, dropout=0.0)
    model = TouchModel(
        SpeechTextLm(
            SpeechTextLmConfig(("reader", "robot"), rates=(1.0, 1.0), speech=80, states=8, lm=lm), vectors
        ).eval(),
        FlowNetwork(FlowConfig(80, width=8, layers=1, heads=2, feed_forward=8, steps=1), vectors).eval(),
        Vocoder(VocoderConfig(8, 1, 1, 1)).eval(),
        tokenizer,
        {"reader": torch.randn(1, 8), "robot": torch.randn(1, 8)},
    )
    save_touchtts(folder / "touch", model, "s3", "Tiny.\n")
    return folder


@pytest.fixture
def speak(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main(["speak", *words, "--model", str(home / "touch"), "--device", "cpu"])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def pcm(waveform: np.ndarray) -> bytes:
    return (waveform * 32767.0).round().astype("<i2").tobytes()


def test_a_text_becomes_a_sound_file_that_says_what_it_is(
    speak: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speak(TEXT, "-o", "deep/er/out.wav", "--seed", "3", "-q") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("deep/er/out.wav\n", "")
    wanted = TouchTTS.load(home / "touch").synthesize(TEXT, seed=3).waveform
    with soundfile.SoundFile("deep/er/out.wav") as file:
        assert file.comment == "synthetic speech by audio-llm, model touch"
        assert (file.samplerate, file.channels, file.frames) == (16_000, 1, wanted.size)
    np.testing.assert_allclose(audio.read(Path("deep/er/out.wav")), wanted, atol=1e-4)
    assert np.abs(wanted).max() > 1e-3
    assert [path.name for path in Path("deep/er").iterdir()] == ["out.wav"]


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_the_suffix_names_the_format(speak: Callable[..., int], suffix: str) -> None:
    assert speak("Hello.", "-o", f"out.{suffix}", "-q") == 0
    with soundfile.SoundFile(f"out.{suffix}") as file:
        assert "synthetic speech" in file.comment


def test_options_change_the_speech(speak: Callable[..., int]) -> None:
    for name, words in {
        "plain": (),
        "again": (),
        "seed": ("--seed", "7"),
        "voice": ("--voice", "robot"),
        "speed": ("--speed", "2"),
        "stream": ("--stream",),
    }.items():
        assert speak(TEXT, "-o", f"{name}.wav", "-q", *words) == 0
    sounds = {path.stem: path.read_bytes() for path in Path().glob("*.wav")}
    assert sounds["plain"] == sounds.pop("again")
    assert len(set(sounds.values())) == 5
    assert len(sounds["speed"]) < len(sounds["plain"])
    assert len(sounds["stream"]) == len(sounds["plain"])


def test_raw_sound_goes_to_standard_output_as_it_is_made(
    speak: Callable[..., int], home: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert speak(TEXT, "--raw", "-q") == 0
    shown = capsysbinary.readouterr()
    chunks = list(TouchTTS.load(home / "touch").stream(TEXT))
    assert shown.out == b"".join(pcm(chunk.waveform) for chunk in chunks)
    assert shown.err == b""
    assert not list(Path().iterdir())
    sizes: list[int] = []
    stream = TouchTTS.stream

    def watched(*arguments: object) -> object:
        for chunk in stream(*arguments):
            yield chunk
            sizes.append(len(capsysbinary.readouterr().out))  # before the next one is made

    monkeypatch.setattr(TouchTTS, "stream", watched)
    assert speak(TEXT, "--raw") == 0
    assert sizes == [2 * chunk.waveform.size for chunk in chunks]


def test_voices_are_listed(speak: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert speak("--list-voices") == 0
    assert capsys.readouterr().out == "reader\nrobot\n"


def test_text_comes_from_a_file_or_from_standard_input(
    speak: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("words.txt").write_text("\ufeff" + TEXT + "\r\n", encoding="utf-8")
    assert speak("words.txt", "-o", "file.wav", "-q") == 0
    standard_input(monkeypatch, TEXT.encode())
    assert speak("-", "-o", "stdin.wav", "-q") == 0
    assert speak(TEXT, "-o", "text.wav", "-q") == 0
    assert Path("file.wav").read_bytes() == Path("stdin.wav").read_bytes() == Path("text.wav").read_bytes()


def test_text_longer_than_a_file_name_is_text(speak: Callable[..., int]) -> None:
    assert speak("Hello there. " * 30, "-o", "out.wav", "-q") == 0


def test_a_file_that_is_not_utf_8_is_named(speak: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    assert speak("latin.txt", "-o", "out.wav") == 2
    assert "latin.txt: is not UTF-8 text" in error_line(capsys)
    assert not Path("out.wav").exists()


def test_standard_input_that_is_not_utf_8_is_named(
    speak: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    standard_input(monkeypatch, "café".encode("latin-1"))
    assert speak("-", "-o", "out.wav") == 2
    line = error_line(capsys)
    assert "not UTF-8" in line
    assert "unexpected" not in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no text"),
        ((TEXT,), "no output is named"),
        ((TEXT, "--raw", "-o", "out.wav"), "no output is named, or two"),
        ((TEXT, "-o", "there.wav"), "there.wav: already exists (add --overwrite"),
        ((TEXT, "-o", "out.wav", "--speed", "3"), "3 is not 0.5 to 2"),
        ((TEXT, "-o", "out.wav", "--speed", "fast"), "'fast' is not a number"),
        ((TEXT, "-o", "out.wav", "--speed", "nan"), "nan is not 0.5 to 2"),
        ((TEXT, "-o", "out.wav", "--seed", "-1"), "-1 is not 0 or more"),
        ((TEXT, "-o", "out.wav", "--voice", "nobody"), "unknown voice 'nobody' (use one of reader, robot"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    speak: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    Path("there.wav").write_bytes(b"mine")
    assert speak(*words) == 2
    assert message in error_line(capsys)
    assert Path("there.wav").read_bytes() == b"mine"
    assert [path.name for path in Path().iterdir()] == ["there.wav"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("",), 1, "nothing to pronounce"),
        (("😀",), 1, "grinning face"),
        ((TEXT, "--voice", "quiet.wav"), 1, "quiet.wav: there are 0.0 s of speech"),
        ((TEXT, "-o", "out.xyz"), 1, "out.xyz: no format for this suffix"),
        ((TEXT, "-o", "file/out.wav"), 1, "file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    speak: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, message: str
) -> None:
    audio.write("quiet.wav", np.zeros(32_000), 16_000)
    Path("file").write_text("a file, not a folder")
    more = () if "-o" in words else ("-o", "out.wav")
    assert speak(*words, *more) == status
    line = error_line(capsys)
    assert line.startswith("audio-llm: error: ")
    assert message in line
    assert "unexpected" not in line
    assert not Path("out.wav").exists()


def test_a_large_seed_is_a_seed(speak: Callable[..., int]) -> None:

    assert speak("Hello.", "-o", "out.wav", "-q", "--seed", str(1 << 60)) == 0


def test_a_model_that_is_missing_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["speak", TEXT, "-o", str(tmp_path / "out.wav"), "--model", str(tmp_path / "none")]) == 3
    assert "none" in error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_overwriting_replaces_the_file(speak: Callable[..., int]) -> None:
    Path("out.wav").write_bytes(b"mine")
    assert speak("Hello.", "-o", "out.wav", "-q", "--overwrite") == 0
    assert soundfile.info("out.wav").frames > 0


def test_a_disk_that_fills_up_leaves_what_was_finished(
    speak: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = soundfile.SoundFile.write, []

    def filling(file: soundfile.SoundFile, data: np.ndarray) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(data)
        write(file, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", filling)
    assert speak(TEXT, "-o", "out.wav", "--stream") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    kept, error = (line for line in shown.err.splitlines() if "cut off" not in line)
    assert "out.part.wav" in kept
    assert error.startswith("audio-llm: error: out.wav: cannot be written: ")
    assert "No space left on device" in error
    assert [path.name for path in Path().iterdir()] == ["out.part.wav"]
    np.testing.assert_allclose(audio.read(Path("out.part.wav")), np.concatenate(written), atol=1e-4)


def test_an_error_of_the_model_leaves_what_was_finished(
    speak: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Vocoder.step, []

    def failing(vocoder: Vocoder, mel: torch.Tensor, *rest: object) -> object:
        steps.append(1)
        return step(vocoder, mel * (float("nan") if len(steps) > 2 else 1.0), *rest)

    monkeypatch.setattr(Vocoder, "step", failing)
    assert speak(TEXT, "-o", "out.wav", "--stream", "-q") == 1
    assert "not finite" in error_line(capsys)
    assert soundfile.info("out.part.wav").frames > 0


def test_what_is_not_pronounced_is_a_warning(speak: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert speak("Hello 😀.", "-o", "out.wav") == 0
    assert "not pronounced: grinning face" in capsys.readouterr().err
    assert speak("Hello 😀.", "-o", "quiet.wav", "-q") == 0
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def packs(home: Path, speech_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `talks` and `tuning`, packed."""
    folder, pack = tmp_path_factory.mktemp("packs"), SpeechPack(speech_pack)
    sounds = [pack.pcm(number).astype(np.float32) / 32768.0 for number in range(10)]
    for name, text, own in (("talks", "a cat", sounds[::2]), ("tuning", "the dog", sounds[1:6:2])):
        rows = [TtsUtterance(f"{name}{n}", "reader", "low", text, sound) for n, sound in enumerate(own)]
        pack_utterances(rows, S3Tokenizer.load(home / "s3"), folder / name)
    return folder


LOOP = ("training.max_steps=2", "training.validate_every=1", "training.warmup_steps=1", "validation=2")
SMALL = {
    "lm": (
        "model.lm.width=8",
        "model.lm.layers=1",
        "model.lm.heads=2",
        "model.lm.feed_forward=8",
        "batch_positions=300",
    ),
    "flow": ("model.width=8", "model.layers=1", "model.heads=2", "model.feed_forward=8", "batch=2", "tokens=10"),
}


@pytest.mark.parametrize("part", ["lm", "flow"])
def test_a_part_is_trained(
    home: Path, packs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    data, out = str(packs / "talks"), tmp_path / "out"
    common = ["train", "touchtts", data, "--part", part, "--tokenizer", str(home / "s3"), "-o", str(out)]
    words = [*common, *LOOP, *SMALL[part], "--tuning", str(packs / "tuning"), "--device", "cpu"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert f"{out / 'best'}: best at step" in shown.out
    assert "2 steps" in shown.out
    about = hub.load_model(out / "best")
    assert about.kind == f"touchtts-{part}"
    assert about.config["tokenizer"]["name"] == "s3"
    assert about.provenance["data"] == ["talks"]
    load = load_speech_text_lm if part == "lm" else load_flow
    load(out / "best", S3Tokenizer.load(home / "s3"))
    assert cli.main(words) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert cli.main([*words, "training.max_steps=3", "--resume"]) == 0
    assert "3 steps" in capsys.readouterr().out
    assert cli.main([*words, "--overwrite", "-q"]) == 0
    assert "2 steps" in capsys.readouterr().out


def test_settings_may_follow_the_tuning_data(home: Path, packs: Path, tmp_path: Path) -> None:

    words = ["train", "touchtts", str(packs / "talks"), "--part", "flow", "--tokenizer", str(home / "s3")]
    words += ["-o", str(tmp_path / "out"), "--device", "cpu", "-q", "--tuning", str(packs / "tuning")]
    assert cli.main([*words, *LOOP, *SMALL["flow"]]) == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--part", "vocoder"), 2, "vocoder"),
        (("--part", "lm", "color=red"), 2, "color"),
        (("--part", "flow", "batch=0"), 2, "1 or more"),
        (("--part", "lm", "--start-from", "nothing"), 3, "nothing"),
        (("--part", "lm", "--tuning", "nowhere"), 1, "nowhere"),
    ],
)
def test_trainings_that_make_no_sense_are_refused(
    home: Path,
    packs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = () if "--tuning" in words else ("--tuning", str(packs / "tuning"))
    common = ["train", "touchtts", str(packs / "talks"), "--tokenizer", str(home / "s3"), "-o", "out", "-q"]
    assert cli.main([*common, *words, *more]) == status
    assert message in error_line(capsys)
    assert not Path("out").exists()


def test_a_vocoder_is_trained(speech_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["train", "vocoder", str(speech_pack), "--tuning", str(speech_pack), "-o", str(out), "--device", "cpu"]
    small = ["model.width=8", "model.blocks=1", "model.fine_blocks=1", "speech.seconds=0.3", "batch=2"]
    assert cli.main([*words, *LOOP, *small]) == 0
    assert f"{out / 'best'}: best at step" in capsys.readouterr().out
    assert load_vocoder(out / "best").config.width == 8
    assert hub.load_model(out / "best").kind == "vocoder"


def test_a_vocoder_is_trained_with_a_perceptual_loss(home: Path, speech_pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "train",
        "vocoder",
        str(speech_pack),
        "--tuning",
        str(speech_pack),
        "-o",
        str(out),
        "--device",
        "cpu",
        "-q",
    ]
    small = ["model.width=8", "model.blocks=1", "model.fine_blocks=1", "speech.seconds=0.3", "batch=2"]
    assert cli.main([*words, *LOOP, *small, "--listener", str(home / "s3")]) == 0
    assert hub.load_model(out / "best").provenance["listener"]["name"] == "s3"
