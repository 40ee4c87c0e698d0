"""The recipes of tokenizer, codec and speech enhancement, stage by stage, tiny, on the sample recordings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from audio_llm import audio, hub
from audio_llm.gense.models import load_gense

TRAINING = ["training.max_steps=2", "training.validate_every=2", "training.warmup_steps=1"]
MASK = [*TRAINING, "model.width=8", "model.blocks=1", "batch_pairs=2", "validation_pairs=2", "least_dynamics_db=0"]
CODEC = [*TRAINING, "model.width=16", "model.encoder_blocks=1", "model.decoder_blocks=1", "batch=2", "validation=2"]
TOKENIZER = [*TRAINING, "model.width=16", "model.channels=4", "model.feedforward=16", "model.before=1", "model.after=1"]
SIZES = ("width=16", "layers=1", "feed_forward=16")
GENSE = [*TRAINING, "batch=2", "validation=2", *(f"model.{lm}.{size}" for lm in ("n2s", "s2s") for size in SIZES)]
STAGE_2 = ["model.quantizer=reorganized", "model.codes=16"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_runs_on_the_samples(
    tiny_data: Callable[[Path], Path], run_stages: Callable[..., str], tmp_path: Path
) -> None:
    pytest.importorskip("pesq")  # of the extra `metrics`
    data = tiny_data(tmp_path / "data")
    _add_noise(data)
    codec, gense = tmp_path / "codec", tmp_path / "gense"
    run_stages("codec", codec, ["pack", "--data", data])
    shutil.rmtree(codec / "packed" / "tune")  # too few people for a part of their own
    shutil.copytree(codec / "packed" / "train", codec / "packed" / "tune")
    run_stages(
        "codec",
        codec,
        ["teach"],
        ["tokenizer", "--set", *TOKENIZER],
        ["tokenizer-clean", "--set", *TOKENIZER],
        ["codec", "--set", *CODEC],
        ["codec", "--name", "group", "--set", *CODEC, "model.quantizer=group", "model.group_codes=[8, 8]"],
        [
            "codec",
            "--name",
            "one",
            "--start",
            codec / "group" / "best",
            "--set",
            *CODEC,
            "model.quantizer=reorganized",
            "model.codes=16",
        ],
        ["tokenizer-finish"],
        ["codec-finish"],
        ["tokenizer-report", "--limit", "1"],
    )
    assert hub.verify_model(codec / "tokenizer-s3-small").kind == "s3-tokenizer"
    assert hub.verify_model(codec / "codec-small").kind == "codec"
    parts = ["--tokenizer", codec / "tokenizer-s3-small", "--codec", codec / "codec-small"]
    for part in ("packed", "tokenizer-s3-small", "codec-small"):
        shutil.copytree(codec / part, gense / part)
    run_stages(
        "gense",
        gense,
        ["mask", "--set", *MASK],
        ["refine"],
        ["mask", "--name", "mask2", "--packs", "refined", "--start", gense / "mask" / "best", "--set", *MASK],
        ["mask-finish", "--name", "mask2"],
        ["tokens", "--count", "4", "--mask", gense / "mask-small", "--set", "pairs.seconds=2", *parts],
        ["gense", "--set", *GENSE, *parts],
    )
    assert hub.verify_model(gense / "mask-small").kind == "mask"
    run_stages(
        "gense",
        gense,
        ["gense-finish", "--mask", gense / "mask-small"],
        ["limits", "--count", "2"],
        ["attack", "--mask", gense / "mask-small", "--gense", gense / "gense-small", "--count", "1"],
    )
    model = load_gense(gense / "gense-small")
    assert {path.name.split("-")[1] for path in gense.glob("trial-*.jsonl")} == {"masked", "noisy"}
    settings = hub.model_settings(gense / "gense-small")
    assert settings["limits"] == asdict(model.limits)
    assert settings["limits"]["good_db"] >= 10.0
    assert {"chain", "sampling", "semantic_sampling", "heard_share", "balanced_below_db"} < settings.keys()
    assert Path(model.mask) == gense / "mask-small"


def _add_noise(data: Path) -> None:
    """Two made recordings of noise, in the layout that the recipes want."""
    folder = data / "audio" / "noise" / "made"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for name in ("one", "two"):
        audio.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(32_000).astype(np.float32), 16_000)
        rows.append(json.dumps({"path": f"noise/made/{name}.wav", "id": name, "source": name}))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n")
