"""The ESPnet back end: what needs no ESPnet here, and (slow) a real training and decoding in its own environment."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file

from audio_llm.asr import espnet, espnet_files
from audio_llm.asr.espnet import EspnetRecognizer
from audio_llm.errors import MissingDependencyError, ModelFormatError, ModelNotFoundError
from audio_llm.manifest import read_manifest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("espnet_worker.py")
SAMPLE_RATE = 16_000
NO_ESPNET = importlib.util.find_spec("espnet2") is None
CONFIG = {"token_type": "char", "token_list": ["<blank>", "a"], "encoder": "conformer", "decoder": "transformer"}


def model_folder(folder: Path, **changes: object) -> Path:
    """Write a model folder with a one-tensor checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    torch.save({"weight": torch.ones(2)}, folder / "valid.acc.best.pth")
    return folder


@pytest.mark.skipif(not NO_ESPNET, reason="espnet is installed here")
def test_without_espnet_the_error_names_both_steps(tmp_path):
    modules = set(sys.modules)
    with pytest.raises(MissingDependencyError, match="espnet is not installed") as caught:
        EspnetRecognizer.load(model_folder(tmp_path / "model"))
    assert "requirements/espnet.txt" in str(caught.value)
    pinned = re.search(r"^# --no-deps: (\S+)$", (ROOT / "requirements" / "espnet.txt").read_text(), re.MULTILINE)
    assert f"--no-deps {pinned[1]}" in str(caught.value)
    assert not {name for name in set(sys.modules) - modules if name.startswith(("espnet", "torchaudio", "g2p"))}


def test_stand_ins_are_gone_after_the_import():
    before = set(sys.modules)
    with espnet._stand_ins():
        import tacotron_cleaner.cleaners  # noqa: F401

        assert "torchaudio.compliance.kaldi" in sys.modules
    assert set(sys.modules) == before


def test_requirements_are_pinned_and_torch_is_the_plain_version():
    lines = (ROOT / "requirements" / "espnet.txt").read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+", line) for line in requirements)
    assert "torch==2.13.0" in requirements


@pytest.mark.parametrize(
    ("part", "name"),
    [("frontend", "s3prl"), ("encoder", "hubert"), ("decoder", "hugging_face_transformers"), ("token_type", "phn")],
)
def test_parts_that_load_from_elsewhere_are_refused(part, name):
    espnet_files.check_config(CONFIG, Path("config.yaml"))
    with pytest.raises(ModelFormatError, match=f"config.yaml: {part} '{name}'"):
        espnet_files.check_config({**CONFIG, part: name}, Path("config.yaml"))


class _Payload:
    """Unpickled without restriction it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_names_code_is_refused_and_not_run(tmp_path):
    mark, path = tmp_path / "was-run", tmp_path / "model.pth"
    torch.save({"weight": torch.ones(2), "more": _Payload(mark)}, path)
    with pytest.raises(ModelFormatError, match=r"model\.pth.*could run code") as caught:
        espnet_files.read_weights(path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not weights at all"])
def test_damaged_weights_are_an_error_of_one_line(tmp_path, content):
    for name in ("model.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFormatError, match=name) as caught:
            espnet_files.read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_weights_are_read_from_both_forms(tmp_path):
    weights = {"a": torch.arange(3.0)}
    torch.save(weights, tmp_path / "model.pth")
    torch.save({"module": weights}, tmp_path / "deepspeed.pth")
    save_file(weights, tmp_path / "model.safetensors")
    for name in ("model.pth", "deepspeed.pth", "model.safetensors"):
        assert espnet_files.read_weights(tmp_path / name)["a"].tolist() == [0, 1, 2]
    torch.save({"epoch": 3, "model": weights}, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelFormatError, match=r"checkpoint\.pth"):
        espnet_files.read_weights(tmp_path / "checkpoint.pth")


def test_files_are_found_as_espnet_writes_them(tmp_path):
    folder = model_folder(tmp_path / "exp" / "asr")
    torch.save({}, folder / "checkpoint.pth")
    torch.save({}, folder / "3epoch.pth")
    assert espnet_files.find_files(folder).weights.name == "valid.acc.best.pth"
    (folder / "valid.acc.best.pth").unlink()
    assert espnet_files.find_files(folder).weights.name == "3epoch.pth"
    torch.save({}, folder / "4epoch.pth")
    with pytest.raises(ModelNotFoundError, match="2 ambiguous weight files"):
        espnet_files.find_files(folder)
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    assert espnet_files.find_files(folder).weights.name == "model.safetensors"
    meta = {
        "files": {"asr_model_file": "exp/asr/3epoch.pth"},
        "yaml_files": {"asr_train_config": "exp/asr/config.yaml"},
    }
    (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
    assert espnet_files.find_files(tmp_path).weights == folder / "3epoch.pth"
    (tmp_path / "meta.yaml").write_text("files: []")
    with pytest.raises(ModelFormatError, match=r"meta\.yaml"):
        espnet_files.find_files(tmp_path)


def test_a_moved_model_finds_its_own_files(tmp_path):
    folder = model_folder(
        tmp_path / "exp" / "asr",
        token_list="data/token_list/char/tokens.txt",
        normalize="global_mvn",
        normalize_conf={"stats_file": "exp/asr_stats/train/feats_stats.npz"},
    )
    files = espnet_files.find_files(folder)
    with pytest.raises(ModelFormatError, match=r"tokens\.txt"):
        espnet_files.read_config(files)
    (folder / "tokens.txt").write_text("<blank>\na\n")
    statistics = tmp_path / "exp" / "asr_stats" / "train" / "feats_stats.npz"
    statistics.parent.mkdir(parents=True)
    statistics.write_bytes(b"")
    config = espnet_files.read_config(files)
    assert config["token_list"] == ["<blank>", "a"]
    assert config["normalize_conf"]["stats_file"] == str(statistics)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "token_list: 3", "token_type: char"])
def test_a_configuration_of_another_kind_is_an_error_of_one_line(tmp_path, content):
    folder = model_folder(tmp_path)
    (folder / "config.yaml").write_text(content)
    with pytest.raises(ModelFormatError, match=r"config\.yaml") as caught:
        espnet_files.read_config(espnet_files.find_files(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.yaml", "valid.acc.best.pth"])
def test_missing_files_are_named(tmp_path, missing):
    folder = model_folder(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ModelNotFoundError):
        espnet_files.find_files(folder)
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        espnet_files.find_files(folder / "nowhere")


def test_repeats_and_marks_leave_the_list():
    tokenizer = SimpleNamespace(tokens2text="".join)
    results = [
        (None, [*tokens], [], SimpleNamespace(score=torch.tensor(score)))
        for tokens, score in [(["a"], -3.0), (["a", "<unk>"], -1.0), (["b"], -2.0), ([], -4.0), (["c"], -3e9)]
    ]
    found = espnet._distinct(results, tokenizer)
    assert [(hypothesis.text, hypothesis.score) for hypothesis in found] == [("a", -1.0), ("b", -2.0)]
    nothing = (None, ["<unk>"], [], SimpleNamespace(score=torch.tensor(-0.5)))
    assert espnet._distinct([*results, nothing], tokenizer) == []


def test_the_environment_script_protects_other_folders(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    script = ROOT / ".ci" / "espnet-env"
    outcome = subprocess.run([script, tmp_path], capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "not empty" in outcome.stderr
    assert (tmp_path / "thesis.txt").exists()
    assert subprocess.run([script], capture_output=True, check=False).returncode == 2


def test_the_environment_script_fails_where_it_cannot_build(tmp_path):
    environment = {**os.environ, "PYTHON": "/no/such/python"}
    command = [ROOT / ".ci" / "espnet-env", tmp_path / "new"]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0
    assert not (tmp_path / "new" / ".requirements-sha256").exists()


def write_manifest(folder: Path, count: int = 8) -> Path:
    """Write wav files of at most 5 s and their manifest, from the samples where there are enough, else made here."""
    rows = sorted(_sample_rows(), key=lambda row: row[2])[:count]
    if len(rows) < count or rows[-1][2] > 5:
        rows = [_synthetic_row(folder / f"{number}.wav", number) for number in range(count)]
    manifest = folder / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for path, text, duration_s in rows:
            row = {"audio_filepath": str(path), "duration": duration_s, "text": text}
            file.write(json.dumps(row) + "\n")
    return manifest


def _sample_rows() -> list[tuple[Path, str, float]]:
    """Return (file, normalized text, seconds) of the sample recordings."""
    samples = ROOT / "samples" / "speech"
    return [
        (row.audio_filepath, " ".join(re.findall("[a-z']+", (row.text or "").lower())), row.duration or 0.0)
        for row in read_manifest(samples / "manifest.jsonl")
    ]


def _synthetic_row(path: Path, number: int) -> tuple[Path, str, float]:
    """Write a sound that spells four words, a buzz of 0.12 s with its own pitch for each letter; return its row."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    text = " ".join(np.random.default_rng(number).permutation(words)[:4])
    time = np.arange(int(0.12 * SAMPLE_RATE)) / SAMPLE_RATE
    pitches_hz = [0.0 if letter == " " else 100.0 + 25 * (ord(letter) - ord("a")) for letter in text]
    buzzes = [sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 9)) for pitch in pitches_hz]
    waveform = (0.1 * np.concatenate(buzzes)).astype(np.float32)
    soundfile.write(path, waveform, SAMPLE_RATE)
    return path, text, len(waveform) / SAMPLE_RATE


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    "AUDIO_LLM_ESPNET_PYTHON" not in os.environ,
    reason="AUDIO_LLM_ESPNET_PYTHON names no interpreter; .ci/espnet-env DIR builds one in DIR/bin/python",
)
def test_a_conformer_is_trained_and_decoded_to_a_list(tmp_path):
    manifest = write_manifest(tmp_path)
    (tmp_path / "model").mkdir()
    command = [os.environ["AUDIO_LLM_ESPNET_PYTHON"], WORKER, manifest, tmp_path / "model"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    seen = json.loads(outcome.stdout.splitlines()[-1])

    assert 300_000 < seen["parameters"] < 800_000
    assert seen["losses"][-1] < 0.5 * seen["losses"][0]
    assert seen["id"] == "first"
    assert len(set(seen["texts"])) == len(seen["texts"]) == 5
    assert np.isfinite(seen["scores"]).all()
    assert seen["scores"] == sorted(seen["scores"], reverse=True)
    # teacher forcing against the beam; a hypothesis that ends in a space has another score than its tidy text
    same = [abs(a - b) < 1e-2 for a, b in zip(seen["rescored"], seen["scores"], strict=True)]
    assert same[0]
    assert sum(same) >= 4
    assert seen["other_sound"][0] < seen["scores"][0]
    unknown, upper_case, empty, too_long = seen["unknown"]
    assert (unknown, empty, too_long) == (None, None, None)
    assert upper_case == pytest.approx(seen["scores"][0], abs=1e-2)
    assert seen["wide"] == seen["texts"][0]  # a beam wider than the vocabulary does no harm
    right = sum(best == reference for best, reference in zip(seen["bests"], seen["references"], strict=True))
    assert right >= 4  # it was trained on these very sounds
    assert seen["silent"] == 0
    assert seen["short"] <= 5
    assert seen["version"].startswith("espnet-2")

    errors = seen["errors"]
    assert errors["ran"] == "False"
    assert "could run code" in errors["code"]
    assert "weights are missing" in errors["incomplete"]
    assert "hubert" in errors["elsewhere"]
    assert "cannot build" in errors["unbuildable"]
    assert all(errors[name].startswith("ModelFormatError") for name in ("code", "incomplete", "elsewhere"))
