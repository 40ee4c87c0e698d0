"""`extract` and `export` as a user types them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audio_llm import audio, cli
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.models import save_model
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    torch.manual_seed(0)
    extractor = ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=2, front=True)
    hearing = TargetSpeakerNetwork(TargetSpeakerConfig(extractor, SelectorConfig(8, 1, 2, 4))).eval()
    save_model(tmp_path / "tiny", hearing, "A tiny one.", {})
    random = np.random.default_rng(0)
    for name, seconds in (("mix", 0.5), ("look", 1.0), ("short", 0.5)):
        audio.write(tmp_path / f"{name}.wav", 0.1 * random.standard_normal((round(seconds * 16_000), 2)), 16_000)
    return {name: str(tmp_path / f"{name}.wav") for name in ("mix", "look", "short", "out")} | {
        "model": str(tmp_path / "tiny")
    }


def run(files: dict[str, str], *more: str, look: str = "look") -> int:
    command = ["extract", files["mix"], "--enroll", files[look], "-o", files["out"], "--model", files["model"]]
    return cli.main([*command, *more])


def test_extract_writes_a_file_and_prints_its_name(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{files['out']}\n"
    assert "0.5 s of sound" in shown.err
    assert soundfile.info(files["out"]).frames == 8_000
    first = Path(files["out"]).read_bytes()
    assert run(files) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(files, "--overwrite", "--mix", "1", "-q") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert Path(files["out"]).read_bytes() != first
    np.testing.assert_allclose(soundfile.read(files["out"])[0], soundfile.read(files["mix"])[0], atol=1.01 / 32768)


def test_extract_warns_of_one_channel(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    audio.write(files["mix"], np.full(8_000, 0.1), 16_000)
    assert run(files) == 0
    assert f"audio-llm: warning: {files['mix']}: has one channel" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "status", "line"), [(["--mix", "2"], 2, "0 to 1"), (["--mix", "x"], 2, "number")])
def test_extract_refuses_a_wrong_mix(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], words: list[str], status: int, line: str
) -> None:
    assert run(files, *words) == status
    assert line in capsys.readouterr().err


def test_extract_names_the_file_and_the_remedy(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, look="short") == 1
    message = capsys.readouterr().err
    assert files["short"] in message
    assert "record 1 to 10 s" in message
    assert run(files, "--model", "no-such-model") == 3
    assert "no-such-model" in capsys.readouterr().err
    assert not Path(files["out"]).exists()


def test_export_without_its_package_says_how_to_get_it(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["export", "tse", "-o", files["out"], "--model", files["model"]]) == 3
    assert "pip install ./export" in capsys.readouterr().err
