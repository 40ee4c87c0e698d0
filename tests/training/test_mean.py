"""The moving average of weights: its value after some steps, applying and removing it, saving and loading it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from audio_llm.training.loop import bf16_is_faster
from audio_llm.training.mean import WeightMean


def test_the_mean_follows_the_weights(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    mean = WeightMean(model, 0.9)
    expected = 0.0
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.fill_(float(step))
        mean.update()
        decay = min(0.9, step / (9 + step))
        expected = decay * expected + (1 - decay) * step
    with mean.applied():
        assert abs(float(model.weight) - expected) < 1e-4
    assert float(model.weight) == 29.0
    mean.save(tmp_path / "mean.safetensors")
    other = WeightMean(model, 0.9)
    other.load(tmp_path / "mean.safetensors")
    other.update()
    mean.update()
    with mean.applied():
        first = float(model.weight)
    with other.applied():
        assert float(model.weight) == first


def test_without_a_file_the_mean_begins_with_the_weights(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    mean = WeightMean(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
    mean.load(tmp_path / "none.safetensors")
    with mean.applied():
        assert float(model.weight) == 5.0


def test_the_faster_format_is_chosen_by_timing(monkeypatch) -> None:
    times = iter([0.0, 3.0] * 4 + [0.0, 1.0] * 4)  # begin and end of four products in bfloat16, then in float32
    monkeypatch.setattr("audio_llm.training.loop.time.perf_counter", lambda: next(times))
    assert bf16_is_faster(4) is False
