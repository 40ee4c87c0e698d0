"""The labeled recordings for training, tuning and evaluation, and the rules of the split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm.errors import DataError
from audio_llm.text import DEFAULT_NORMALIZER

FIRST_DEV_CLEAN = 60  # utterances of dev-clean, by id, that are reported and so never trained on
TUNE_SPEAKERS = ("ls-1673", "ls-2035")  # of dev-clean, for tuning
TUNE_PROMPTS = 100  # of Kathleen's training prompts, for tuning
OCEAN_UTTERANCES = 300  # of speechocean762; few of its words are recognized, so more of it would teach hallucination
SEED = 20


@dataclass(frozen=True)
class Recording:
    """A labeled recording.

    Attributes:
        id: As in its manifest.
        path: The sound file.
        text: As written in the manifest.
        speaker: Its speaker.
        split: The manifest's split.
    """

    id: str
    path: str
    text: str
    speaker: str
    split: str


def recordings(data: Path) -> dict[str, list[Recording]]:
    """Return the labeled recordings: `train`, `tune-kathleen`, `tune-dev-clean`, and the reported sets."""
    kathleen = _manifest(data, "kathleen")
    dev_clean = sorted(_manifest(data, "librispeech_dev_clean_mp3"), key=lambda r: r.id)
    ocean = _manifest(data, "speechocean762")
    sets = {
        "kathleen": [r for r in kathleen if r.split == "dev"],
        "dev-clean-60": dev_clean[:FIRST_DEV_CLEAN],
        "dev-clean": [r for r in dev_clean if r.split == "dev"],
        "test-clean-few": _manifest(data, "librispeech_test_clean_few"),
        "test-other": _manifest(data, "librispeech_test_other"),
        "speechocean": [r for r in ocean if r.split == "dev"],
        "tune-dev-clean": [r for r in dev_clean if r.speaker in TUNE_SPEAKERS],
    }
    kathleen_train = [r for r in kathleen if r.split == "train"]
    order = np.random.default_rng(SEED).permutation(len(kathleen_train))
    sets["tune-kathleen"] = [kathleen_train[i] for i in order[:TUNE_PROMPTS]]
    first_speakers = {r.speaker for r in sets["dev-clean-60"]}
    candidates = [kathleen_train[i] for i in order[TUNE_PROMPTS:]]
    candidates += [r for r in dev_clean if r.split == "train" and r.speaker not in first_speakers | set(TUNE_SPEAKERS)]
    candidates += [r for r in ocean if r.split == "train"][:OCEAN_UTTERANCES]
    scored = {DEFAULT_NORMALIZER(r.text) for name, rows in sets.items() for r in rows}
    candidates = [r for r in candidates if DEFAULT_NORMALIZER(r.text) not in scored]
    sets["train"] = [candidates[i] for i in np.random.default_rng(SEED).permutation(len(candidates))]
    return sets


def _manifest(data: Path, corpus: str) -> list[Recording]:
    path = data / "audio" / "speech" / corpus / "manifest.jsonl"
    if not path.exists():
        raise DataError("no manifest", path=path, remedy="see the recipe's README for the layout of a data folder")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Recording(r["id"], str(data / "audio" / r["path"]), r["text"], r["speaker"], r["split"])
        for r in rows
        if r.get("text")
    ]
