"""Recognition of recordings, with noise at given SNRs: N-best lists of our recognizers, with noise features."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from speech_sets import Recording

from audio_llm import audio
from audio_llm.align import count_edits
from audio_llm.ger.data import ListData, from_lists
from audio_llm.ger.noise_features import NoiseStatistics
from audio_llm.nbest import NBest, nbest_from_dict, nbest_to_dict
from audio_llm.simulation.mono import add_noise
from audio_llm.text import DEFAULT_NORMALIZER

CLEAN = "clean"
SNRS_DB = {"ctc": (20, 10, 5, 0), "sphinx": (30, 20, 10)}  # conditions of the reported sets
TRAIN_SNR_DB = {"ctc": (0.0, 20.0), "sphinx": (15.0, 40.0)}  # drawn for each recording of the training sets
TEST_NOISE_FRACTION = 0.3  # of the noise recordings; the others are for training and validation
DEPTH = 20  # requested hypotheses
MOST_WRONG = 0.6  # maximum word error rate of a training list

_state: dict[str, Any] = {}


@dataclass(frozen=True)
class Task:
    """One recording to recognize in one condition.

    Attributes:
        recording: The recording.
        condition: `clean`, `any`, or the SNR in dB as text.
        part: `train` or `test`: the part of the noises that may be added.
    """

    recording: Recording
    condition: str
    part: str


def plan(recordings: Sequence[Recording], part: str, conditions: Sequence[str]) -> list[Task]:
    """Return the tasks; the condition `any` draws an SNR for each recording."""
    return [Task(recording, condition, part) for condition in conditions for recording in recordings]


def recognize(tasks: Sequence[Task], folder: Path, asr: str, output: Path, workers: int) -> int:
    """Recognize the tasks that are not in the file yet and append them; return the number of lists in it.

    Args:
        tasks: Recordings and conditions.
        folder: The data folder, for its noises.
        asr: Name of the recognizer.
        output: JSON lines, one list with its noise features per line.
        workers: Number of processes.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    done = {row["id"] for row in _rows(output)}
    missing = [task for task in tasks if _name(task) not in done]
    start = (folder, asr)
    with output.open("a", encoding="utf-8") as file, ProcessPoolExecutor(workers, None, _start, start) as pool:
        for number, row in enumerate(pool.map(_recognize_one, missing, chunksize=4), 1):
            file.write(json.dumps(row) + "\n")
            if number % 50 == 0:
                file.flush()
                logging.info("%s: %d of %d", output.name, number, len(missing))
    return len(done) + len(missing)


def read(path: Path, condition: str | None = None) -> list[NBest]:
    """Return the lists of a file, normalized, without those that have no words.

    Args:
        path: Output of `recognize`.
        condition: Only lists of this condition; None: all.
    """
    return [nbest for nbest, _ in _read(path, condition)]


def read_data(path: Path, condition: str | None = None, most_wrong: float = MOST_WRONG) -> ListData:
    """Return the lists of a file with their noise features, as training data.

    Args:
        path: Output of `recognize`.
        condition: Only lists of this condition; None: all.
        most_wrong: Maximum word error rate of the best hypothesis: lists that are nearly all wrong teach hallucination.
    """
    selected = [one for one in _read(path, condition) if _word_error_rate(one[0]) <= most_wrong]
    data = from_lists([nbest for nbest, _ in selected], DEFAULT_NORMALIZER.name)
    sounds = {name: np.array([row[name] for _, row in selected], dtype=np.float32) for name in ("noisy", "clean")}
    return ListData(data.references, data.hypotheses, **sounds)


def _read(path: Path, condition: str | None) -> list[tuple[NBest, dict[str, Any]]]:
    pairs = []
    for number, row in enumerate(_rows(path), 1):
        nbest = nbest_from_dict(row, str(path), number)
        if nbest.best and (condition is None or row["condition"] == condition):
            pairs.append((nbest, row))
    return pairs


def _word_error_rate(nbest: NBest) -> float:
    return count_edits((nbest.reference or "").split(), nbest.best.split()).error_rate


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _name(task: Task) -> str:
    return f"{task.recording.id}@{task.condition}"


def _start(folder: Path, asr: str) -> None:
    import torch

    from audio_llm.asr.engines import load_recognizer

    torch.set_num_threads(1)
    _state.update(
        asr=asr, recognizer=load_recognizer(asr), noises={part: noises(folder, part) for part in ("train", "test")}
    )


def noises(folder: Path, part: str) -> list[np.ndarray]:
    """Return the noises of a part, each (T,) float32; the part of a recording depends on its name only."""
    waveforms = []
    for manifest in sorted((folder / "audio" / "noise").glob("*/manifest.jsonl")):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for_test = zlib.crc32(row["id"].encode()) % 100 < 100 * TEST_NOISE_FRACTION
            if for_test == (part == "test"):
                waveforms.append(audio.read(folder / "audio" / row["path"]))
    return waveforms


def _recognize_one(task: Task) -> dict[str, Any]:
    rng = np.random.default_rng(zlib.crc32(_name(task).encode()))
    clean = audio.read(task.recording.path)
    waveform, condition = clean, task.condition
    if condition != CLEAN:
        snr_db = rng.uniform(*TRAIN_SNR_DB[_state["asr"]]) if condition == "any" else float(condition)
        pool = _state["noises"][task.part]
        noise = pool[int(rng.integers(len(pool)))]
        waveform = add_noise(clean, np.roll(noise, -int(rng.integers(len(noise)))), snr_db)
    nbest = _state["recognizer"].recognize(waveform, DEPTH, _name(task))
    statistics = NoiseStatistics()
    row = nbest_to_dict(NBest(nbest.id, nbest.hypotheses, DEFAULT_NORMALIZER(task.recording.text)))
    sounds = {"noisy": statistics.encode(waveform), "clean": statistics.encode(clean)}
    return row | {"condition": condition} | {n: [round(float(x), 3) for x in v] for n, v in sounds.items()}
