"""Faults that the recipe plants into recordings are dropped by the curation, each for its reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from touchtts.test_prepare import RATE, Fakes, babble

from audio_llm import audio
from audio_llm.simulation.mono import colored_noise
from audio_llm.touchtts.prepare_filters import NATS, TextVerification

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def dirty(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the recipe's module of planted faults."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PROJECT / "recipes"))
    monkeypatch.syspath_prepend(str(PROJECT / "recipes" / "touchtts"))
    yield import_module("dirty")
    for name in set(sys.modules) - before:
        if (PROJECT / "recipes") in Path(getattr(sys.modules[name], "__file__", None) or "").parents:
            del sys.modules[name]


def planted_data(folder: Path) -> None:
    """Write a data folder of synthetic speech, all alike, and noise, for two recordings of each kind."""
    words = ("river", "garden", "window", "letter", "captain")
    speech = [
        {"id": str(i), "text": f"The {words[i % 5]} of the {words[i // 5]} was cold.", "duration": 4.0}
        for i in range(25)
    ]
    noise = [{"id": f"n{i}"} for i in range(20)]  # of which some are in training
    for folder_name, lines, sound in (
        ("speech/kathleen", speech, babble(4.0)),
        ("noise/made", noise, 0.1 * colored_noise(3 * RATE, np.random.default_rng(0), 1.0)),
    ):
        (folder / "audio" / folder_name).mkdir(parents=True)
        audio.write(folder / "audio" / folder_name / "a.flac", sound, RATE)
        common = {"path": f"{folder_name}/a.flac", "split": "train"}
        written = "".join(json.dumps({**common, **line}) + "\n" for line in lines)
        (folder / "audio" / folder_name / "manifest.jsonl").write_text(written)


def test_planted_faults_are_dropped_for_their_reasons(
    tmp_path: Path, dirty: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_data(tmp_path)
    planted = dirty.make_dirty(tmp_path, tmp_path / "corpus", 2)
    wrong = {row.text.lower().rstrip(".") for row in planted if row.kind == "wrong"}

    class Knowing(Fakes):
        def verify_text(self, waveform: np.ndarray, text: str) -> TextVerification:
            return TextVerification(text, "", 5.0 if text in wrong else 0.5, NATS)

    monkeypatch.setattr(dirty, "AsrAgreement", lambda *_: Knowing())
    results = dirty.run(tmp_path / "corpus", tmp_path / "prepared")
    assert dirty.misjudged(planted, results) == []
    lines = dirty.table(planted, results)
    assert len(lines) == 2 + len(dirty.EXPECTED) + 1
    assert lines[-1] == "misjudged: none"


def test_the_same_faults_are_planted_again(tmp_path: Path, dirty: ModuleType) -> None:
    planted_data(tmp_path)
    planted, again = (dirty.make_dirty(tmp_path, tmp_path / name, 2, seed=3) for name in ("one", "two"))
    assert again == planted
    for row in planted:
        assert (tmp_path / "one" / row.name).read_bytes() == (tmp_path / "two" / row.name).read_bytes()
