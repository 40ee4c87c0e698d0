"""The README's commands, as a new user runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audio_llm.manifest import Utterance, read_manifest
from audio_llm.metrics import word_errors
from audio_llm.pipeline.files import find_audio

PROJECT = Path(__file__).parents[1]


def sample_rows() -> list[Utterance]:
    """Return the sample recordings with their texts."""
    folder = PROJECT / "samples" / "speech"
    return [row for name in ("manifest", "range") for row in read_manifest(folder / f"{name}.jsonl")]


def commands() -> list[str]:
    """Return the README's shell lines that install."""
    return re.findall(r"^pip install .*$", (PROJECT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_two_commands_do_all_set_up() -> None:
    main_job, tests = commands()[:2]
    assert main_job == "pip install . && audio-llm models get whisper-base && audio-llm transcribe samples/speech"
    assert tests.endswith("&& pytest")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script
    assert 'bash -c "$test_command"' in script


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_main_job_in_a_fresh_environment(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (PROJECT / name).is_file():
            (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, tmp_path / "project" / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = kept | {"PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    if "PIP_CACHE_DIR" not in environment:
        environment["PIP_CACHE_DIR"] = str(Path.home() / ".cache" / "pip")
    done = subprocess.run(
        ["bash", "-c", commands()[0]],
        cwd=tmp_path / "project",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recordings = find_audio([str(PROJECT / "samples" / "speech")])
    for recording in recordings:
        assert recording.path.name in done.stdout
    assert "Traceback" not in done.stderr
    assert len(recordings) == 14
    lines = done.stdout.splitlines()  # the model's folder, then a name and a text for each recording
    texts = {Path(name).name: text for name, text in zip(lines[1::2], lines[2::2], strict=True)}
    rows = sample_rows()
    errors = word_errors([row.text for row in rows], [texts[Path(row.audio_filepath).name] for row in rows])
    assert errors.rate < 0.1  # right but for single words


def test_every_sample_of_speech_has_its_text() -> None:
    texts = {Path(row.audio_filepath).name: row.text for row in sample_rows()}
    assert sorted(texts) == sorted(item.path.name for item in find_audio([str(PROJECT / "samples" / "speech")]))
    assert all(texts.values())
