"""Training data of the neural corrector: N-best lists with references, from files or shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm.errors import DataError
from audio_llm.nbest import NBest, read_nbest
from audio_llm.text import get_normalizer
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards


@dataclass(frozen=True)
class ListData:
    """Lists in memory, normalized.

    Attributes:
        references: Reference texts.
        hypotheses: The hypotheses of each list, best first, with duplicates.
        noisy: (N, A) float32, the `noise_features` of the recording of each list; None: no audio.
        clean: (N, A) float32, the same features of the recording without its noise, of equal length.
    """

    references: tuple[str, ...]
    hypotheses: tuple[tuple[str, ...], ...]
    noisy: np.ndarray | None = None
    clean: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.references)

    def rows(self, indices: Iterable[int]) -> ListData:
        """Return these rows, in this order."""
        rows = list(indices)
        return ListData(
            tuple(self.references[row] for row in rows),
            tuple(self.hypotheses[row] for row in rows),
            None if self.noisy is None else self.noisy[rows],
            None if self.clean is None else self.clean[rows],
        )

    def __add__(self, other: ListData) -> ListData:
        return ListData(
            self.references + other.references,
            self.hypotheses + other.hypotheses,
            _joined(self.noisy, other.noisy),
            _joined(self.clean, other.clean),
        )


def from_lists(lists: Iterable[NBest], normalizer: str) -> ListData:
    """Gather the lists that have a reference and at least one word."""
    normalize = get_normalizer(normalizer)
    references, hypotheses = [], []
    for nbest in lists:
        texts = tuple(normalize(text) for text in nbest.texts)
        if nbest.reference is not None and any(texts):
            references.append(normalize(nbest.reference))
            hypotheses.append(texts)
    return ListData(tuple(references), tuple(hypotheses))


def pack_data(data: ListData, folder: Path) -> int:
    """Write shards that `read_data` reads; return the number of rows."""
    return write_shards((_row(data, row) for row in range(len(data))), folder)


def read_data(paths: Sequence[Path], normalizer: str) -> ListData:
    """Read files and shard folders of N-best lists as one data set.

    Raises:
        DataError: No list in them has a reference and a word.
    """
    parts = [_read_packed(path) if path.is_dir() else from_lists(read_nbest(path), normalizer) for path in paths]
    whole = sum(parts[1:], parts[0]) if parts else ListData((), ())
    if not len(whole):
        where = paths[0] if paths else None
        raise DataError("no list has a reference and a word", path=where, remedy="add references as 'output'")
    return whole


def split_by_reference(data: ListData, fraction: float, seed: int) -> tuple[ListData, ListData]:
    """Return (the rest, a fraction of the lists); no reference is in both.

    Raises:
        DataError: There is only one reference.
    """
    references = sorted(set(data.references))
    if len(references) < 2:
        remedy = "give lists of more utterances, or separate validation lists"
        raise DataError("lists of one reference cannot be split into training and validation", remedy=remedy)
    order = np.random.default_rng(seed).permutation(len(references))
    chosen = {references[i] for i in order[: max(1, int(len(references) * fraction))]}
    inside = [row for row in range(len(data)) if data.references[row] in chosen]
    return data.rows(row for row in range(len(data)) if data.references[row] not in chosen), data.rows(inside)


def _row(data: ListData, row: int) -> dict[str, np.ndarray]:
    texts = {"reference": encode_text(data.references[row]), "hypotheses": encode_text("\n".join(data.hypotheses[row]))}
    sounds = {"noisy": data.noisy, "clean": data.clean}
    return texts | {name: array[row] for name, array in sounds.items() if array is not None}


def _read_packed(folder: Path) -> ListData:
    reader = ShardReader(folder)
    references = tuple(decode_text(array) for array in reader.column("reference"))
    hypotheses = [decode_text(array) for array in reader.column("hypotheses")]
    sounds = {name: np.stack(list(reader.column(name))) for name in ("noisy", "clean") if name in reader}
    return ListData(references, tuple(tuple(text.split("\n")) for text in hypotheses), **sounds)


def _joined(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """Return both concatenated; None if either is missing, as audio is used for all lists or none."""
    return None if one is None or other is None else np.concatenate([one, other])
