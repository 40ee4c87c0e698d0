"""Training, tuning and reporting data of the recipe, with all rules about held-out material."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speech_sets import SEED, recordings

from audio_llm.dlm.corpus import Sentence, drop_shared, read_book
from audio_llm.errors import DataError
from audio_llm.nbest import read_nbest
from audio_llm.text import DEFAULT_NORMALIZER

HELD_OUT_BOOK = "dracula"
TUNE_BOOK = "persuasion"
READ_ALOUD_BOOKS = ("emma", "pride_and_prejudice", "treasure_island")  # read in LibriSpeech; excluded from training
HELD_OUT_VOICE = "festival:ked"
TRANSFER_LISTS = ("test_ls_clean", "test_ls_other", "test_cv")
TUNE_SENTENCES, BOOK_SENTENCES, VOICE_SENTENCES = 200, 1000, 500


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


def scored_texts(data: Path) -> list[str]:
    """Return the normalized texts of all recordings and lists for tuning or reporting."""
    texts = [r.text for name, rows in recordings(data).items() if name != "train" for r in rows]
    for name in TRANSFER_LISTS:
        texts += [nbest.reference or "" for nbest in read_nbest(data / "nbest" / f"{name}.json")]
    return [DEFAULT_NORMALIZER(text) for text in texts]


def check_no_leak(training_texts: Iterable[str], data: Path) -> None:
    """Raise DataError if a normalized training text is also a text for tuning or reporting."""
    parts = sentences(data)
    scored = {*scored_texts(data), *(s.words for name in ("tune", "book", "voice") for s in parts[name])}
    leaked = sorted(scored.intersection(training_texts))
    if leaked:
        raise DataError(f"{len(leaked)} training texts are also scored, first {leaked[0]!r}", path=data)


def _shuffled(items: Sequence[Sentence], rng: np.random.Generator) -> list[Sentence]:
    return [items[i] for i in rng.permutation(len(items))]
