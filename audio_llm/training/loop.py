"""The training loop: batches and a loss in; a log, the best and the last model out. It is shared by all systems."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from audio_llm.errors import AudioLLMError, ConfigError, MissingDependencyError, UsageError
from audio_llm.training import checkpoint
from audio_llm.training.mean import WeightMean
from audio_llm.training.muon import Muon
from audio_llm.training.stream import Group, group_batches

logger = logging.getLogger(__name__)

_MEAN = "mean.safetensors"  # in a checkpoint


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training.

    Attributes:
        max_steps: Largest number of optimizer steps.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear rise from zero.
        schedule: `cosine` decays to 5 % of the peak, `constant` does not decay.
        schedule_by: `steps` decays along max_steps; `time` along max_steps or max_minutes, whichever is nearer to
            its end, so that the decay also completes in a run limited in time.
        optimizer: `adamw`, or `muon` for matrices, at the same learning rate.
        muon_except: Parameters whose names contain one of these strings are left to AdamW.
        weight_decay: Weight decay of matrices; other parameters have none.
        beta2: AdamW's beta2.
        clip_norm: Largest norm of the gradients; 0: no clipping.
        batches_per_step: Batches whose gradients are averaged in a step, over all processes; rounded up to a
            multiple of the number of processes.
        log_every: Steps between log lines.
        validate_every: Steps between validations.
        save_every: Steps between checkpoints, in addition to the checkpoint at each validation; 0: none.
        save_minutes: Minutes between additional checkpoints; 0: none.
        mean_decay: Decay of an exponential moving average of the weights, such as 0.999. The average is validated and
            saved in `best/` in place of the weights; 0: no average.
        bf16: On a GPU, run the model in bfloat16 (weights stay float32).
        cpu_bf16: The same on a CPU. A CPU with AVX512_BF16 or AMX trains 1.4 to 1.9 times as fast, any other up to five
            times as slowly (measured); `auto` times a matrix product in both formats and uses the faster one.
        seed: Random seed of dropout; batches have their own.
    """

    max_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_by: Literal["steps", "time"] = "steps"
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_except: tuple[str, ...] = ()
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip_norm: float = 1.0
    batches_per_step: int = 1
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 0
    save_minutes: float = 0.0
    mean_decay: float = 0.0
    bf16: bool = True
    cpu_bf16: bool | Literal["auto"] = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "batches_per_step", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}", remedy="give 1 or more")

    @property
    def on_cpu_bf16(self) -> bool:
        """Whether a training on this CPU computes in bfloat16."""
        return bf16_is_faster() if self.cpu_bf16 == "auto" else self.cpu_bf16


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        steps: Total optimizer steps, including those before a resume.
        minutes: Total time in minutes, including the time before a resume.
        best_step: Step of the lowest monitored value.
        best_value: Lowest monitored value; NaN without a validation.
        stopped_by: `steps` or `time`.
    """

    steps: int
    minutes: float
    best_step: int
    best_value: float
    stopped_by: Literal["steps", "time"]


Loss = Callable[[nn.Module, Any], torch.Tensor]
Validate = Callable[[nn.Module], Mapping[str, float]]


def train(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss: Loss,
    validate: Validate,
    output: Path,
    config: TrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    monitor: str = "loss",
    save: Callable[[nn.Module, Path], None] | None = None,
    prepare: Callable[[Any], Any] | None = None,
    count_items: Callable[[Any], float] | None = None,
) -> TrainingResult:
    """Train a model; write `train.jsonl`, `best/` and `last/` in the output folder.

    Under torchrun or `accelerate launch` every process makes the same call and trains on its part of the batches; the
    first process validates and writes. Seeds torch's global generator.

    Args:
        model: Trained in place. `loss` must call it as `model(...)`: other methods do not synchronize the processes.
        batches: Epoch number -> its batches, the same ones at every call. A resume iterates over the batches already
            done, so they should be cheap, such as indices; expensive work belongs in `prepare`.
        loss: (model, batch) -> mean loss, a scalar tensor.
        validate: Model in eval mode, without gradients -> named values; called on the first process only.
        output: Folder to write.
        config: Settings of the training.
        max_minutes: Time limit of this call in minutes; the training then validates, saves and stops.
        resume: Resume from `last/` if there is one.
        device: `auto`, `cpu` or `cuda`.
        monitor: Name of the validated value whose minimum is the best.
        save: Writes the model into the given empty folder, for `best/`; default: `model.safetensors`.
        prepare: Batch -> input of `loss`, run in a thread some batches ahead; must not use torch's global
            generator. Tensors in tuples, lists and dictionaries are then moved to the device.
        count_items: Prepared batch -> number of items, for the speed in the log; default: 1 per batch.

    Raises:
        UsageError: The folder contains a training and `resume` is off, or there is no such device.
        AudioLLMError: The gradients became infinite or NaN; `best/` remains.
        MissingDependencyError: accelerate is not installed.
    """
    run = _Run(model, loss, validate, Path(output), config, _accelerator(device, config), monitor, save)
    run.start(resume)
    groups = run.groups(batches, prepare)
    with contextlib.closing(groups), run.progress_bar() as bar:
        stopped_by = run.stop_reason(max_minutes)
        while stopped_by is None:
            group = next(groups)
            run.step(group, max_minutes, count_items)
            stopped_by = run.stop_reason(max_minutes)
            bar.update(1)
            run.log(bar, force=stopped_by is not None)
            run.validate_and_save(force=stopped_by is not None)
    return run.result(stopped_by)


def learning_rate(config: TrainingConfig, step: int, minutes: float = 0.0, limit_minutes: float | None = None) -> float:
    """Return the learning rate of a step.

    Args:
        config: Peak, warm-up and schedule.
        step: Steps before this one.
        minutes: Minutes of training before this step.
        limit_minutes: Minutes of training at which the run stops.
    """
    position = step / config.max_steps
    if config.schedule_by == "time" and limit_minutes:
        position = max(position, minutes / limit_minutes)
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, position))) if config.schedule == "cosine" else 1.0
    return config.learning_rate * rise * fall


@dataclass
class _Position:
    """Progress of a training; `batch` counts the finished batches of `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    minutes: float = 0.0
    best_step: int = 0
    best_value: float = math.inf


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        validate: Validate,
        output: Path,
        config: TrainingConfig,
        accelerator: Any,
        monitor: str,
        save: Callable[[nn.Module, Path], None] | None,
    ) -> None:
        self.loss, self.validate, self.output, self.monitor, self.save = loss, validate, output, monitor, save
        self.accelerator, self.model = accelerator, model
        self.parallel = accelerator.prepare_model(model)
        self.optimizer = _optimizer(model, config)
        self.mean = WeightMean(model, config.mean_decay) if config.mean_decay else None
        self.position = _Position()
        self.world = int(accelerator.num_processes)
        size = math.ceil(config.batches_per_step / self.world) * self.world
        if size != config.batches_per_step:
            logger.warning("batches_per_step is now %d, for %d processes", size, self.world)
        self.config = replace(config, batches_per_step=size)
        self._begin, self._minutes_before, self._validated_at = time.monotonic(), 0.0, -1
        self._saved = self._begin
        self._window: list[torch.Tensor] = []
        self._window_items, self._window_begin, self._rate = 0.0, time.monotonic(), 0.0

    def start(self, resume: bool) -> None:
        """Create the folder, or resume from its last checkpoint."""
        torch.manual_seed(self.config.seed + self.accelerator.process_index)
        self.parallel.train()
        last = checkpoint.find_folder(self.output / "last")
        if last is not None and not resume:
            remedy = "resume it, or give another folder"
            raise UsageError("this folder already holds a training", path=self.output, remedy=remedy)
        self.output.mkdir(parents=True, exist_ok=True)
        if last is None:
            return
        state, random = checkpoint.load_checkpoint(last, self.model, self.optimizer)
        if self.mean is not None:
            self.mean.load(last / _MEAN)
        self.position = _Position(**state["position"])
        self._minutes_before, self._validated_at = self.position.minutes, self.position.step
        rank = self.accelerator.process_index
        if len(random) == self.world:
            checkpoint.set_random_state(random[rank], self.accelerator.device)
        else:
            torch.manual_seed(self.config.seed + rank + self.position.step)
            logger.warning("resumed with %d processes after %d: dropout differs", self.world, len(random))
        now = json.loads(json.dumps(asdict(self.config)))  # as it was stored: lists for tuples
        changed = [
            f"{key} {value} -> {now.get(key)}" for key, value in state["config"].items() if now.get(key) != value
        ]
        if changed:
            logger.warning("resumed with another configuration: %s", ", ".join(changed))
        if self.accelerator.is_main_process:
            checkpoint.cut_log(self.output / "train.jsonl", self.position.step)
        logger.info("resumed at step %d, epoch %d", self.position.step, self.position.epoch)

    def step(self, group: Group, max_minutes: float | None, count_items: Callable[[Any], float] | None) -> None:
        """Do one optimizer step."""
        limit = None if max_minutes is None else self._minutes_before + max_minutes
        self._rate = learning_rate(self.config, self.position.step, self.position.minutes, limit)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self._rate
        for number, batch in enumerate(group.batches, 1):
            wait = number < len(group.batches) and self.world > 1
            with self.accelerator.no_sync(self.parallel) if wait else contextlib.nullcontext():
                value = self.loss(self.parallel, batch)
                self.accelerator.backward(value / len(group.batches))
            self._window.append(value.detach().float())
            self._window_items += 1.0 if count_items is None else float(count_items(batch))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        if not math.isfinite(float(norm)):
            raise AudioLLMError(
                f"the gradients are infinite or not a number at step {self.position.step + 1}, loss {value.item()}",
                path=self.output,
                remedy="lower learning_rate or clip_norm, or check the data; best/ and last/ are unchanged",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mean is not None:
            self.mean.update()
        self.position.step += 1
        self.position.epoch, self.position.batch = group.epoch, group.batch
        self.position.minutes = self._shared(self._minutes_before + (time.monotonic() - self._begin) / 60)

    def stop_reason(self, max_minutes: float | None) -> Literal["steps", "time"] | None:
        """Return why to stop now, if at all."""
        if self.position.step >= self.config.max_steps:
            return "steps"
        if max_minutes is not None and self.position.minutes - self._minutes_before >= max_minutes:
            return "time"
        return None

    def groups(
        self, batches: Callable[[int], Iterable[Any]], prepare: Callable[[Any], Any] | None
    ) -> Generator[Group, None, None]:
        """Yield the batches of each step from the current position on."""
        rank, position = self.accelerator.process_index, self.position
        size, device = self.config.batches_per_step, self.accelerator.device
        return group_batches(batches, (position.epoch, position.batch), size, rank, self.world, prepare, device)

    def progress_bar(self) -> Any:
        from tqdm import tqdm

        hidden = not (self.accelerator.is_main_process and sys.stderr.isatty())
        return tqdm(total=self.config.max_steps, initial=self.position.step, unit="step", disable=hidden)

    def log(self, bar: Any, force: bool) -> None:
        """Append one line to the log every `log_every` steps."""
        if not self._window or (self.position.step % self.config.log_every and not force):
            return
        loss = self._shared(float(torch.stack(self._window).mean()), mean=True)
        speed = self._window_items * self.world / max(1e-9, time.monotonic() - self._window_begin)
        row = {"step": self.position.step, "epoch": self.position.epoch, "loss": loss, "learning_rate": self._rate}
        row |= {"items_per_s": round(speed, 3), "minutes": round(self.position.minutes, 3)}
        self._write_log(row)
        if bar.disable and self.accelerator.is_main_process:
            logger.info("step %d, loss %.4f, %.1f items/s, %.1f min", row["step"], loss, speed, row["minutes"])
        bar.set_postfix(loss=f"{loss:.4f}")
        self._window, self._window_items, self._window_begin = [], 0.0, time.monotonic()

    def validate_and_save(self, force: bool) -> None:
        """Validate and save the best model when a validation is due, and write the checkpoint."""
        step, config = self.position.step, self.config
        if (step % config.validate_every == 0 or force) and self._validated_at != step:
            self._validate()
        elif not (force or (config.save_every and step % config.save_every == 0) or self._save_is_due()):
            return
        self._saved = time.monotonic()
        random = checkpoint.random_state(self.accelerator.device)[None]
        if self.world > 1:
            random = self.accelerator.gather(random.to(self.accelerator.device)).cpu()
        if self.accelerator.is_main_process:
            state = {"position": asdict(self.position), "config": asdict(config)}
            further = {} if self.mean is None else {_MEAN: self.mean.save}
            checkpoint.save_checkpoint(self.output / "last", self.model, self.optimizer, random, state, further)
        self.accelerator.wait_for_everyone()

    def _save_is_due(self) -> bool:
        """Return whether the last checkpoint is older than `save_minutes`; the same on every process."""
        minutes = self.config.save_minutes
        return minutes > 0.0 and bool(self._shared(float(time.monotonic() - self._saved > 60.0 * minutes)))

    def result(self, stopped_by: Literal["steps", "time"]) -> TrainingResult:
        # accelerate has wrapped `forward` for bfloat16; restore it.
        self.accelerator.unwrap_model(self.parallel, keep_fp32_wrapper=False)
        self.model.eval()
        position = self.position
        best = position.best_value if math.isfinite(position.best_value) else math.nan
        return TrainingResult(position.step, position.minutes, position.best_step, best, stopped_by)

    def _validate(self) -> None:
        value, begin = math.nan, time.monotonic()
        averaged = contextlib.nullcontext if self.mean is None else self.mean.applied
        if self.accelerator.is_main_process:
            self.model.eval()
            with torch.random.fork_rng(), torch.no_grad(), averaged():
                values = {key: float(number) for key, number in self.validate(self.model).items()}
            if self.monitor not in values:
                known = ", ".join(values)
                raise UsageError(f"validation returns no {self.monitor!r}", remedy=f"monitor one of {known}")
            value = values[self.monitor]
            self._write_log({"step": self.position.step, "validation": values})
            shown = ", ".join(f"{key} {number:.4f}" for key, number in values.items())
            logger.info("step %d, validation in %.0f s: %s", self.position.step, time.monotonic() - begin, shown)
            self.model.train()
        value = self._shared(value)
        self._validated_at = self.position.step
        if value < self.position.best_value:
            self.position.best_step, self.position.best_value = self.position.step, value
            if self.accelerator.is_main_process:
                with averaged():
                    checkpoint.replace_folder(
                        self.output / "best", lambda folder: (self.save or _save)(self.model, folder)
                    )
        self._window_begin += time.monotonic() - begin

    def _shared(self, value: float, mean: bool = False) -> float:
        """Return the first process's value, or the mean of all, on every process."""
        if self.world == 1:
            return value
        local = torch.tensor([value], dtype=torch.float64, device=self.accelerator.device)
        values = self.accelerator.gather(local)
        return float(values.mean() if mean else values[0])

    def _write_log(self, row: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.output / "train.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _accelerator(device: str, config: TrainingConfig) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError:
        remedy = "pip install 'audio-llm[train]'"
        raise MissingDependencyError("training needs accelerate", remedy=remedy) from None
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}", remedy="use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device was found", remedy="use --device cpu")
    cuda = device != "cpu" and torch.cuda.is_available()
    half = config.bf16 if cuda else config.on_cpu_bf16
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=True
    )  # a batch of one of several tasks leaves parameters unused
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if half else "no", kwargs_handlers=[unused])


@functools.cache
def bf16_is_faster(size: int = 512) -> bool:
    """Return whether this CPU multiplies (size, size) matrices faster in bfloat16 than in float32, by timing both."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(size, size, dtype=dtype)
        best = math.inf
        for _ in range(4):
            begin = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - begin)
        return best

    return seconds(torch.bfloat16) < seconds(torch.float32)


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    betas = (0.9, config.beta2)
    if config.optimizer == "muon":
        return Muon(model, config.muon_except, config.learning_rate, betas, config.weight_decay)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas)


def _save(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"))
