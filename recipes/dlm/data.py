"""What the recipe trains on, tunes on and reports on; every rule about held-out material is here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm.dlm.corpus import Sentence, drop_shared, read_book
from audio_llm.errors import DataError
from audio_llm.nbest import read_nbest
from audio_llm.text import DEFAULT_NORMALIZER

HELD_OUT_BOOK = "dracula"
TUNE_BOOK = "persuasion"
READ_ALOUD_BOOKS = ("emma", "pride_and_prejudice", "treasure_island")  # read in LibriSpeech: never trained on
HELD_OUT_VOICE = "festival:ked"
TRANSFER_LISTS = ("test_ls_clean", "test_ls_other", "test_cv")
FIRST_DEV_CLEAN = 60  # utterances of dev-clean, by id, that are reported and so never trained on
TUNE_SENTENCES, BOOK_SENTENCES, VOICE_SENTENCES = 200, 1000, 500
TUNE_SPEAKERS = ("ls-1673", "ls-2035")  # of dev-clean, for tuning
TUNE_PROMPTS = 100  # of Kathleen's training prompts, for tuning
OCEAN_UTTERANCES = 300  # of speechocean762; little of it is recognised, so that much of it teaches to invent
SEED = 20


@dataclass(frozen=True)
class Recording:
    """A labelled recording.

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


def sentences(data: Path) -> dict[str, list[Sentence]]:
    """Return the sentences of `train`, `tune`, `book` (held-out book) and `voice` (held-out book and voice)."""
    rng = np.random.default_rng(SEED)
    held_out = _shuffled(read_book(data / "text" / f"{HELD_OUT_BOOK}.txt"), rng)
    tune = _shuffled(read_book(data / "text" / f"{TUNE_BOOK}.txt"), rng)[:TUNE_SENTENCES]
    book, voice = held_out[:BOOK_SENTENCES], held_out[BOOK_SENTENCES : BOOK_SENTENCES + VOICE_SENTENCES]
    train: list[Sentence] = []
    for path in sorted((data / "text").glob("*.txt")):
        if path.stem not in {HELD_OUT_BOOK, TUNE_BOOK, *READ_ALOUD_BOOKS, "PROVENANCE"}:
            train += read_book(path)
    scored = [*(s.words for s in (*tune, *book, *voice)), *scored_texts(data)]
    return {"train": drop_shared(train, scored), "tune": tune, "book": book, "voice": voice}


def recordings(data: Path) -> dict[str, list[Recording]]:
    """Return the labelled recordings: `train`, `tune-kathleen`, `tune-dev-clean`, and the reported sets."""
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
    own = [r for r in kathleen if r.split == "train"]
    order = np.random.default_rng(SEED).permutation(len(own))
    sets["tune-kathleen"] = [own[i] for i in order[:TUNE_PROMPTS]]
    first_speakers = {r.speaker for r in sets["dev-clean-60"]}
    candidates = [own[i] for i in order[TUNE_PROMPTS:]]
    candidates += [r for r in dev_clean if r.split == "train" and r.speaker not in first_speakers | set(TUNE_SPEAKERS)]
    candidates += [r for r in ocean if r.split == "train"][:OCEAN_UTTERANCES]
    scored = {DEFAULT_NORMALIZER(r.text) for name, rows in sets.items() for r in rows}
    candidates = [r for r in candidates if DEFAULT_NORMALIZER(r.text) not in scored]
    sets["train"] = [candidates[i] for i in np.random.default_rng(SEED).permutation(len(candidates))]
    return sets


def scored_texts(data: Path) -> list[str]:
    """Return the normalised texts of every recording and list that is tuned or reported on."""
    texts = [r.text for name, rows in recordings(data).items() if name != "train" for r in rows]
    for name in TRANSFER_LISTS:
        texts += [nbest.reference or "" for nbest in read_nbest(data / "nbest" / f"{name}.json")]
    return [DEFAULT_NORMALIZER(text) for text in texts]


def check_no_leak(training_texts: Iterable[str], data: Path) -> None:
    """Raise DataError where a normalised training text is also scored."""
    parts = sentences(data)
    scored = {*scored_texts(data), *(s.words for name in ("tune", "book", "voice") for s in parts[name])}
    leaked = sorted(scored.intersection(training_texts))
    if leaked:
        raise DataError(f"{len(leaked)} training texts are also scored, first {leaked[0]!r}", path=data)


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


def _shuffled(items: Sequence[Sentence], rng: np.random.Generator) -> list[Sentence]:
    return [items[i] for i in rng.permutation(len(items))]
