"""`audio-llm transcribe`: the layout of its subtitles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_llm import cli

Talk = Callable[..., Path]


def texts(subtitles: str) -> list[str]:
    """Return what the cues of an srt file show."""
    return ["\n".join(block.splitlines()[2:]) for block in subtitles.split("\n\n") if block]


def test_lines_words_and_widths_reach_the_files(fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["transcribe", str(talk()), "-f", "srt"]
    for options, expected in (
        ([], ["the cat sad on the mat"]),
        (["--subtitles", "words"], ["the", "cat", "sad", "on", "the", "mat"]),
        (["--line-width", "11"], ["the cat sad\non the mat"]),
        (["--line-width", "11", "--max-lines", "1"], ["the cat sad", "on the mat"]),
    ):
        assert cli.main([*command, *options]) == 0
        assert texts(capsys.readouterr().out) == expected


def test_karaoke_marks_words_in_vtt(fakes: Any, talk: Talk, tmp_path: Path) -> None:
    assert cli.main(["transcribe", str(talk()), "-o", str(tmp_path), "-f", "vtt,srt", "--subtitles", "karaoke"]) == 0
    assert (tmp_path / "talk.vtt").read_text().count("<00:00:0") == 5
    assert texts((tmp_path / "talk.srt").read_text()) == ["the cat sad on the mat"]


def test_another_width_writes_the_subtitles_again(fakes: Any, talk: Talk, tmp_path: Path) -> None:
    command = ["transcribe", str(talk()), "-o", str(tmp_path), "-f", "srt"]
    for width in (42, 11, 11):
        assert cli.main([*command, "--line-width", str(width)]) == 0
    assert len(fakes.recognizer_asked) == 2
    assert texts((tmp_path / "talk.srt").read_text()) == ["the cat sad\non the mat"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--line-width", "20"], "--line-width belongs to srt and vtt"),
        (["-f", "json", "--subtitles", "words"], "--subtitles belongs to srt and vtt"),
        (["-f", "srt", "--subtitles", "karaoke"], "karaoke belongs to vtt"),
        (["-f", "srt", "--line-width", "3"], "3 is not 10 to 500"),
        (["-f", "srt", "--max-lines", "0"], "0 is not 1 to 20"),
        (["-f", "srt", "--subtitles", "letters"], "invalid choice"),
    ],
)
def test_options_that_cannot_act_are_wrong_usage(
    fakes: Any, talk: Talk, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["transcribe", str(talk()), *options]) == 2
    assert message in capsys.readouterr().err
    assert fakes.recognizer_asked == []
