"""Split of speech and noise into training, tuning and test.

No noise recording is in two of them, and of the speakers only Kathleen, whose prompts are divided.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm import audio
from audio_llm.errors import DataError
from audio_llm.simulation.speech_pack import FULL_BAND_HZ, Utterance, write_speech_pack
from audio_llm.text import DEFAULT_NORMALIZER

PARTS = ("train", "tune", "test")
CORPORA = (  # all but voicebank_demand_few, which is only for reporting
    "librispeech_tc100",
    "librispeech_dev_clean_mp3",
    "librispeech_test_other",
    "librispeech_test_clean_few",
    "speechocean762",
    "kathleen",
    "cmu_arctic_few",
)
ONE_VOICE = "kathleen"  # divided by prompt: she is in training, her reported prompts are in test
TUNE_FRACTION = 0.06  # of the training speakers, of Kathleen's training prompts, and of the noises
TEST_NOISE_FRACTION = 0.15
LEAST_S = 0.8  # of an utterance


def pack(folder: Path, output: Path) -> None:
    """Write the packs `train`, `tune` and `test`.

    Args:
        folder: The data: `audio/speech` and `audio/noise` with their manifests.
        output: Output folder of the packs.
    """
    missing = [corpus for corpus in CORPORA if not (folder / "audio" / "speech" / corpus / "manifest.jsonl").exists()]
    if missing:
        logging.warning("without %s", ", ".join(missing))
    for part in PARTS:
        counts = write_speech_pack(output / part, utterances(folder, part), noises(folder, part))
        logging.info("%s: %s", part, counts)


def utterances(folder: Path, part: str) -> Iterator[Utterance]:
    """Yield the utterances of a part; no text of the test is in training or tuning."""
    tested = {words(row) for row in _rows(folder) if row_part(row) == "test"} - {""}
    for row in _rows(folder):
        if row_part(row) != part or (part != "test" and words(row) in tested):
            continue
        waveform = audio.read(folder / "audio" / row["path"])
        if waveform.size >= LEAST_S * audio.SAMPLE_RATE:
            bandwidth_hz = int(row.get("bandwidth_hz") or FULL_BAND_HZ)
            dynamics_db = float(row.get("dyn_db") or 0.0)
            yield Utterance(row["id"], row["speaker"], row["corpus"], words(row), bandwidth_hz, dynamics_db, waveform)


def noises(folder: Path, part: str) -> Iterator[np.ndarray]:
    """Yield the noise recordings of a part."""
    for path in sorted((folder / "audio" / "noise").glob("*/manifest.jsonl")):
        for row in _manifest(path):
            fraction = _fraction(row.get("source") or row["id"])
            assigned = (
                "test"
                if fraction < TEST_NOISE_FRACTION
                else "tune"
                if fraction < TEST_NOISE_FRACTION + TUNE_FRACTION
                else "train"
            )
            if assigned == part:
                yield audio.read(folder / "audio" / row["path"])


def row_part(row: dict[str, Any]) -> str:
    """Return the part of a manifest's row: its `dev` is the test, tuning is split off from `train`."""
    if row["split"] != "train":
        return "test"
    by = row.get("prompt") or row["id"] if row["speaker"] == ONE_VOICE else row["speaker"]
    return "tune" if _fraction(str(by)) < TUNE_FRACTION else "train"


def words(row: dict[str, Any]) -> str:
    """Return the normalized text of a manifest's row, empty where it has none."""
    return DEFAULT_NORMALIZER(row.get("text") or "")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    paths = {corpus: folder / "audio" / "speech" / corpus / "manifest.jsonl" for corpus in CORPORA}
    present = {corpus: path for corpus, path in paths.items() if path.exists()}
    if not present:
        remedy = "see the recipe's README for the layout of a data folder"
        raise DataError(f"none of {', '.join(CORPORA)} is here", path=folder / "audio" / "speech", remedy=remedy)
    for corpus, path in present.items():
        for row in _manifest(path):
            yield {**row, "corpus": corpus}


def _manifest(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _fraction(name: str) -> float:
    """Return a number in 0..1 that depends on the name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
