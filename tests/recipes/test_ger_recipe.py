"""The recipe of N-best correction from end to end on a data folder of a few lists and sentences."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audio_llm import audio

PROJECT = Path(__file__).parents[2]
SAMPLES = PROJECT / "samples" / "nbest"


def run(*words: object) -> str:
    """Run a program as a user does; return what it printed."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def add_lists(data: Path) -> None:
    """Put lists in place of ATIS' and of the other domains', and a noise."""
    lists = json.loads((SAMPLES / "cv.json").read_text())
    for name, some in (("train_atis", lists[:60]), ("test_atis", lists[60:70])):
        (data / "nbest" / f"{name}.json").write_text(json.dumps(some))
    for name in ("test_wsj_score", "test_lrs2", "test_swbd"):
        (data / "nbest" / f"{name}.json").write_text(json.dumps(lists[70:74]))
    for name, source in (("test_ls_clean", "ls_other"), ("test_ls_other", "ls_other"), ("test_cv", "cv")):
        some = json.loads((SAMPLES / f"{source}.json").read_text())[10:26]
        (data / "nbest" / f"{name}.json").write_text(json.dumps(some))
    folder = data / "audio" / "noise" / "few"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):  # some of them are for testing
        audio.write(folder / f"{number}.wav", rng.normal(0, 0.1, 16_000).astype(np.float32), 16_000)
        rows.append({"path": f"noise/few/{number}.wav", "id": f"few-{number}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def hear_by_hand(output: Path) -> None:
    """Write lists as if recordings had been heard."""
    lists = json.loads((SAMPLES / "ls_other.json").read_text())
    names = (
        "train",
        "tune-kathleen",
        "tune-dev-clean",
        "kathleen",
        "dev-clean",
        "dev-clean-60",
        "test-other",
        "speechocean",
    )
    (output / "heard").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        rows = [
            {
                "id": f"{number}{i}-{name}",
                "hypotheses": [{"text": t, "score": -r} for r, t in enumerate(entry["input"])],
            }
            | {
                "reference": " ".join(entry["output"].split()[:-2]),
                "condition": "clean",
                "noisy": [0.1 * i, 1.0],
                "clean": [0.0, i],
            }
            for i, entry in enumerate(lists[10 * number : 10 * number + 10])
        ]
        rows += [row | {"id": f"{row['id']}@any", "condition": "any"} for row in rows]
        (output / "heard" / f"sphinx-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_runs_on_a_small_data_folder(tmp_path: Path, tiny_data: Callable[[Path], Path]) -> None:
    data, output = tiny_data(tmp_path / "data"), tmp_path / "exp"
    add_lists(data)
    recipe = PROJECT / "recipes" / "ger"

    def stage(name: str, *options: object) -> str:
        return run(recipe / "run.py", name, "--data", data, "--output", output, *options)

    stage("simulate")
    made_up = ["--data", output / "made-up" / "train", "--tuning", output / "made-up" / "tune"]
    settings = ["--config", recipe / "config" / "base.yaml", "training.max_steps=4", "training.cpu_bf16=false"]
    run("-m", "audio_llm", "train", "ger", "--llm", output / "small", *made_up, "-o", output / "base", *settings)
    base = ["--base", output / "base" / "best", "--max-minutes", 0.02]
    for fold in ("held-out", "all", "0", "1"):
        stage("atis", *base, "--fold", fold)
    assert "| phrase + neural |" in stage("atis-both")
    report = stage("atis-report")
    assert "### ATIS, test: 10 lists" in report
    assert "| ger+E, slots |" in report
    stage("hear", "--sets", "kathleen", "--conditions", "clean", "10", "--asr", "ctc")
    heard = [json.loads(line) for line in (output / "heard" / "ctc-kathleen.jsonl").read_text().splitlines()]
    assert sorted(row["condition"] for row in heard) == ["10", "clean"]
    assert len(heard[0]["noisy"]) == len(heard[0]["clean"]) > 100
    domains = stage("domains", *base)
    assert "### test_swbd: 4 lists" in domains
    assert "| trigram of novels, rescoring |" in domains
    hear_by_hand(output)
    stage("english")
    assert (output / "english" / "train" / "index.json").exists()
    assert "### sphinx, all of them: 50 lists" in stage("own", *base)
    assert (output / "own-sphinx" / "model.safetensors").exists()
    assert stage("curve").endswith("%\n")
    stage("plot")
    assert (output / "results.png").stat().st_size > 10_000
    for arm in ("ger", "ger+E", "ger+E+MINE"):
        stage("noise", *base, "--noise-arm", arm)
    report = stage("noise-report")
    assert "| ger+E, E shuffled, slots |" in report
    assert "ger against ger+E: " in report
    shutil.rmtree(output)
