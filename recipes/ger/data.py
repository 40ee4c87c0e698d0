"""Training, validation and test data of the recipe; all rules about held-out data are here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speech_sets import recordings

from audio_llm.dlm.corpus import drop_shared, read_book
from audio_llm.errors import DataError
from audio_llm.ger.data import ListData, from_lists
from audio_llm.nbest import NBest, read_nbest
from audio_llm.text import DEFAULT_NORMALIZER

SEED = 40
READ_ALOUD_BOOKS = ("emma", "pride_and_prejudice", "treasure_island")  # read aloud in LibriSpeech: never trained on
HELD_OUT_BOOK = "dracula"  # its sentences are synthesized in the tests of recipes/dlm
TUNE_BOOK = "persuasion"
TUNE_SENTENCES = 500
ATIS_TRAIN, ATIS_TEST = "train_atis", "test_atis"
REPORTED = ("test_ls_clean", "test_ls_other", "test_cv", "test_wsj_score", "test_lrs2", "test_swbd")
SHIPPABLE = ("test_ls_clean", "test_ls_other", "test_cv")  # shipped weights may be trained on these, in folds
HELD_OUT_FRACTION, TUNE_FRACTION = 0.2, 0.1  # of the references of ATIS' training lists


def lists(data: Path, name: str) -> list[NBest]:
    """Return the lists of one file, in its order, with ids that name the file."""
    path = data / "nbest" / f"{name}.json"
    loaded = read_nbest(path)
    return [NBest(f"{name}-{number}", n.hypotheses, n.reference) for number, n in enumerate(loaded)]


def sentences(data: Path) -> tuple[list[str], list[str]]:
    """Return (training sentences, validation sentences) of books, normalized; none of them is in a scored set."""
    paths = sorted((data / "text").glob("*.txt"))
    skipped = {HELD_OUT_BOOK, TUNE_BOOK, *READ_ALOUD_BOOKS, "PROVENANCE"}
    train = [sentence for path in paths if path.stem not in skipped for sentence in read_book(path)]
    tune = read_book(data / "text" / f"{TUNE_BOOK}.txt")
    order = np.random.default_rng(SEED).permutation(len(tune))[:TUNE_SENTENCES]
    tuning = [tune[i].words for i in order]
    unshared = drop_shared(train, [*tuning, *scored_texts(data)])
    return [sentence.words for sentence in unshared], tuning


def scored_texts(data: Path) -> list[str]:
    """Return the normalized references of every list, and of every recording, of the validation and test sets."""
    names = [name for name in (ATIS_TEST, *REPORTED) if (data / "nbest" / f"{name}.json").exists()]
    texts = [nbest.reference or "" for name in names for nbest in lists(data, name)]
    texts += [r.text for name, clips in recordings(data).items() if name != "train" for r in clips]
    return [DEFAULT_NORMALIZER(text) for text in texts]


def atis_parts(data: Path) -> dict[str, list[NBest]]:
    """Return ATIS' lists: `train`, `tune`, `held-out` (a fifth of the training references) and `test`.

    18 references of the test occur in the training lists too, by the design of the set.
    """
    parts: dict[str, list[NBest]] = {"train": [], "tune": [], "held-out": []}
    everything = lists(data, ATIS_TRAIN)
    part_of = _assign([nbest.reference or "" for nbest in everything])
    for nbest in everything:
        parts[part_of[DEFAULT_NORMALIZER(nbest.reference or "")]].append(nbest)
    return {**parts, "test": lists(data, ATIS_TEST)}


def folds(nbests: Sequence[NBest], count: int = 5) -> list[list[NBest]]:
    """Return the lists in folds; the lists of one reference are in the same fold."""
    references = sorted({DEFAULT_NORMALIZER(nbest.reference or "") for nbest in nbests})
    order = np.random.default_rng(SEED).permutation(len(references)) % count
    fold_of = dict(zip(references, order.tolist(), strict=True))
    parts: list[list[NBest]] = [[] for _ in range(count)]
    for nbest in nbests:
        parts[fold_of[DEFAULT_NORMALIZER(nbest.reference or "")]].append(nbest)
    return parts


def as_data(nbests: Iterable[NBest]) -> ListData:
    """Return lists as training data."""
    return from_lists(nbests, DEFAULT_NORMALIZER.name)


def check_no_leak(training_texts: Iterable[str], scored: Iterable[str]) -> None:
    """Raise DataError if a normalized training text is also scored."""
    leaked = sorted(set(scored).intersection(training_texts))
    if leaked:
        raise DataError(f"{len(leaked)} training texts are also scored, first {leaked[0]!r}")


def _assign(references: Sequence[str]) -> dict[str, str]:
    distinct = sorted({DEFAULT_NORMALIZER(reference) for reference in references})
    order = np.random.default_rng(SEED).permutation(len(distinct))
    held_out, tune = int(HELD_OUT_FRACTION * len(distinct)), int(TUNE_FRACTION * len(distinct))
    names = ["held-out"] * held_out + ["tune"] * tune + ["train"] * (len(distinct) - held_out - tune)
    return {distinct[i]: name for i, name in zip(order, names, strict=True)}
