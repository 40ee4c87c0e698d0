"""A data folder of a few sentences, in the layout that the recipes want."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]
SAMPLES = PROJECT / "samples"
NOUNS = ("river", "garden", "window", "letter", "captain", "morning", "carriage", "brother")
VERBS = ("watched", "opened", "remembered", "forgot", "followed", "praised")


def make_data(folder: Path) -> Path:
    """Write a data folder in the recipe's layout: three books of made-up sentences and the sample recordings."""
    (folder / "text").mkdir(parents=True)
    for offset, book in enumerate(("dracula", "persuasion", "other")):
        lines = [
            f"The {NOUNS[(i + offset) % 8]} of the {NOUNS[(3 * i + offset) % 8]} {VERBS[i % 6]} {book} at last."
            for i in range(6)
        ]
        (folder / "text" / f"{book}.txt").write_text("\n\n".join(lines))
    rows = [json.loads(line) for line in (SAMPLES / "speech" / "manifest.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: row["duration"])
    corpora = {
        "kathleen": (rows[:3], ("train", "train", "dev")),
        "librispeech_dev_clean_mp3": (rows[3:4], ("dev",)),
        "speechocean762": (rows[4:5], ("dev",)),
        "librispeech_test_other": (rows[5:6], ("train",)),
        "librispeech_test_clean_few": (rows[6:7], ("train",)),
    }
    for corpus, (own, splits) in corpora.items():
        place = folder / "audio" / "speech" / corpus
        place.mkdir(parents=True)
        lines = []
        for row, split in zip(own, splits, strict=True):
            shutil.copy(SAMPLES / "speech" / row["audio_filepath"], place)
            path = f"speech/{corpus}/{row['audio_filepath']}"
            kept = {"path": path, "id": Path(path).stem, "text": row["text"], "speaker": row["speaker"], "split": split}
            lines.append(json.dumps(kept))
        (place / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "nbest").mkdir()
    for name, source in (("test_ls_clean", "ls_other"), ("test_ls_other", "ls_other"), ("test_cv", "cv")):
        lists = json.loads((SAMPLES / "nbest" / f"{source}.json").read_text())[:4]
        (folder / "nbest" / f"{name}.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture
def tiny_data() -> Callable[[Path], Path]:
    """Return a function that makes such a folder at a path."""
    return make_data


@pytest.fixture
def run_stages() -> Callable[..., str]:
    """Return a function that runs stages of a recipe one after the other in one process; it returns what they print."""

    def run(recipe: str, output: Path, *stages: list[object]) -> str:
        arguments = [[str(word) for word in [*stage, "--output", output]] for stage in stages]
        path = str(PROJECT / "recipes" / recipe / "run.py")
        lines = [
            "import json, runpy, sys",
            "for words in json.loads(sys.argv[1]):",
            "    sys.argv[1:] = words",
            f"    assert runpy.run_path({path!r})['main']() == 0",
        ]
        command = [sys.executable, "-c", "\n".join(lines), json.dumps(arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def recipe_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Return a function that imports a module of a recipe; two recipes may have modules of the same name."""
    before = set(sys.modules)

    def imported(recipe: str, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(PROJECT / "recipes"))
        monkeypatch.syspath_prepend(str(PROJECT / "recipes" / recipe))
        return import_module(name)

    yield imported
    for name in set(sys.modules) - before:
        if (PROJECT / "recipes") in Path(getattr(sys.modules[name], "__file__", None) or "").parents:
            del sys.modules[name]
