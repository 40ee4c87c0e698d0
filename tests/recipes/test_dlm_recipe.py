"""The Denoising LM's recipe from end to end on a data folder of a few sentences."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def stage(name: str, data: Path, output: Path, *options: str) -> str:
    """Run one stage as a user does; return what it printed."""
    command = [sys.executable, PROJECT / "recipes" / "dlm" / "run.py", name, "--data", data, "--output", output]
    done = subprocess.run([*command, *options], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def train(name: str, *words: object) -> None:
    """Run a training on the command line."""
    command = [sys.executable, "-m", "audio_llm", "train", name, *map(str, words)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("flite") is None or shutil.which("festival") is None, reason="no flite or festival")
def test_every_stage_runs_on_a_small_data_folder(tmp_path: Path, tiny_data: Callable[[Path], Path]) -> None:
    data, output = tiny_data(tmp_path / "data"), tmp_path / "exp"
    stage("generate", data, output)
    made = {path.name for path in (output / "pairs").iterdir()}
    assert {"synthetic-train", "synthetic-tune", "synthetic-book", "real-kathleen", "real-train"} <= made
    stage("lm", data, output)
    stage("char-lm", data, output, "--max-minutes", "0.05", "--max-texts", "6")
    stage("ctc-pack", data, output)
    packed, ctc = output / "ctc", output / "ctc-small"
    words = [packed / "spoken", "--tuning", packed / "tune", "-o", packed / "model"]
    train("ctc", *words, "model.width=16", "model.layers=2", "model.feedforward=16", "training.max_steps=2")
    best = ["--model", str(packed / "model" / "best")]
    stage("ctc-tune", data, output, *best, "--finished", str(ctc))
    assert json.loads((ctc / "decoding.json").read_text())["language_model"] == "novels-3gram"
    stage("ctc-pairs", data, output, "--model", str(ctc))
    stage("pack", data, output)
    size = ["model.width=32", "model.feed_forward=48", "model.encoder_layers=2", "model.decoder_layers=1"]
    steps = ["training.max_steps=6", "training.validate_every=3"]
    train("dlm", output / "packed", "-o", output / "model", *size, *steps)
    finished = output / "dlm-tiny"
    stage("tune", data, output, "--model", str(output / "model" / "best"), "--finished", str(finished))
    stage("tune-sound", data, output, "--finished", str(finished))
    settings = json.loads((finished / "decoding.json").read_text())
    assert (settings["language_model"], settings["sound_model"]) == ("novels-3gram", "ctc-small")
    assert settings["recognizer"].startswith("pocketsphinx-")
    model = ["--model", str(finished)]
    report = stage("report", data, output, *model, "--sets", "synthetic-book", "real-kathleen")
    for name in ("n-gram rescoring, 20 best", "n-gram and sound, 100 best", "DLM dlm-sum, gate on", "oracle of 20"):
        assert f"| {name} |" in report
    for name in ("DLM DSR, paper, gate off", "DLM DSR, pooled, gate on", "Transformer LM rescoring, 20 best"):
        assert f"| {name} |" in report
    assert "### real-kathleen: 1 utterances" in report
    assert "| DSR, real-kathleen |" in report
    few = stage("report", data, output, *model, "--sets", "real-kathleen", "--only", "recognizer", "phrase table")
    assert "| phrase table |" in few
    assert "DLM" not in few
    limits = ["--limit", "2"]
    controls = stage("controls", data, output, *model, *limits)
    assert "| DLM DSR, sound of the next utterance |" in controls
    assert "| list, trigram, sound |" in controls
    both = [f"{name}={output / 'model' / part}" for name, part in (("one", "best"), ("same", "best"))]
    loop = stage("loop", data, output, *model, "--models", *both, "--sets", "real-kathleen")
    assert loop.count("| recognizer | ") == 1
    one, same = (line.split(" | ") for line in loop.splitlines() if line.startswith(("| one", "| same")))
    assert same[2] == "0 of 1"  # no text is likelier with what is the same
    assert one[3:] == same[3:]
    assert "| kathleen | 1 |" in stage("ctc-report", data, output, "--model", str(ctc), *limits)
    transfer = stage("transfer", data, output, *model, "--ctc", str(ctc), *limits)
    assert "### test_cv: 2 utterances" in transfer
    assert "| main job, 1 files, dsr |" in stage("speed", data, output, *model, "--limit", "1")
