"""`audio-llm transcribe`: what it prints, what it writes, how it ends."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_llm import audio, cli, hub
from audio_llm.asr.engines import ENGINES
from audio_llm.asr.vad import VadOptions
from audio_llm.asr.whisper import WhisperOptions
from audio_llm.asr.whisper_decode import DecodeOptions
from audio_llm.cli import transcribe as command
from audio_llm.cli.console import mark_changes
from audio_llm.cli.options import clock
from audio_llm.cli.recognition import whisper_options
from audio_llm.pipeline import transcribe

Talk = Callable[..., Path]


def test_text_of_one_file_goes_to_stdout(fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(talk())]) == 0
    assert capsys.readouterr().out == "the cat sad on the mat\n"
    assert fakes.corrector_asked == []


def test_several_files_are_named(fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = talk("a.wav"), talk("b.flac")
    assert cli.main(["transcribe", str(first), str(second)]) == 0
    text = "  the cat sad on the mat"
    assert capsys.readouterr().out.splitlines() == [str(first), text, str(second), text]


def test_correction_shows_both_texts_with_the_change_marked(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    path = talk()
    assert cli.main(["transcribe", str(path), "--correct", "dlm"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(path),
        "  recognized: the cat sad on the mat",
        "  corrected:  the cat [sad -> sat] on the mat",
    ]


@pytest.mark.parametrize(
    ("before", "after", "plain"),
    [
        ("a b c", "a b c", "a b c"),
        ("a b c", "a x y c", "a [b -> x y] c"),
        ("a c", "a b c", "a [-> b] c"),
        ("a b c", "a c", "a [b ->] c"),
        ("", "a", "[-> a]"),
        ("a", "", "[a ->]"),
        ("", "", ""),
    ],
)
def test_marks(before: str, after: str, plain: str) -> None:
    assert mark_changes(before, after, colors=False) == plain
    colored = mark_changes(before, after, colors=True)
    assert ("\x1b[" in colored) == (before != after)
    assert "->" not in colored


def test_explicit_text_format_is_the_transcript_alone(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", str(talk()), "--correct", "dlm", "-f", "txt"]) == 0
    assert capsys.readouterr().out.strip() == "the cat sat on the mat"


def test_output_folder_mirrors_the_tree(fakes: Any, talk: Talk, tmp_path: Path) -> None:
    talk("in/a.wav")
    talk("in/sub/b.flac")
    out = tmp_path / "out"
    command = ["transcribe", str(tmp_path / "in"), "-o", str(out), "-f", "txt,srt,vtt,tsv,json,nbest", "-q"]
    assert cli.main([*command, "--correct", "dlm"]) == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    kinds = ("txt", "srt", "vtt", "tsv", "json", "nbest")
    assert {f"a.{kind}" for kind in kinds} | {f"sub/b.{kind}" for kind in kinds} <= names
    assert (out / "a.txt").read_text().strip() == "the cat sat on the mat"
    assert json.loads((out / "sub/b.json").read_text())["text"] == "the cat sat on the mat"


def test_finished_batch_is_not_done_again(
    fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["transcribe", str(talk()), "-o", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "1 done" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "1 done by an earlier run" in capsys.readouterr().err
    assert len(fakes.recognizer_asked) == 1
    assert cli.main([*command, "--overwrite"]) == 0
    assert cli.main([*command, "--correct", "dlm"]) == 0
    assert len(fakes.recognizer_asked) == 3
    assert (tmp_path / "out/talk.txt").read_text().strip() == "the cat sat on the mat"


def test_the_journal_hashes_settings_under_the_keys_of_earlier_versions(fakes: Any) -> None:
    arguments = cli.build_parser().parse_args(["transcribe", "x.wav"])
    recognition, _ = command._settings(arguments, whisper_options(arguments), [])["recognition"]
    assert recognition["decode"] == {"beam_size": DecodeOptions().beam_size, "guards": True}


def test_options_reach_the_engines(fakes: Any, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(hub, "_offline", False)
    command = ["transcribe", str(talk()), "--recognizer", "whisper", "--model", "some/model", "--device", "cpu"]
    corrector = ["--correct", "dlm", "--correct-model", "mine", "--decode", "dlm-sum"]
    assert cli.main([*command, *corrector, "--offline", "--compute", "float32", "--beam", "3"]) == 0
    ((*named, options, compute),) = fakes.recognizer_asked
    assert named == ["whisper", "some/model", "cpu", True]
    assert (options, compute) == (WhisperOptions(decode=DecodeOptions(beam_size=3)), "float32")
    assert fakes.corrector_asked == [{"name": "dlm", "model": "mine", "decode": "dlm-sum", "device": "cpu"}]
    assert hub.is_offline()


def test_recognition_options_reach_the_recognizer(fakes: Any, talk: Talk) -> None:
    command = ["transcribe", str(talk()), "--recognizer", "whisper", "-f", "json"]
    vad = ["--vad-threshold", "0.2", "--vad-min-silence", "0.8", "--vad-pad", "0.2"]
    texts = ["--language", "de", "--task", "translate", "--prompt", "Glossary", "--batch-size", "7"]
    assert cli.main([*command, *vad, *texts]) == 0
    assert cli.main([*command, "--no-vad", "--multilingual"]) == 0
    assert [asked[4] for asked in fakes.recognizer_asked] == [
        WhisperOptions(
            language="de",
            task="translate",
            prompt="Glossary",
            batch_size=7,
            vad_options=VadOptions(threshold=0.2, neg_threshold=0.7 * 0.2, min_silence_s=0.8, pad_s=0.2),
        ),
        WhisperOptions(multilingual=True, vad=False),
    ]


def test_asr_is_another_name_of_the_option_recognizer(fakes: Any, talk: Talk) -> None:
    for option in ("--asr", "--recognizer"):
        assert cli.main(["transcribe", str(talk()), option, "ctc"]) == 0
    assert [asked[0] for asked in fakes.recognizer_asked] == ["ctc", "ctc"]


def test_one_hypothesis_is_the_default_and_five_where_lists_are_written(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, count in (([], 1), (["--correct", "dlm"], 2), (["--nbest", "1", "--correct", "dlm"], 1)):
        assert cli.main(["transcribe", str(talk()), "-f", "json", *options]) == 0
        (segment,) = json.loads(capsys.readouterr().out)["segments"]
        assert len(segment["nbest"]["hypotheses"]) == count  # the fake knows two
    assert cli.main(["transcribe", str(talk()), "-f", "nbest"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hypotheses"]) == 2


def test_nbest_option_limits_the_lists(fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(talk()), "-f", "nbest", "--nbest", "1"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [h["text"] for h in row["hypotheses"]] == ["the cat sad on the mat"]


def test_words_are_preferred_protected_and_reported(
    fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# names\nsad\n\n  xylo   phone \nsad\n")
    assert cli.main(["transcribe", str(talk()), "--correct", "dlm", "-f", "txt", "--words", str(words)]) == 0
    captured = capsys.readouterr()
    assert fakes.preferred == ["sad", "xylo phone"]
    assert captured.out.strip() == "the cat sad on the mat"
    assert "sphinx cannot prefer: xylo phone" in captured.err


def test_threads_take_effect(fakes: Any, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "7")
    try:
        assert cli.main(["transcribe", str(talk()), "--threads", "1"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "words",
    [
        ["--nbest", "0"],
        ["--nbest", "many"],
        ["--threads", "0"],
        ["-f", "docx"],
        ["-f", "txt,srt"],
        ["--recognizer", "sfinx"],
        ["--language", "de", "--vad-threshold", "2"],
        ["--batch-size", "0"],
        ["--compute", "int3"],
        ["--device", "tpu"],
        ["--decode", "dsr"],
        ["--correct-model", "x"],
        ["--words", "no-such-file.txt"],
        ["-q", "-v"],
        ["--frobnicate"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main(["transcribe", str(talk()), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("audio-llm: error: ")
    assert captured.err.count("\n") == 1


def test_cuda_where_there_is_none_is_a_usage_error(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["transcribe", str(talk()), "--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err


def test_subtitles_of_several_files_need_a_folder(fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(talk("a.wav")), str(talk("b.wav"))]
    assert cli.main(["transcribe", *files, "-f", "srt"]) == 2
    assert "give -o DIR" in capsys.readouterr().err
    assert cli.main(["transcribe", files[0], "-f", "srt"]) == 0
    assert " --> " in capsys.readouterr().out


def test_missing_model_is_status_3(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(talk()), "--correct", "dlm", "--correct-model", "no-such"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("audio-llm: error: no model is named 'no-such'")
    assert error.count("\n") == 1


def test_folder_without_sound_is_status_4(fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no sound")
    assert cli.main(["transcribe", str(tmp_path)]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_interrupt_is_status_130(
    fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(talk("a.wav")), str(talk("b.wav"))]
    original = transcribe.Transcriber.begin

    def stop_at_b(self: Any, source: Any, *args: Any, **options: Any) -> Any:
        if Path(source).name == "b.wav":
            raise KeyboardInterrupt
        return original(self, source, *args, **options)

    monkeypatch.setattr(transcribe.Transcriber, "begin", stop_at_b)
    assert cli.main(["transcribe", *files, "-o", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out/a.txt").is_file()
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()


def test_an_interrupted_recording_is_resumed(
    fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = audio.read(talk())
    audio.write(tmp_path / "four.wav", np.concatenate([one] * 4), 16_000)
    command = ["transcribe", str(tmp_path / "four.wav"), "-o", str(tmp_path / "out")]
    assert cli.main(command) == 0
    expected = (tmp_path / "out/four.txt").read_text()
    counts, original = itertools.count(), fakes.recognize

    def stop_at_the_fourth(*args: Any) -> Any:
        if next(counts) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(fakes, "recognize", stop_at_the_fourth)
    assert cli.main([*command, "--overwrite"]) == 130
    capsys.readouterr()
    assert cli.main(command) == 0
    assert next(counts) == 6  # the third and the fourth stretch came again
    assert "warning" in capsys.readouterr().err
    assert (tmp_path / "out/four.txt").read_text() == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".audio-llm-journal.jsonl", "four.txt"]


def test_the_text_of_one_file_is_printed_as_it_comes(
    fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio.write(tmp_path / "two.wav", np.concatenate([audio.read(talk())] * 2), 16_000)
    original = fakes.recognize
    printed: list[str] = []

    def recognize(*args: Any) -> Any:
        printed.append(capsys.readouterr().out)
        return original(*args)

    monkeypatch.setattr(fakes, "recognize", recognize)
    assert cli.main(["transcribe", str(tmp_path / "two.wav")]) == 0
    assert printed == ["", "the cat sad on the mat"]
    assert capsys.readouterr().out == " the cat sad on the mat\n"


def test_unexpected_exception_is_that_files_failure(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(fakes, "recognize", explode)
    path = talk()
    assert cli.main(["transcribe", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"audio-llm: error: {path}: RuntimeError: boom" in error
    assert "Traceback" not in error
    assert cli.main(["transcribe", str(path), "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_quiet_shows_errors_only(fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(talk()), "-o", str(tmp_path / "out"), "-q"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_real_time_factor_is_shown(fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(talk()), "-o", str(tmp_path / "out")]) == 0
    line, summary = capsys.readouterr().err.splitlines()
    assert line.startswith("[1/1] ")
    assert "4.0 s of sound in" in line
    assert "real-time factor" in line
    assert summary.startswith("1 done; 4.0 s of sound in")


def test_terminal_gets_a_bar(fakes: Any, talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert cli.main(["transcribe", str(talk()), "-o", str(tmp_path / "out")]) == 0
    assert "s of sound [" in screen.getvalue()
    assert "real-time factor" in screen.getvalue()


def test_every_recognizer_can_be_chosen(fakes: Any, talk: Talk) -> None:
    path = str(talk())
    for name in ENGINES:
        assert cli.main(["transcribe", path, "--recognizer", name]) == 0
    assert [asked[0] for asked in fakes.recognizer_asked] == list(ENGINES)


def test_without_an_installed_whisper_pocketsphinx_recognizes_and_says_so_once(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", str(talk())]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "pocketsphinx recognizes" in line]
    assert cli.main(["transcribe", str(talk()), "--language", "en", "-f", "json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["about"]["recognizer"].startswith("pocketsphinx")
    (warning,) = [line for line in captured.err.splitlines() if "pocketsphinx recognizes" in line]
    assert "`audio-llm models get whisper-base` downloads one" in warning


def test_an_option_that_pocketsphinx_lacks_is_an_error_where_no_whisper_is_installed(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", str(talk()), "--language", "de"]) == 3
    assert "audio-llm models get whisper-base" in capsys.readouterr().err
    assert cli.main(["transcribe", str(talk()), "--recognizer", "sphinx", "--language", "de"]) == 2
    assert "the recognizer sphinx has no option language" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("01:30", 90), ("1:02:03.25", 3723.25), ("100:00", 6000)]
)
def test_times_are_seconds_or_a_clock(text: str, seconds: float) -> None:
    assert clock(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:60", "1:2:3:4", "1.5:00", "abc", "nan", "inf", "1e3", ":30"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give seconds or HH:MM:SS"):
        clock(text)


def test_each_channel_is_labeled(fakes: Any, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = audio.read(talk())
    audio.write(tmp_path / "eight.wav", np.stack([one] + [0 * one] * 6 + [np.roll(one, 800)], axis=1), 16_000)
    assert cli.main(["transcribe", str(tmp_path / "eight.wav"), "--channel", "each"]) == 0
    text = "the cat sad on the mat"
    assert capsys.readouterr().out == f"CHANNEL 1: {text}\nCHANNEL 8: {text}\n"
    assert cli.main(["transcribe", str(tmp_path / "eight.wav"), "--channel", "2"]) == 0
    assert capsys.readouterr().out == "\n"


def test_start_and_end_and_a_changed_excerpt_is_done_again(fakes: Any, talk: Talk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["transcribe", str(talk()), "-o", str(out), "-q", "-f", "tsv"]
    assert cli.main(command) == 0
    whole = (out / "talk.tsv").read_text().splitlines()[1].split("\t")
    assert cli.main([*command, "--start", "0:00.5", "--end", "3.5"]) == 0
    part = (out / "talk.tsv").read_text().splitlines()[1].split("\t")
    assert int(part[0]) == pytest.approx(int(whole[0]), abs=60)
    assert cli.main([*command, "--start", "2", "--end", "2.5"]) == 0
    assert int((out / "talk.tsv").read_text().splitlines()[1].split("\t")[0]) >= 2000


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--channel", "3"], 1, "there is no channel 3, the file has 1 channel"),
        (["--channel", "both"], 2, "no channel is named 'both'"),
        (["--start", "1:00:00"], 1, "ends after 4.00 s"),
        (["--start", "2", "--end", "1"], 2, "is not after the start"),
        (["--channel", "left", "--extract", "look.wav"], 2, "--extract needs all channels"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_remedy(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
) -> None:
    assert cli.main(["transcribe", str(talk()), *options]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audio-llm: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].endswith(")")
