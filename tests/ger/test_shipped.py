"""Tests of the corrector that ships with the package, on the sample lists."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from audio_llm import hub
from audio_llm.align import count_edits
from audio_llm.cli import main
from audio_llm.correction import Correction, Corrector
from audio_llm.nbest import NBest, read_nbest
from audio_llm.pipeline.correct import load_corrector

SAMPLES = Path(__file__).parents[2] / "samples" / "nbest"


@pytest.fixture(scope="module")
def lists() -> list[NBest]:
    return list(read_nbest(SAMPLES / "sphinx.jsonl"))


@pytest.fixture(scope="module")
def shipped() -> Corrector:
    return load_corrector("ger")


def errors(lists: Sequence[NBest], texts: Sequence[str]) -> int:
    return sum(
        count_edits((n.reference or "").split(), text.split()).errors for n, text in zip(lists, texts, strict=True)
    )


def improved(lists: Sequence[NBest], corrections: Sequence[Correction]) -> float:
    return errors(lists, [c.text for c in corrections]) / errors(lists, [nbest.best for nbest in lists])


def test_sample_lists_are_improved_with_a_reason(shipped: Corrector, lists: list[NBest]) -> None:
    corrections = shipped.correct(lists)
    assert improved(lists, corrections) < 0.97
    changed = [c for c in corrections if not c.unchanged]
    assert len(changed) >= 0.05 * len(lists)
    for correction in changed:
        assert "expected errors -" in correction.reason
        words = correction.input.split()
        for edit in reversed(correction.edits):
            words[edit.start : edit.end] = edit.after.split()
        assert " ".join(words) == correction.text


def test_lists_of_another_recognizer_are_left_alone(shipped: Corrector) -> None:
    corrections = shipped.correct(list(read_nbest(SAMPLES / "cv.json"))[:20])
    assert all(c.unchanged and "lacks scores" in c.reason for c in corrections)


def test_phrase_corrector_inside_runs_without_torch(lists: list[NBest]) -> None:
    code = (
        "import json, sys; from audio_llm.nbest import read_nbest;"
        "from audio_llm.pipeline.correct import load_corrector;"
        f"lists = list(read_nbest({str(SAMPLES / 'sphinx.jsonl')!r}));"
        "print(json.dumps([c.text for c in load_corrector('phrase').correct(lists)]));"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    texts, loaded = run.stdout.splitlines()
    assert errors(lists, json.loads(texts)) < errors(lists, [nbest.best for nbest in lists])
    assert loaded == "[]"


def test_command_line_needs_no_model_and_refuses_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", str(SAMPLES / "cv.json"), "--with", "ger"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 100
    assert main(["correct", str(SAMPLES / "cv.json"), "--with", "ger", "--mode", "slots"]) == 2
    assert main(["correct", str(SAMPLES / "cv.json"), "--with", "ger", "--llm", "x"]) == 2


def test_it_is_small() -> None:
    folder = hub.find_model("ger-small")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12_000_000


def test_base_model_copies_what_its_list_agrees_on() -> None:
    from audio_llm.ger import decode
    from audio_llm.ger.checkpoint import load

    checkpoint = load("ger-base")
    texts = ["he went down to the sea", "i have seen the old house and the garden"]
    written = decode.greedy(checkpoint.model, checkpoint.collator, [[text] * 5 for text in texts])
    assert [one.text for one in written] == texts
    assert all(one.finished for one in written)
    (torn,) = decode.greedy(
        checkpoint.model, checkpoint.collator, [["he when down to the see", *["he went down to the sea"] * 4]]
    )
    assert torn.text == texts[0]
    assert sum(file.stat().st_size for file in hub.find_model("ger-base").iterdir()) < 12_000_000
