"""`correct`, `models`, `doctor`, `train`, and what all commands share."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_llm import __version__, cli, hub

LISTS = [
    {"id": "u1", "input": ["he sad it", "he said it"], "output": "he said it"},
    {"input": ["all right"], "output": "all right"},
    {"id": "u3", "hypotheses": [], "reference": "hello"},
]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LISTS))
    return path


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert cli.main(list(words)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_correct_prints_one_object_a_line_in_order(fakes: Any, lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "correct", str(lists))
    assert [row["id"] for row in rows] == ["u1", "2", "u3"]
    assert [row["text"] for row in rows] == ["he sat it", "all right", ""]
    assert [row["kept"] for row in rows] == [False, True, True]
    assert list(rows[0]) == ["id", "text", "input", "kept", "reason", "edits", "confidence"]


def test_correct_reads_hyporadise_json_and_standard_input(
    fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists.json").write_text(json.dumps(LISTS[:2]))
    assert [row["id"] for row in run_json(capsys, "correct", str(tmp_path / "lists.json"))] == ["u1", "2"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(LISTS[0]) + "\n"))
    assert [row["id"] for row in run_json(capsys, "correct", "-")] == ["u1"]


def test_correct_writes_a_file_and_does_not_replace_it(
    fakes: Any, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sub" / "out.jsonl"
    assert cli.main(["correct", str(lists), "-o", str(out), "--decode", "dlm-sum", "--model", "mine"]) == 0
    assert fakes.corrector_asked[0]["decode"] == "dlm-sum"
    assert fakes.corrector_asked[0]["model"] == "mine"
    assert len(out.read_text().splitlines()) == 3
    assert cli.main(["correct", str(lists), "-o", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["correct", str(lists), "-o", str(out), "--overwrite"]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


BAD_LINES = [
    "nonsense",
    '{"text": "no list"}',
    "[1]",
    '{"input": ["a"], "score": [1, 2]}',
    '{"hypotheses": null}',
    '{"input": ["a"], "score": [NaN]}',
    '{"input": [3]}',
]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_line_is_named_and_the_others_go_on(
    fakes: Any, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    first, *others = lists.read_text().splitlines()
    lists.write_text("\n".join([first, bad, *others]))
    out = tmp_path / "out.jsonl"
    assert cli.main(["correct", str(lists), "-o", str(out)]) == 1
    error, summary = capsys.readouterr().err.splitlines()
    assert error.startswith(f"audio-llm: error: {lists}: line 2 is not ")
    assert error.endswith(")")  # the remedy
    assert summary == "3 done, 1 failed"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["u1", "3", "u3"]
    assert [row["text"] for row in rows] == ["he sat it", "all right", ""]
    assert cli.main(["correct", str(lists), "-q"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err.splitlines() == [error]


def test_bad_lines_on_standard_input_are_named_as_they_come(
    fakes: Any, lists: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = lists.read_text()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{{\n{text}\n[\n"))
    assert cli.main(["correct", "-"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["id"] for line in captured.out.splitlines()] == ["u1", "3", "u3"]
    first, second, summary = captured.err.splitlines()
    assert first.startswith("audio-llm: error: standard input: line 1 is not valid JSON")
    assert "line 6 is not valid JSON" in second
    assert summary == "3 done, 2 failed"


def test_file_without_any_list_is_one_error_before_the_model_is_loaded(
    fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prose, cut = tmp_path / "prose.txt", tmp_path / "cut.json"
    prose.write_text("it was\na cold day\nin may\n")
    cut.write_text(json.dumps(LISTS)[:-9])
    for path, message in ((prose, "line 1 is not valid JSON"), (cut, "the file may be cut off")):
        assert cli.main(["correct", str(path), "-o", str(tmp_path / "out.jsonl")]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"audio-llm: error: {path}: ")
        assert message in error
        assert error.count("\n") == 1
    assert fakes.corrector_asked == []
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PRETRAINED", tmp_path / "none")
    tensors = {"w": torch.zeros(4)}
    return hub.save_model(
        tmp_path / "cache" / "tiny", {}, tensors, "dlm", "# Tiny\nA card.\n", {"seed": 5, "training": {"steps": 3}}
    )


def test_models_are_listed_described_and_verified(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "tiny" in out
    assert "sphinx" in out
    assert cli.main(["models", "info", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "seed: 5" in out
    assert "training" not in out
    assert out.startswith("# Tiny\nA card.\n")
    assert cli.main(["models", "info", "tiny", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["name"], described["provenance"]["training"]) == ("tiny", {"steps": 3})
    assert cli.main(["models", "verify"]) == 0
    assert "tiny: all files are as recorded" in capsys.readouterr().out


def test_verify_checks_models_after_a_broken_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = hub.save_model(tmp_path / "cache" / "broken", {}, {"w": torch.zeros(4)}, "dlm", "")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:-1] + b"\1")
    assert cli.main(["models", "verify"]) == 3
    captured = capsys.readouterr()
    assert "tiny: all files" in captured.out
    assert "another sha256" in captured.err
    assert cli.main(["models", "verify", "no-such"]) == 3


@pytest.mark.parametrize(("engine", "word_times"), [("sphinx", "yes"), ("espnet", "no")])
def test_info_prints_what_a_recognizer_supports(
    capsys: pytest.CaptureFixture[str], engine: str, word_times: str
) -> None:
    assert cli.main(["models", "info", engine]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "word times" in line]
    assert line.split()[-1] == word_times


def test_get_downloads_nothing_offline(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(hub, "_offline", False)
    assert cli.main(["models", "get", "someone/model", "--offline"]) == 2
    assert "downloads are forbidden" in capsys.readouterr().err


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"audio-llm          {__version__}" in out
    assert "flite" in out
    assert "cpu" in out


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put functions that only note how they were called in place of both trainings."""
    from audio_llm.asr import ctc_train
    from audio_llm.dlm import train
    from audio_llm.training.loop import TrainingResult

    asked: list[tuple[Any, ...]] = []

    def note(*arguments: Any, **options: Any) -> TrainingResult:
        asked.append((*arguments, options))
        return TrainingResult(10, 0.5, 5, 0.25, "time")

    monkeypatch.setattr(train, "train_dlm", note)
    monkeypatch.setattr(ctc_train, "train_ctc", note)
    return asked


def test_train_dlm(trainings: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["train", "dlm", str(tmp_path), "--max-minutes", "2.5", "--resume", "-o", str(out)]
    assert cli.main([*command, "training.max_steps=7", "pair_fraction=0.5", "--device", "cpu"]) == 0
    ((data, output, config, options),) = trainings
    assert (data, output) == (tmp_path, out)
    assert (config.training.max_steps, config.pair_fraction) == (7, 0.5)
    assert options == {"max_minutes": 2.5, "resume": True, "device": "cpu", "start_from": None}
    assert "best at step 5 with 0.2500" in capsys.readouterr().out
    assert cli.main([*command, "--overwrite"]) == 2


def test_train_ctc(trainings: list[tuple[Any, ...]], tmp_path: Path) -> None:
    for name in ("a", "b", "tune", "out", "out/last", "out/best"):
        (tmp_path / name).mkdir()
    (tmp_path / "out/notes.txt").write_text("kept")
    words = ["train", "ctc", str(tmp_path / "a"), str(tmp_path / "b"), "training.seed=3", "training.max_steps=9"]
    assert cli.main([*words, "--tuning", str(tmp_path / "tune"), "-o", str(tmp_path / "out"), "--overwrite"]) == 0
    ((packs, tuning, output, config, options),) = trainings
    assert (packs, tuning, output) == ([tmp_path / "a", tmp_path / "b"], tmp_path / "tune", tmp_path / "out")
    assert config.training.seed == options["provenance"]["seed"] == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "words",
    [
        ["no/such/folder"],
        ["training.seed=1"],
        [".", ".."],
        [".", "no_such_key=1"],
        [".", "--max-minutes", "0"],
        [".", "--config", "no/such.yaml"],
        [".", "--frobnicate"],
    ],
)
def test_wrong_training_is_one_line_and_status_2(
    trainings: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main(["train", "dlm", *words, "-o", str(tmp_path / "out")]) == 2
    assert trainings == []
    error = capsys.readouterr().err
    assert error.startswith("audio-llm: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[], ["dance"], ["models"], ["score"], ["correct"], ["train", "llm", "-o", "x"], ["train"]]
)
def test_wrong_command_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("audio-llm: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "transcribe x",
        "correct x",
        "score x",
        "train dlm d -o x",
        "models list",
        "models verify",
        "models get x",
        "doctor",
    ],
)
def test_every_command_takes_the_common_options(command: str) -> None:
    words = [*command.split(), "--device", "cpu", "--threads", "2", "--offline", "--overwrite", "-v"]
    arguments = cli.build_parser().parse_args(words)
    given = (arguments.device, arguments.threads, arguments.offline, arguments.overwrite, arguments.verbose)
    assert given == ("cpu", 2, True, True, 1)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"audio-llm {__version__}\n"
    assert cli.main(["transcribe", "--help"]) == 0
    assert "--correct" in capsys.readouterr().out


def test_module_is_the_command_and_survives_a_closed_pipe() -> None:
    command = f"{sys.executable} -m audio_llm transcribe --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(cli.__file__).parents[2])
    assert done.stdout.startswith("usage: audio-llm")
    assert "Traceback" not in done.stderr
