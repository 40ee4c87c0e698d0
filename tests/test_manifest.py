"""Manifests: both key names, relative names, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audio_llm.errors import DataError
from audio_llm.manifest import Utterance, read_manifest, write_manifest


def test_both_names_of_the_path_and_extra_keys(tmp_path: Path) -> None:
    rows = [
        {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello", "speaker": 7, "split": "dev", "snr_db": 3},
        {"path": "sub/b.flac", "text": None},
        {"audio_filepath": "/abs/c.wav"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert list(read_manifest(path)) == [
        Utterance(tmp_path / "a.wav", 1.5, "hello", "7", "dev", {"snr_db": 3}),
        Utterance(tmp_path / "sub/b.flac"),
        Utterance(Path("/abs/c.wav")),
    ]
    assert next(read_manifest(path, root="/data")).audio_filepath == Path("/data/a.wav")


def test_written_is_read_back(tmp_path: Path) -> None:
    utterances = [
        Utterance(tmp_path / "x/ä.wav", 2.0, "grüß dich", "s", "train", {"book": "1"}),
        Utterance(Path("/elsewhere/b.wav")),
    ]
    assert write_manifest(iter(utterances), tmp_path / "m.jsonl") == 2
    assert list(read_manifest(tmp_path / "m.jsonl")) == utterances
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])["audio_filepath"] == "x/ä.wav"
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav"}\nbroken\n')
    rows = read_manifest(tmp_path / "m.jsonl")
    assert next(rows).audio_filepath.name == "a.wav"
    with pytest.raises(DataError, match="line 2"):
        next(rows)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '"a.wav"',
        "{",
        '{"text": "x"}',
        '{"path": ""}',
        '{"path": 3}',
        '{"path": "a", "duration": "long"}',
        '{"path": "a", "duration": -1}',
        '{"path": "a", "duration": NaN}',
        '{"path": "a", "text": ["x"]}',
    ],
)
def test_bad_line_names_file_line_and_remedy(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"path": "a.wav"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=r"m\.jsonl: line 3: .*\(give one object per line"):
        list(read_manifest(path))


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path / "binary", tmp_path):
        with pytest.raises(DataError) as caught:
            list(read_manifest(path))
        assert caught.value.path == path
    with pytest.raises(DataError, match="cannot be written"):
        write_manifest([], tmp_path / "no folder" / "m.jsonl")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest([Utterance(tmp_path / "a.wav")], path)

    def broken() -> object:
        yield Utterance(tmp_path / "b.wav")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_manifest(broken(), path)  # type: ignore[arg-type]
    assert [u.audio_filepath.name for u in read_manifest(path)] == ["a.wav"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
