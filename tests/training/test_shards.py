"""Packed shards return the rows that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audio_llm.errors import DataError
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_index, write_shard, write_shards


def make_rows(count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "mel": generator.integers(0, 255, (int(generator.integers(0, 40)), 5)).astype(np.uint8),
            "text": encode_text(f"row {number} é"),
            "scale": np.array([number / 3], dtype=np.float32),
        }
        for number in range(count)
    ]


def test_round_trip_over_several_shards(tmp_path: Path) -> None:
    rows = make_rows(50)
    assert write_shards(iter(rows), tmp_path / "pack", max_bytes=6000) == 50
    files = sorted((tmp_path / "pack").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size <= 6000 for file in files)
    reader = ShardReader(tmp_path / "pack")
    assert len(reader) == 50
    for number in [49, 0, 17, *range(50)]:
        for name, array in rows[number].items():
            np.testing.assert_array_equal(reader[number][name], array)
            assert reader[number][name].dtype == array.dtype
    assert [decode_text(row["text"]) for row in reader] == [f"row {n} é" for n in range(50)]
    assert reader.lengths("mel").tolist() == [len(row["mel"]) for row in rows]
    assert [decode_text(text) for text in reader.column("text")] == [f"row {n} é" for n in range(50)]
    with pytest.raises(IndexError):
        reader[50]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(make_rows(5), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_index_of_separately_written_shards(tmp_path: Path) -> None:
    rows = make_rows(6)
    write_shard(rows[:2], tmp_path / "x.safetensors")
    write_shard(rows[2:], tmp_path / "y.safetensors")
    with pytest.raises(DataError, match="pack the data first"):
        ShardReader(tmp_path)
    assert write_index(tmp_path, ["y.safetensors", "x.safetensors"], {"frames": 3}) == 6
    reader = ShardReader(tmp_path)
    assert reader.extra == {"frames": 3}
    np.testing.assert_array_equal(reader[4]["mel"], rows[0]["mel"])


def test_rows_of_different_structure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 has"):
        write_shard([{"a": np.zeros(1)}, {"b": np.zeros(1)}], tmp_path / "x")
    with pytest.raises(DataError, match="changes its dtype"):
        write_shard([{"a": np.zeros(1)}, {"a": np.zeros(1, dtype=np.uint8)}], tmp_path / "x")
    with pytest.raises(DataError, match="at least one"):
        write_shard([], tmp_path / "x")


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    write_shards(make_rows(3), tmp_path / "pack")
    shard = tmp_path / "pack" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        ShardReader(tmp_path / "pack")[0]


def test_a_column_may_be_empty_in_every_row(tmp_path: Path) -> None:
    rows = [{"x": np.arange(3), "text": encode_text("")}, {"x": np.arange(2), "text": encode_text("")}]
    write_shards(rows, tmp_path / "pack")
    reader = ShardReader(tmp_path / "pack")
    assert [(row["x"].tolist(), row["text"].size) for row in reader] == [([0, 1, 2], 0), ([0, 1], 0)]
    assert [array.size for array in reader.column("text")] == [0, 0]


def test_an_empty_array_can_be_the_last_of_a_shard(tmp_path: Path) -> None:
    write_shards([{"a": np.arange(3)}, {"a": np.zeros(0, np.int64)}], tmp_path / "pack")
    assert ShardReader(tmp_path / "pack")[1]["a"].tolist() == []
