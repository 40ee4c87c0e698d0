"""Generates the shards of pairs that `generate` has planned, on many machines with Ray Data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.dlm.generate import GenerationReport, Plan, missing_shards, shard_is_done, write_shard
from audio_llm.errors import AudioLLMError, MissingDependencyError, UsageError

_LEFT = -1  # in place of the number of failed items: not generated, as the time limit was reached


def generate_on_ray(
    plan: Plan,
    output: Path,
    max_minutes: float | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GenerationReport:
    """Generate the missing shards on all machines of a Ray cluster.

    The shards equal those of `generate` byte for byte, with the same `.ok` files; each of the two continues where the
    other stopped. Uses the Ray instance that the caller has initialized, else the cluster named in RAY_ADDRESS, else
    starts Ray on this machine. Every machine of the cluster needs this package, the voices, the recordings of the
    plan under the same absolute paths, and access to the output folder.

    Args:
        plan: From `plan_speech` or `plan_recordings`.
        output: Folder of the shards.
        max_minutes: Time limit in minutes after which no shard is started, by the clock of each machine.
        workers: Number of actors, each with one CPU and one recognizer; default: the number of CPUs of the cluster.
        progress: Called with (shards done, shards planned).

    Raises:
        MissingDependencyError: Ray is not installed.
        UsageError: A recording is given by a relative path.
        DataError: The folder holds shards of another plan.
        AudioLLMError: More than 5 % of a shard failed.
    """
    ray = _connect()
    _check_paths(plan)
    output = output.resolve()
    missing = missing_shards(plan, output)
    existing = len(plan.shards) - len(missing)
    if not missing:
        return GenerationReport(0, existing, 0, 0)
    deadline = time.time() + 60.0 * max_minutes if max_minutes is not None else float("inf")
    cpus = int(ray.cluster_resources().get("CPU", 1))
    generated = failed = 0
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        results = ray.data.from_items([{"shard": i} for i in missing], override_num_blocks=len(missing)).map_batches(
            _ShardMaker,
            batch_size=1,
            # One shard at a time: a shard that waits in one actor's queue could run in another actor.
            compute=ray.data.ActorPoolStrategy(
                size=min(workers or max(1, cpus), len(missing)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            fn_constructor_args=((ray.put(plan),), str(output), deadline),
        )
        for row in results.iter_rows():
            if row["error"]:
                raise AudioLLMError(row["error"])
            if row["failed"] != _LEFT:
                generated, failed = generated + 1, failed + int(row["failed"])
                if progress is not None:
                    progress(existing + generated, len(plan.shards))
    finally:
        context.enable_progress_bars = bars
    return GenerationReport(generated, existing, len(missing) - generated, failed)


class _ShardMaker:
    """A Ray actor that holds a recognizer and generates one shard per call.

    Args:
        plan: Object reference of the plan in a tuple, so that each machine stores one copy.
        output: Absolute path of the folder of the shards.
        deadline: Unix time after which no shard is started.
    """

    def __init__(self, plan: tuple[Any], output: str, deadline: float) -> None:
        import ray

        self._plan: Plan = ray.get(plan[0])
        self._output = Path(output)
        self._deadline = deadline
        self._recognizer: Any = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        index = int(batch["shard"][0])
        failed, error = _LEFT, ""
        try:
            if shard_is_done(self._output, index):  # Ray repeats a call whose machine was lost
                failed = int(json.loads((self._output / f"shard-{index:05d}.ok").read_text())["failed"])
            elif time.time() < self._deadline:
                failed = self._make(index)
        except AudioLLMError as problem:  # as text: Ray would wrap the exception in its own
            error = str(problem)
        return {"shard": [index], "failed": [failed], "error": [error]}

    def _make(self, index: int) -> int:
        if self._recognizer is None:
            from audio_llm.asr.engines import load_recognizer

            self._recognizer = load_recognizer(self._plan.config.recognizer)
        return write_shard(self._plan, index, self._recognizer, self._output)


def _connect() -> Any:
    """Return the `ray` module, connected to a cluster."""
    try:
        import ray
        import ray.data
    except ImportError:
        remedy = "pip install 'audio-llm[ray]'"
        raise MissingDependencyError("generating on many machines needs ray", remedy=remedy) from None
    if not ray.is_initialized():
        os.environ.setdefault(
            "RAY_USAGE_STATS_ENABLED", "0"
        )  # no usage statistics are sent unless the user asks for it
        ray.init()
    return ray


def _check_paths(plan: Plan) -> None:
    for item in (item for shard in plan.shards for item in shard):
        if item.audio and not Path(item.audio).is_absolute():
            raise UsageError(
                "a relative path may be another file on another machine",
                path=item.audio,
                remedy="plan the recordings by absolute paths",
            )
