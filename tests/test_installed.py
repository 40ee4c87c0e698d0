"""The record of an installed model: unchanged files are accepted quickly, changed ones are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from audio_llm import hub, installed
from audio_llm.errors import ModelFormatError, ModelNotFoundError
from audio_llm.installed import InstalledFile, Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "owner--model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights " * 100)
    (folder / "config.json").write_bytes(b"{}")
    files = {p.name: InstalledFile(p.stat().st_size, installed.file_sha256(p)) for p in folder.iterdir()}
    manifest = Manifest(
        name="owner/model",
        kind="gguf",
        license="MIT",
        source="hub",
        origin={"repo_id": "owner/model"},
        verified_by_project=False,
        files=files,
    )
    installed.write_manifest(folder, manifest)
    return folder


def test_record_comes_back(folder: Path) -> None:
    manifest = installed.read_manifest(folder)
    assert manifest is not None
    assert (manifest.name, manifest.kind, manifest.license) == ("owner/model", "gguf", "MIT")
    assert installed.weights_sha256(manifest) == installed.file_sha256(folder / "model.bin")
    assert installed.checked_files(folder) == {n: folder / n for n in ("model.bin", "config.json")}


def test_unchanged_files_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    file_sha256 = installed.file_sha256
    monkeypatch.setattr(installed, "file_sha256", lambda path: (hashed.append(path.name), file_sha256(path))[1])
    installed.checked_files(folder)
    assert sorted(hashed) == ["audio-llm.json", "config.json", "model.bin"]
    hashed.clear()
    installed.checked_files(folder)
    assert hashed == ["audio-llm.json"]
    hashed.clear()
    installed.checked_files(folder, full=True)
    assert "model.bin" in hashed
    hashed.clear()
    os.utime(folder / "model.bin", (1, 1))
    installed.checked_files(folder)
    assert "model.bin" in hashed


@pytest.mark.parametrize("full", [False, True])
def test_changed_file_is_refused_by_name(folder: Path, full: bool) -> None:
    installed.checked_files(folder)
    before = (folder / "model.bin").stat()
    (folder / "model.bin").write_bytes(b"Weights " * 100)
    os.utime(folder / "model.bin", ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time are as they were
    with pytest.raises(ModelFormatError, match=r"model\.bin: has another SHA-256.*get owner/model --overwrite"):
        installed.checked_files(folder, full=full)


def test_cut_and_missing_files_are_refused_by_name(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights")
    with pytest.raises(ModelFormatError, match=r"model\.bin: has 7 bytes instead of 800"):
        installed.checked_files(folder)
    (folder / "model.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"model\.bin: is missing"):
        hub.verify_model(folder)
    assert "model.bin: is missing" in str(hub.model_info(folder).problem)


def test_folder_that_cannot_be_written_is_hashed_every_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(installed.checked_files(folder)) == 2
    assert not (folder / installed.STAMP_NAME).exists()


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format_version": 1}', '{"format_version": 9}'])
def test_damaged_record_is_refused(folder: Path, text: str) -> None:
    (folder / "audio-llm.json").write_text(text)
    with pytest.raises(ModelFormatError, match=r"audio-llm\.json"):
        installed.checked_files(folder)
    assert "audio-llm.json" in str(hub.model_info(folder).problem)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden"])
def test_record_of_a_file_outside_its_folder_is_refused(folder: Path, name: str) -> None:
    document = json.loads((folder / "audio-llm.json").read_text())
    document["files"][name] = {"size_bytes": 1, "sha256": "0"}
    (folder / "audio-llm.json").write_text(json.dumps(document))
    with pytest.raises(ModelFormatError, match="outside its folder"):
        installed.checked_files(folder)


def test_folder_without_a_record_has_nothing_to_compare(tmp_path: Path) -> None:
    assert installed.checked_files(tmp_path) == {}


def test_model_that_was_removed_names_the_command_that_installs_it(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="models get someone/model"):
        installed.checked_files(folder.parent / "someone--model")


def test_foreign_folders_are_known_by_their_files(tmp_path: Path) -> None:
    assert installed.foreign_kind(tmp_path) is None
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\x0c\0WhisperSpec\0")
    assert installed.foreign_kind(tmp_path) == "ctranslate2-whisper"
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    assert installed.foreign_kind(tmp_path) == "transformers:whisper"
