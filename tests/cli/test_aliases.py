"""Former spellings of options are accepted, mean the same, and are shown nowhere."""

from __future__ import annotations

import pytest

from audio_llm.cli import _parse
from audio_llm.cli.aliases import ALIASES, with_current_names


@pytest.mark.parametrize(
    ("former", "current"),
    [
        ("transcribe a.wav --asr base --correct dlm --correct-model m --decode dsr --hotwords w.txt",
         "transcribe a.wav --recognizer base --corrector dlm --corrector-model m --decoding dsr --words w.txt"),
        ("transcribe a.wav --correct=dlm", "transcribe a.wav --corrector=dlm"),
        ("correct a.jsonl --with ger --mode slots", "correct a.jsonl --corrector ger --decoding slots"),
        ("correct a.jsonl --decode greedy", "correct a.jsonl --decoding greedy"),
        ("extract a.wav --enroll b.wav -o c.wav", "extract a.wav --enrollment b.wav -o c.wav"),
        ("prepare a -o b --asr ctc --second-asr sphinx", "prepare a -o b --recognizer ctc --second-recognizer sphinx"),
        ("train mask p --tuning q --start-from m --listener t -o o",
         "train mask p --dev q --init-from m --perceptual-loss t -o o"),
        ("-q transcribe a.wav --asr base", "-q transcribe a.wav --recognizer base"),
    ],
)  # fmt: skip
def test_former_spellings_mean_the_same(former: str, current: str) -> None:
    assert with_current_names(former.split()) == current.split()
    if not former.startswith("-"):
        assert vars(_parse(former.split())) == vars(_parse(current.split()))


def test_values_and_other_commands_are_left_alone() -> None:
    for words in (["score", "--correct"], ["transcribe", "--", "--asr"], ["speak", "--correct me"], []):
        assert with_current_names(words) == words


@pytest.mark.parametrize("command", sorted(ALIASES))
def test_former_spellings_are_not_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, "mask"] if command == "train" else [command]
    with pytest.raises(SystemExit):
        _parse([*words, "--help"])
    shown = capsys.readouterr().out.replace("\n", " ").split()
    assert not {word.rstrip(",") for word in shown} & ALIASES[command].keys()


def test_settings_may_be_options() -> None:
    arguments = _parse(["train", "mask", "pack", "--dev", "tune", "-o", "o", "--set", "a=1", "b=2", "--set", "c=3"])
    assert arguments.set == ["a=1", "b=2", "c=3"]
