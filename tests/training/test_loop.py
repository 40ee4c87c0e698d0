"""The training loop: resume is exact, limits and errors act, several processes equal one."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from audio_llm.errors import AudioLLMError, ConfigError, DataError, ModelFormatError, UsageError
from audio_llm.training.loop import TrainingConfig, learning_rate, train

torch.set_num_threads(1)


def make_model(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def batches(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    inputs = [torch.randn(8, 6, generator=generator) for _ in range(7)]
    return [(x, x.sum(dim=1, keepdim=True)) for x in inputs]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def validate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    return {"loss": float(torch.stack([loss(model, batch) for batch in batches(999)]).mean())}


def config(**changes: object) -> TrainingConfig:
    values: dict = {"max_steps": 20, "warmup_steps": 3, "log_every": 1, "validate_every": 5, "learning_rate": 1e-2}
    return TrainingConfig(**{**values, **changes})


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_loss_falls_and_best_and_last_are_kept(tmp_path: Path) -> None:
    result = train(make_model(), batches, loss, validate, tmp_path, config(max_steps=120), device="cpu")
    seen = losses(tmp_path)
    assert len(seen) == 120
    assert seen[-1] < 0.3 * seen[0]
    assert result.steps == 120
    assert result.stopped_by == "steps"
    from safetensors.torch import load_file

    model = make_model()
    model.load_state_dict(load_file(tmp_path / "best" / "model.safetensors"))
    with torch.no_grad():
        assert validate(model.eval())["loss"] == pytest.approx(result.best_value, rel=1e-6)
    assert {path.name for path in (tmp_path / "last").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def other_precision() -> Iterator[Callable[[], None]]:
    """Reset accelerate's precision, as it allows only one per process."""
    from accelerate.state import AcceleratorState

    yield lambda: AcceleratorState._reset_state(True)
    AcceleratorState._reset_state(True)


def test_bfloat16_on_a_cpu_learns_alike_and_keeps_the_weights_in_full(
    tmp_path: Path, other_precision: Callable[[], None]
) -> None:
    seen = {}
    for half in (False, True):
        other_precision()
        model, kinds = make_model(0.0), set()
        model[0].register_forward_hook(lambda _module, _inputs, output, kinds=kinds: kinds.add(output.dtype))
        settings = config(max_steps=60, cpu_bf16=half)
        train(model, batches, loss, validate, tmp_path / str(half), settings, device="cpu")
        assert torch.bfloat16 in kinds if half else kinds == {torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        seen[half] = losses(tmp_path / str(half))
    assert seen[True] != seen[False]
    assert seen[True][-1] == pytest.approx(seen[False][-1], rel=0.2)


@pytest.mark.parametrize("prepare", [None, lambda batch: (batch[0] * 1, batch[1])])
def test_resume_equals_a_straight_run_bit_for_bit(tmp_path: Path, prepare: object) -> None:
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    whole = make_model()
    train(whole, batches, loss, validate, straight, config(), device="cpu", prepare=prepare)

    class Killed(BaseException):
        pass

    calls = 0

    def killed_later(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 14:  # some steps after the checkpoint of step 10
            raise Killed
        return loss(model, batch)

    with pytest.raises(Killed):
        train(make_model(), batches, killed_later, validate, halves, config(), device="cpu", prepare=prepare)
    resumed = make_model()
    train(resumed, batches, loss, validate, halves, config(), device="cpu", prepare=prepare, resume=True)
    assert losses(halves) == losses(straight)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    def noisy(model: nn.Module) -> dict[str, float]:
        return {"loss": float(torch.rand(()))}

    train(make_model(), batches, loss, noisy, tmp_path / "a", config(validate_every=2), device="cpu")
    train(make_model(), batches, loss, noisy, tmp_path / "b", config(validate_every=20), device="cpu")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_folder_with_a_training_is_not_overwritten(tmp_path: Path) -> None:
    train(make_model(), batches, loss, validate, tmp_path, config(max_steps=5), device="cpu")
    with pytest.raises(UsageError, match="already holds a training"):
        train(make_model(), batches, loss, validate, tmp_path, config(max_steps=5), device="cpu")
    result = train(make_model(), batches, loss, validate, tmp_path, config(max_steps=5), device="cpu", resume=True)
    assert result.steps == 5
    assert math.isfinite(result.best_value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(make_model(), batches, loss, validate, tmp_path, config(max_steps=5), device="cpu")
    with pytest.raises(ModelFormatError, match="does not fit"):
        train(nn.Linear(3, 3), batches, loss, validate, tmp_path, config(max_steps=9), device="cpu", resume=True)


def test_time_limit_stops_saves_and_lets_the_rate_fall(tmp_path: Path) -> None:
    def slow(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.02)
        return loss(model, batch)

    limited = config(max_steps=100_000, validate_every=100_000, schedule_by="time", warmup_steps=1)
    result = train(make_model(), batches, slow, validate, tmp_path, limited, device="cpu", max_minutes=0.02)
    assert result.stopped_by == "time"
    assert 3 < result.steps < 80
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[-1] < 0.2 * rates[0]
    assert (tmp_path / "best" / "model.safetensors").exists()
    assert json.loads((tmp_path / "last" / "state.json").read_text())["position"]["step"] == result.steps


def test_nan_stops_with_an_error_and_keeps_the_best(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        broken.calls += 1  # type: ignore[attr-defined]
        return loss(model, batch) * (float("nan") if broken.calls > 7 else 1.0)  # type: ignore[attr-defined]

    broken.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(AudioLLMError, match="not a number at step 8"):
        train(make_model(), batches, broken, validate, tmp_path, config(), device="cpu")
    from safetensors.torch import load_file

    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "best" / "model.safetensors").values())


def test_batches_per_step_averages_gradients(tmp_path: Path) -> None:
    def joined(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts = batches(0)[:4]
        return [
            (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]

    one, two = make_model(0.0), make_model(0.0)
    train(one, joined, loss, validate, tmp_path / "a", config(max_steps=6), device="cpu")
    parts = config(max_steps=6, batches_per_step=2)
    train(two, lambda epoch: batches(0)[:4], loss, validate, tmp_path / "b", parts, device="cpu")
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no batch"):
        train(make_model(), lambda epoch: [], loss, validate, tmp_path / "a", config(), device="cpu")
    with pytest.raises(UsageError, match="no 'wer'"):
        train(make_model(), batches, loss, validate, tmp_path / "b", config(), device="cpu", monitor="wer")
    with pytest.raises(UsageError, match="unknown device"):
        train(make_model(), batches, loss, validate, tmp_path / "c", config(), device="tpu")
    with pytest.raises(ConfigError, match="max_steps"):
        TrainingConfig(max_steps=0)


def test_learning_rate_schedule() -> None:
    cosine = TrainingConfig(max_steps=100, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(cosine, 0) == pytest.approx(0.1)
    assert learning_rate(cosine, 50) == pytest.approx(0.525)
    assert learning_rate(cosine, 100) == pytest.approx(0.05)
    constant = TrainingConfig(max_steps=100, learning_rate=1.0, warmup_steps=1, schedule="constant")
    assert learning_rate(constant, 99) == 1.0
    by_time = TrainingConfig(max_steps=100, learning_rate=1.0, warmup_steps=1, schedule_by="time")
    assert learning_rate(by_time, 10, minutes=8.0, limit_minutes=16.0) == pytest.approx(0.525)
    assert learning_rate(by_time, 100, minutes=8.0, limit_minutes=16.0) == pytest.approx(0.05)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    two = config(batches_per_step=2)
    train(make_model(0.0), batches, loss, validate, tmp_path / "one", two, device="cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "import importlib.util, sys, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('shared', {str(Path(__file__))!r})\n"
        "shared = importlib.util.module_from_spec(spec); spec.loader.exec_module(shared)\n"
        "shared.train(shared.make_model(0.0), shared.batches, shared.loss, shared.validate,\n"
        f"    pathlib.Path({str(tmp_path / 'two')!r}), shared.config(batches_per_step=2), device='cpu')\n"
        "shared.torch.distributed.barrier(); shared.torch.distributed.destroy_process_group()\n"
    )
    processes = []
    for rank in range(2):
        environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
        processes.append(subprocess.Popen([sys.executable, "-c", program], env=environment))
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    one, both = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(both) == 20
    assert both == pytest.approx(one, rel=1e-5, abs=1e-6)
