"""The report of a run: computation times, event counts, and the parts of the latency."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime import __version__
from audio_llm_realtime.counters import Count
from audio_llm_realtime.errors import RealtimeError, UsageError
from audio_llm_realtime.worker import Worker


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of the times of chunks, in ms; zeros if no chunk was processed."""

    p50: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Histogram:
    """Histogram of times: `chunks[n]` counts from `edges_ms[n]` to the next edge; the last bin has no upper edge."""

    edges_ms: tuple[float, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Latency:
    """Parts of the latency from microphone to headphones, in ms. The field names are keys of the report.

    Attributes:
        chunk_ms: Duration of a chunk, which is complete before it is processed.
        lookahead_ms: Lookahead of the network.
        resampling_ms: Delay of the filters down to the model's rate and up again.
        spare_ms: Delay of the extra chunks.
        compute_p99_ms: 99th percentile of the computation time; a device hides it in its blocks.
        device_input_ms: Input latency that the device reports; 0 for a file.
        device_output_ms: Output latency that the device reports; 0 for a file.
    """

    chunk_ms: float
    lookahead_ms: float
    resampling_ms: float
    spare_ms: float
    compute_p99_ms: float
    device_input_ms: float
    device_output_ms: float

    @property
    def algorithmic_ms(self) -> float:
        """Algorithmic latency, which does not depend on the machine."""
        return self.chunk_ms + self.lookahead_ms

    @property
    def total_ms(self) -> float:
        """Sum of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Report:
    """Times, counts and latency of a run.

    Attributes:
        model: Name of the model.
        fingerprint: Hash of the model's weights.
        counts: Event counts by the names of `Count` in lower case.
        compute_ms: Percentiles of the computation time of a chunk.
        cpu_ms: Percentiles of the CPU time of a chunk, in the thread that processed it.
        compute_histogram: Histogram of the computation times.
        cpu_histogram: Histogram of the CPU times.
        times_of: Number of chunks, the last of the run, that the times describe.
        latency: The parts of the latency.
        refused: Messages for scheduling options that the system did not grant.
    """

    model: str
    fingerprint: str
    counts: dict[str, int]
    compute_ms: Percentiles
    cpu_ms: Percentiles
    compute_histogram: Histogram
    cpu_histogram: Histogram
    times_of: int
    latency: Latency
    refused: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report for a JSON file; the median CPU time is `cpu_ms_per_chunk`."""
        latency = {**asdict(self.latency), "algorithmic_ms": self.latency.algorithmic_ms}
        latency["total_ms"] = self.latency.total_ms
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            **self.counts,
            "compute_ms": asdict(self.compute_ms),
            "cpu_ms": asdict(self.cpu_ms),
            "cpu_ms_per_chunk": self.cpu_ms.p50,
            "compute_histogram": asdict(self.compute_histogram),
            "cpu_histogram": asdict(self.cpu_histogram),
            "times_of": self.times_of,
            "latency": {key: round(value, 4) for key, value in latency.items()},
            "refused": list(self.refused),
        }


def make_report(
    worker: Worker,
    device_ms: tuple[float, float] = (0.0, 0.0),
    refused: tuple[str, ...] = (),
) -> Report:
    """Summarize the run of a worker.

    Args:
        worker: The worker after the run.
        device_ms: Input and output latency of the device, in ms.
        refused: Messages for scheduling options that the system did not grant.
    """
    contract, counters = worker.engine.contract, worker.counters
    compute = percentiles(counters.wall_ms)
    return Report(
        model=contract.model,
        fingerprint=contract.fingerprint,
        counts={kind.name.lower(): counters[kind] for kind in Count},
        compute_ms=compute,
        cpu_ms=percentiles(counters.cpu_ms),
        compute_histogram=histogram(counters.wall_ms),
        cpu_histogram=histogram(counters.cpu_ms),
        times_of=len(counters.wall_ms),
        latency=Latency(
            contract.chunk_ms,
            contract.lookahead_ms,
            worker.resampling_ms,
            worker.extra_chunks_ms,
            compute.p99,
            device_input_ms=device_ms[0],
            device_output_ms=device_ms[1],
        ),
        refused=refused,
    )


def percentiles(times_ms: NDArray[np.float64]) -> Percentiles:
    """Return the percentiles of times (N,) in ms."""
    if not len(times_ms):
        return Percentiles(0.0, 0.0, 0.0, 0.0, 0.0)
    return Percentiles(*(round(float(value), 4) for value in np.percentile(times_ms, [50, 95, 99, 99.9, 100])))


def histogram(times_ms: NDArray[np.float64]) -> Histogram:
    """Return the histogram of times (N,) in ms, with edges at 0 and from 0.1 to 102.4 ms, eight per octave."""
    edges = np.concatenate([[0.0], 0.1 * 2.0 ** (np.arange(81) / 8.0)])
    counts, _ = np.histogram(times_ms, np.append(edges, np.inf))
    return Histogram(tuple(round(float(edge), 4) for edge in edges), tuple(int(count) for count in counts))


def machine() -> dict[str, Any]:
    """Return a description of the machine: processor, cores, load, system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            name = value.strip()
            break
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    return {"cpu": name, "cores": os.cpu_count(), "load": round(load, 2), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages."""
    installed = {"python": platform.python_version(), "audio-llm-realtime": __version__}
    for package in ("numpy", "onnxruntime", "soundfile", "sounddevice"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def check_report(path: Path) -> None:
    """Check before processing whether a report of this name can be written.

    Raises:
        UsageError: The path is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise UsageError("is a folder", path=path, remedy="name a file for the report")
    if not path.parent.is_dir():
        raise UsageError("the folder does not exist", path=path, remedy=f"create {path.parent}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file completely or not at all.

    Raises:
        RealtimeError: The file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise RealtimeError(f"not written: {error.strerror}", path=path, remedy="give another name") from None
    finally:
        with contextlib.suppress(OSError):  # for example, the folder was removed
            part.unlink(missing_ok=True)
