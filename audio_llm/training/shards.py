"""Packed data: arrays of variable length in a few safetensors files, read by memory map without decoding."""

from __future__ import annotations

import bisect
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.atomic import replacing, write_text
from audio_llm.errors import DataError

_INDEX = "index.json"


def write_shard(rows: Iterable[Mapping[str, np.ndarray]], path: Path) -> int:
    """Write one shard and return its number of rows; equal rows give an equal file, byte for byte.

    Args:
        rows: At least one row. All rows have the same names; arrays of one name have the same dtype and the same shape
            except for the first axis. The arrays of a row may differ in length; numbers are arrays of length 1.
        path: The safetensors file.

    Raises:
        DataError: There are no rows, or their names, dtypes or shapes differ.
    """
    from safetensors.numpy import save_file

    columns: dict[str, list[np.ndarray]] = {}
    count = 0
    for row in rows:
        arrays = {name: np.atleast_1d(array) for name, array in row.items()}
        if count and arrays.keys() != columns.keys():
            raise DataError(f"row {count} has {sorted(arrays)}, earlier rows {sorted(columns)}", path=path)
        for name, array in arrays.items():
            columns.setdefault(name, []).append(array)
        count += 1
    if not count:
        raise DataError("a shard needs at least one row", path=path)
    tensors = {}
    for name, arrays_of_name in columns.items():
        if len({(array.dtype, array.shape[1:]) for array in arrays_of_name}) > 1:
            raise DataError(f"{name!r} changes its dtype or width between rows", path=path)
        lengths = [0, *(len(array) for array in arrays_of_name)]
        tensors[f"{name}.data"] = np.ascontiguousarray(np.concatenate(arrays_of_name))
        tensors[f"{name}.offsets"] = np.cumsum(lengths, dtype=np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"rows": str(count)})
    return count


def write_shards(
    rows: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    max_bytes: int = 60_000_000,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Write rows into numbered shards and an index; return the number of rows.

    Args:
        rows: As for `write_shard`; text is stored as the uint8 array from `encode_text`.
        folder: Output folder, replaced when everything is written.
        max_bytes: Largest size of a shard in bytes, unless a single row is larger.
        extra: Plain values stored in the index, see `ShardReader.extra`.

    Raises:
        DataError: The names, dtypes or shapes of the rows differ.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    names = []
    for number, shard in enumerate(_split(rows, max_bytes - 4096)):
        names.append(f"{number:05d}.safetensors")
        write_shard(shard, temporary / names[-1])
    count = write_index(temporary, names, extra)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return count


def write_index(folder: Path, names: Iterable[str], extra: Mapping[str, Any] | None = None) -> int:
    """Write the index that marks a folder of shards as complete; return the number of rows.

    Args:
        folder: Folder with the shards.
        names: File names of the shards, in order.
        extra: Plain values stored in the index, see `ShardReader.extra`.
    """
    counts = {name: _rows(folder / name) for name in names}
    shards = [{"name": name, "rows": count} for name, count in counts.items()]
    write_text(folder / _INDEX, json.dumps({"shards": shards, "extra": dict(extra or {})}, indent=1))
    return sum(counts.values())


class ShardReader:
    """Random access to the rows of a folder of shards.

    Args:
        folder: A folder written by `write_shards` or `write_index`.

    Raises:
        DataError: The folder is incomplete or a shard is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / _INDEX
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            self._names = [str(shard["name"]) for shard in content["shards"]]
            counts = [int(shard["rows"]) for shard in content["shards"]]
            self.extra: dict[str, Any] = content.get("extra", {})
        except FileNotFoundError:
            raise DataError("no packed data here", path=index, remedy="pack the data first") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"not an index of shards: {error}", path=index, remedy="pack the data again") from None
        self._ends = np.cumsum(counts, dtype=np.int64).tolist()
        self._open: dict[int, tuple[Any, dict[str, np.ndarray]]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """Return the arrays of a row by name (numbers as arrays of length 1)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = bisect.bisect_right(self._ends, row)
        row -= self._ends[number - 1] if number else 0
        file, offsets = self._shard(number)
        arrays = {}
        for name, ends in offsets.items():
            begin, end = int(ends[row]), int(ends[row + 1])
            data = file.get_slice(f"{name}.data") if ends[-1] else file.get_tensor(f"{name}.data")
            # an empty tensor has no slices, and no slice can begin at the end
            arrays[name] = np.asarray(data[begin:end] if end > begin else data[0:0])
        return arrays

    def __contains__(self, name: str) -> bool:
        """Return whether the rows have an array of that name."""
        return bool(self._names) and name in self._shard(0)[1]

    def lengths(self, name: str) -> np.ndarray:
        """Return the length of the named array in every row: (rows,) int64."""
        return np.concatenate([np.diff(self._shard(number)[1][name]) for number in range(len(self._names))])

    def column(self, name: str) -> list[np.ndarray]:
        """Return the named array of all rows, read at once; meant for small arrays such as texts and numbers."""
        arrays: list[np.ndarray] = []
        for number in range(len(self._names)):
            file, offsets = self._shard(number)
            arrays += np.split(np.asarray(file.get_tensor(f"{name}.data")), offsets[name][1:-1])
        return arrays

    def _shard(self, number: int) -> tuple[Any, dict[str, np.ndarray]]:
        if number not in self._open:
            self._open[number] = _open_shard(self.folder / self._names[number])
        return self._open[number]


def encode_text(text: str) -> np.ndarray:
    """Return a text as (N,) uint8, UTF-8."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def decode_text(array: np.ndarray) -> str:
    """Return the text of an array from `encode_text`."""
    return array.tobytes().decode("utf-8")


def _split(rows: Iterable[Mapping[str, np.ndarray]], max_bytes: int) -> Iterator[list[Mapping[str, np.ndarray]]]:
    shard: list[Mapping[str, np.ndarray]] = []
    size = 0
    for row in rows:
        grows_by = sum(np.asarray(array).nbytes + 8 for array in row.values())
        if shard and size + grows_by > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(row)
        size += grows_by
    if shard:
        yield shard


def _rows(path: Path) -> int:
    _, offsets = _open_shard(path)
    return len(next(iter(offsets.values()))) - 1


def _open_shard(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "numpy")
        names = [key.removesuffix(".offsets") for key in file.keys() if key.endswith(".offsets")]  # noqa: SIM118
        return file, {name: file.get_tensor(f"{name}.offsets") for name in sorted(names)}
    except (OSError, SafetensorError) as error:
        raise DataError(f"a shard cannot be read: {error}", path=path, remedy="generate it again") from None
