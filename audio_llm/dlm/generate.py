"""Generates shards of training pairs from sentences: planned ahead, in several processes, resumable byte for byte."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.atomic import replacing
from audio_llm.dlm.corpus import Sentence
from audio_llm.dlm.pairs import PairItem, item_seed, make_pair
from audio_llm.errors import AudioLLMError, DataError
from audio_llm.simulation.augment import Augmentation
from audio_llm.text import get_normalizer
from audio_llm.training.config import with_former_keys

logger = logging.getLogger(__name__)

MAX_FAILED_FRACTION = 0.05  # of a shard; a greater fraction means a fault of the system, not an unusual sentence


@dataclass(frozen=True)
class GenerationConfig:
    """Everything that determines the pairs, except the sentences.

    Attributes:
        voices: Names of TTS voices; each sentence gets one, drawn uniformly.
        recognizer: Name of the recognizer.
        nbest: Number of distinct hypotheses to store per sentence.
        normalizer: Name of the normalizer of references and hypotheses.
        shard_size: Sentences in a shard.
        seed: Random seed.
        augmentation: How synthesized speech is degraded.
    """

    voices: tuple[str, ...] = ("flite:rms", "flite:slt", "flite:awb", "flite:kal16", "festival:kal", "festival:slt")
    recognizer: str = "sphinx"
    nbest: int = 20
    normalizer: str = "spoken"
    shard_size: int = 50
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Plan:
    """All shards to generate.

    Attributes:
        config: The configuration of the pairs.
        shards: The items of each shard.
        fingerprint: SHA-256 of everything that determines the pairs.
        noises: Recordings of noise for the augmentation, each (N,) float32 at 16 kHz.
    """

    config: GenerationConfig
    shards: tuple[tuple[PairItem, ...], ...]
    fingerprint: str
    noises: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class GenerationReport:
    """Counts of one run.

    Attributes:
        generated: Shards that this run generated.
        existing: Shards that earlier runs had generated.
        remaining: Shards that were requested and not generated because time ran out.
        failed_items: Items without a pair in the shards of this run.
    """

    generated: int
    existing: int
    remaining: int
    failed_items: int


def plan_speech(sentences: Sequence[Sentence], config: GenerationConfig, noises: Sequence[np.ndarray] = ()) -> Plan:
    """Plan synthetic speech: a pure function of the sentences, the configuration and the noises.

    The sentences are shuffled by the seed, so that the first shards are a representative sample.
    """
    order = np.random.default_rng(config.seed).permutation(len(sentences))
    items = []
    for index in order:
        sentence = sentences[index]
        seed = item_seed(sentence.id, config.seed)
        voice = config.voices[seed % len(config.voices)]
        items.append(PairItem(sentence.id, sentence.words, sentence.text, voice, "", seed))
    return _plan(items, config, tuple(noises))


def plan_recordings(recordings: Sequence[tuple[str, str, str]], config: GenerationConfig) -> Plan:
    """Plan recorded speech: (id, path, text) of each recording, in the given order."""
    normalizer = get_normalizer(config.normalizer)
    return _plan([PairItem(i, normalizer(text), "", "", path, 0) for i, path, text in recordings], config)


def generate(
    plan: Plan,
    output: Path,
    workers: int = 1,
    max_minutes: float | None = None,
    max_shards: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GenerationReport:
    """Generate the missing shards.

    A shard is done when `shard-00012.jsonl.gz` and `shard-00012.ok` (count and SHA-256) exist. Its bytes depend
    on the plan only; timings go to `timings.jsonl`.

    Args:
        plan: From `plan_speech` or `plan_recordings`.
        output: Folder of the shards.
        workers: Number of processes, each with one recognizer.
        max_minutes: Time limit in minutes after which no shard is started.
        max_shards: Generate only the first shards of the plan, at most this number.
        progress: Called with (shards done, shards planned).

    Raises:
        DataError: The folder holds shards of another plan.
        AudioLLMError: More than 5 % of a shard failed.
    """
    missing = missing_shards(plan, output)
    existing = len(plan.shards) - len(missing)
    missing = [index for index in missing if max_shards is None or index < max_shards]
    deadline = time.monotonic() + 60.0 * max_minutes if max_minutes is not None else float("inf")
    finished: list[int] = []  # number of failed items of each generated shard
    context = multiprocessing.get_context("fork")
    jobs = (i for i in missing if time.monotonic() < deadline)
    with context.Pool(max(1, workers), _start_worker, (plan, output)) as pool:
        for failures in pool.imap_unordered(_run_shard, _throttled(jobs, workers, finished)):
            finished.append(failures)
            if progress is not None:
                progress(existing + len(finished), len(plan.shards))
    return GenerationReport(len(finished), existing, len(missing) - len(finished), sum(finished))


def read_pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """Read all finished shards of a folder, checking each against its checksum.

    Raises:
        DataError: There is no finished shard, or a shard does not match its checksum.
    """
    shards = sorted(Path(folder).glob("shard-*.jsonl.gz"))
    if not shards:
        raise DataError("contains no finished shard", path=folder, remedy="run the generate stage first")
    for path in shards:
        data = path.read_bytes()
        ok = path.with_name(path.name.replace(".jsonl.gz", ".ok"))
        if not ok.exists() or json.loads(ok.read_text())["sha256"] != hashlib.sha256(data).hexdigest():
            raise DataError("does not match its checksum", path=path, remedy="delete it and generate again")
        for line in gzip.decompress(data).decode().splitlines():
            yield json.loads(line)


def missing_shards(plan: Plan, output: Path) -> list[int]:
    """Create the folder, or check that it belongs to this plan; return the indices of the missing shards.

    Raises:
        DataError: The folder holds shards of another plan.
    """
    _check_plan(plan, output)
    return [index for index in range(len(plan.shards)) if not shard_is_done(output, index)]


def shard_is_done(output: Path, index: int) -> bool:
    """Return whether both the shard and its checksum file exist."""
    return (output / f"shard-{index:05d}.jsonl.gz").exists() and (output / f"shard-{index:05d}.ok").exists()


def make_shard(plan: Plan, index: int, recognizer: Any) -> tuple[bytes, int]:
    """Return the bytes of one shard and how many of its items failed."""
    normalizer = get_normalizer(plan.config.normalizer)
    lines, failed = [], 0
    for item in plan.shards[index]:
        try:
            row = make_pair(item, recognizer, plan.config.augmentation, normalizer, plan.config.nbest, plan.noises)
        except AudioLLMError as error:
            failed += 1
            row = {"text_id": item.text_id, "reference": item.reference, "error": type(error).__name__}
            logger.warning("%s: %s", item.text_id, error)
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True))
    if failed > max(1.0, MAX_FAILED_FRACTION * len(plan.shards[index])):
        raise AudioLLMError(f"shard {index}: {failed} of {len(lines)} items failed", remedy="see the warnings above")
    return gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0), failed


def write_shard(plan: Plan, index: int, recognizer: Any, output: Path) -> int:
    """Generate one shard, write it and its checksum file, and return the number of its failed items.

    Raises:
        AudioLLMError: More than 5 % of its items failed.
    """
    started = time.monotonic()
    data, failed = make_shard(plan, index, recognizer)
    name = f"shard-{index:05d}"
    _write(output / f"{name}.jsonl.gz", data)
    count = len(plan.shards[index])
    digest = hashlib.sha256(data).hexdigest()
    _write(output / f"{name}.ok", json.dumps({"count": count, "failed": failed, "sha256": digest}).encode())
    with (output / "timings.jsonl").open("a") as log:
        log.write(json.dumps({"shard": index, "items": count, "seconds": round(time.monotonic() - started, 1)}) + "\n")
    return failed


_worker: dict[str, Any] = {}


def _start_worker(plan: Plan, output: Path) -> None:
    from audio_llm.asr.engines import load_recognizer

    _worker.update(plan=plan, output=output, recognizer=load_recognizer(plan.config.recognizer))


def _run_shard(index: int) -> int:
    return write_shard(_worker["plan"], index, _worker["recognizer"], _worker["output"])


def _throttled(jobs: Iterator[int], workers: int, finished: Sequence[int]) -> Iterator[int]:
    """Yield jobs only a little ahead of the workers, so that the time limit is checked before each job."""
    for handed_out, job in enumerate(jobs):
        while handed_out - len(finished) >= max(1, workers) + 1:
            time.sleep(0.05)
        yield job


def _plan(items: Sequence[PairItem], config: GenerationConfig, noises: tuple[np.ndarray, ...] = ()) -> Plan:
    shards = tuple(tuple(items[i : i + config.shard_size]) for i in range(0, len(items), config.shard_size))
    digest = hashlib.sha256(json.dumps(with_former_keys(config), sort_keys=True).encode())
    for item in items:
        digest.update(f"{item.text_id}|{item.reference}|{item.text}|{item.voice}|{item.seed}\n".encode())
    for noise in noises:
        digest.update(noise.tobytes())
    return Plan(config, shards, digest.hexdigest(), noises)


def _check_plan(plan: Plan, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "plan.json"
    if path.exists():
        if json.loads(path.read_text())["fingerprint"] != plan.fingerprint:
            raise DataError(
                "contains shards of another plan",
                path=output,
                remedy="give another folder, or the settings that these shards were generated with",
            )
        return
    _write(
        path,
        json.dumps(
            {"fingerprint": plan.fingerprint, "shards": len(plan.shards), "config": asdict(plan.config)}, indent=1
        ).encode(),
    )


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
