"""The recipe's measures: rows belong to one model and survive a kill; the frontal level is calibrated."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audio_llm.errors import ConfigError, UsageError
from audio_llm.simulation.scene_plan import SceneConfig
from audio_llm.simulation.scenes import Scene, make_scene
from audio_llm.simulation.sources import read_sources
from audio_llm.tse.enrollment import EnrollmentEncoder
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.gridnet import GridNetConfig
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork
from audio_llm.tse.train_separator import SeparatorTrainingConfig, train_separator

torch.set_num_threads(1)
RECIPE = Path(__file__).parents[2] / "recipes" / "tse"
SCENES = SceneConfig(seconds=0.512, enrollment_seconds=1.0)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the recipe."""
    monkeypatch.syspath_prepend(str(RECIPE))
    return importlib.import_module


def test_rows_are_resumed_after_a_kill_and_belong_to_one_model(recipe: Any, pack: Path, tmp_path: Path) -> None:
    evaluate = recipe("evaluate")
    sources, path, indices = read_sources(pack), tmp_path / "rows.jsonl", []

    def measure(scene: Scene) -> dict[str, Any]:
        indices.append(scene.plan.seed[1])
        return {"level": float(np.abs(scene.mixture).max())}

    evaluate.evaluate(measure, "one", sources, SCENES, 3, path)
    whole = path.read_text()
    path.write_text(whole[:-10])
    assert len(evaluate.read_rows(path)) == 2
    evaluate.evaluate(measure, "one", sources, SCENES, 3, path)
    assert path.read_text() == whole
    assert indices == [0, 1, 2, 2]
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["model"] for row in rows] == ["one"] * 3
    with pytest.raises(UsageError, match="another model") as caught:
        evaluate.evaluate(measure, "other", sources, SCENES, 3, path)
    assert caught.value.path == path


def test_nearly_all_enrollments_exceed_the_least_level(recipe: Any, pack: Path) -> None:
    calibrate = recipe("calibrate")
    torch.manual_seed(0)
    extractor = ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3, front=True)
    network = TargetSpeakerNetwork(TargetSpeakerConfig(extractor, SelectorConfig(12, 1, 3, 5))).eval()
    sources = read_sources(pack)
    least = calibrate.least_frontal_level_db(network, sources, 5)
    enrollments = [
        make_scene(sources, SceneConfig(), calibrate.SEED, index, with_mixture=False).enrollment for index in range(5)
    ]
    with torch.inference_mode():
        levels = [
            float(EnrollmentEncoder(network).encode(torch.from_numpy(enrollment)[None]).frontal_level_db)
            for enrollment in enrollments
        ]
    assert min(levels) <= least < sorted(levels)[1]


def test_the_baseline_is_refused_a_weight_for_the_frontal_speaker(pack: Path, tmp_path: Path) -> None:
    config = SeparatorTrainingConfig(gridnet=GridNetConfig(embedding=0, outputs=3), front_weight=1.0)
    with pytest.raises(ConfigError, match="front"):
        train_separator(pack, pack, tmp_path / "out", config, device="cpu")
