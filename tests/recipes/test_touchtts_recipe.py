"""TouchTTS's recipe, stage by stage, tiny, on the sample recordings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_llm import hub
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.speech import TouchTTS

SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
LOOP = ["training.max_steps=2", "training.validate_every=2", "training.warmup_steps=1"]
VOCODER = [*LOOP, "model.width=16", "model.blocks=1", "model.fine_blocks=1", "batch=2", "validation=2"]
LM = [*LOOP, "model.lm.width=32", "model.lm.layers=1", "model.lm.heads=2", "model.lm.feed_forward=32"]
FLOW = [*LOOP, "model.width=32", "model.layers=1", "model.heads=2", "model.feed_forward=32", "batch=2", "validation=2"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("flite") is None, reason="no flite")
def test_every_stage_runs_on_a_small_data_folder(
    tiny_data: Callable[[Path], Path], run_stages: Callable[..., str], tmp_path: Path
) -> None:
    data, output = tiny_data(tmp_path / "data"), tmp_path / "exp"
    run_stages("touchtts", output, ["pack", "--data", data])
    for kind in ("talks", "packed"):  # too few people for a tuning part of their own
        shutil.rmtree(output / kind / "tune")
        shutil.copytree(output / kind / "train", output / kind / "tune")
    printed = run_stages(
        "touchtts",
        output,
        ["own", "--manifest", SAMPLES / "manifest.jsonl"],
        ["made", "--data", data, "--count", 3],
        ["vocoder", "--set", *VOCODER],
        ["talk", "--set", *LM],
        ["flow", "--set", *FLOW],
        ["finish"],
        ["report", "--count", 1],
        ["cost"],
    )
    for name in ("recording", "codec-small", "vocoder", "flow of true tokens", "full", "full in chunks"):
        assert f"| {name} | " in printed
    assert "the true text is likelier for" in printed
    assert "| kathleen | 1 |" in printed
    assert "a chunk at 30 s" in printed
    assert len(UtterancePack(output / "talks" / "own")) == 11
    assert hub.verify_model(output / "touchtts-small").kind == "touchtts"
    assert TouchTTS.load(output / "touchtts-small").voices == ["kathleen"]
