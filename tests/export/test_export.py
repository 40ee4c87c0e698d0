"""Exported models: the graphs compute what the networks do, the contract describes them, a mismatch writes nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from audio_llm import cli, hub
from audio_llm.errors import ParityError, UsageError
from audio_llm.tse.frames import CHUNK
from audio_llm.tse.gridnet import GridNet, GridNetConfig
from audio_llm.tse.models import load_model

LOUD = 0.1


def contract_of(folder: Path) -> dict[str, Any]:
    contract: dict[str, Any] = json.loads((folder / "tse.json").read_text())
    return contract


class Device:
    """Runs a stream as the contract says."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.part = contract_of(folder)["stream"]
        self.session = onnxruntime.InferenceSession(str(folder / self.part["file"]))
        (condition,) = self.part["conditions"]
        self.condition = {condition["name"]: some_vector(condition["shape"][1], seed)}
        self.states = {state["input"]: np.zeros(state["shape"], np.float32) for state in self.part["states"]}

    def step(self, chunk: np.ndarray, order: np.random.Generator | None = None) -> np.ndarray:
        names = [output.name for output in self.session.get_outputs()]
        if order is not None:
            order.shuffle(names)
        feeds = {self.part["chunk"]["name"]: chunk, **self.condition, **self.states}
        outputs = dict(zip(names, self.session.run(names, feeds), strict=True))
        self.states = {state["input"]: outputs[state["output"]] for state in self.part["states"]}
        return outputs[self.part["sound"]["name"]]

    def run(self, sound: np.ndarray) -> np.ndarray:
        return np.concatenate([self.step(chunk) for chunk in np.split(sound, sound.shape[-1] // CHUNK, axis=-1)], -1)


def some_vector(width: int = 256, seed: int = 0) -> np.ndarray:
    vector = np.random.default_rng(seed).random((1, width), np.float32)
    return vector / np.linalg.norm(vector)


def some_sound(chunks: int, seed: int = 0) -> np.ndarray:
    return LOUD * np.random.default_rng(seed).standard_normal((1, 2, chunks * CHUNK)).astype(np.float32)


def test_stream_gives_what_the_network_gives_for_whole_mixtures(model_folder: Path, exported: Path) -> None:
    sound = some_sound(200)
    with torch.inference_mode():
        output = load_model(model_folder).network(torch.from_numpy(sound), torch.from_numpy(some_vector()))
    expected = output.sound.numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(Device(exported).run(sound), expected, atol=1e-4)


@pytest.mark.parametrize("samples", [16_000, 16_127, 40_000, 160_000])
def test_enrollments_of_any_length_give_the_networks_vector(model_folder: Path, exported: Path, samples: int) -> None:
    recording = some_sound(-(-samples // CHUNK))[..., :samples]
    with torch.inference_mode():
        whole = torch.from_numpy(recording[..., : samples // CHUNK * CHUNK])
        expected = load_model(model_folder).enrollment_encoder(whole).numpy()
    vector = onnxruntime.InferenceSession(str(exported / "enrolment.onnx")).run(["enrolled"], {"look": recording})[0]
    np.testing.assert_allclose(vector, expected, atol=1e-4)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4)


def test_contract_describes_the_files(model_folder: Path, exported: Path) -> None:
    contract = contract_of(exported)
    assert (contract["format"], contract["version"]) == ("audio-llm-hearing", 2)
    numbers = ("sample_rate", "channels", "chunk_samples", "lookahead_samples", "latency_samples")
    assert [contract[name] for name in numbers] == [16_000, 2, 128, 64, 192]
    assert contract["model"] == {"name": "tiny", "fingerprint": hub.fingerprint(model_folder)}
    assert set(contract["versions"]) == {"torch", "onnx", "audio_llm"}
    stream, enrolment = contract["stream"], contract["enrolment"]
    for part in (stream, enrolment):
        assert hashlib.sha256((exported / part["file"]).read_bytes()).hexdigest() == part["sha256"]
    session = onnxruntime.InferenceSession(str(exported / stream["file"]))
    ports = [stream["chunk"], *stream["conditions"], *({**s, "name": s["input"]} for s in stream["states"])]
    assert {i.name: (i.shape, i.type) for i in session.get_inputs()} == {
        port["name"]: (port["shape"], "tensor(float)") for port in ports
    }
    ports = [stream["sound"], *({**state, "name": state["output"]} for state in stream["states"])]
    assert {o.name: (o.shape, o.type) for o in session.get_outputs()} == {
        port["name"]: (port["shape"], "tensor(float)") for port in ports
    }
    session = onnxruntime.InferenceSession(str(exported / enrolment["file"]))
    assert [i.name for i in session.get_inputs()] == [enrolment["look"]["name"]]
    assert [o.name for o in session.get_outputs()] == [enrolment["vector"]["name"], enrolment["front"]["name"]]
    assert enrolment["least_front_db"] == -17.5
    assert enrolment["look"]["shape"] == [1, 2, None]
    assert (enrolment["least_samples"], enrolment["most_samples"]) == (16_000, 160_000)
    for name in (stream["file"], enrolment["file"]):
        assert [domain.version for domain in onnx.load(exported / name).opset_import] == [17]


def test_every_state_changes_and_zeros_start_again(exported: Path) -> None:
    device = Device(exported)
    assert device.part["initial"] == "zeros"
    sound = some_sound(3)
    first = device.run(sound)
    assert all(np.abs(state).max() > 0 for state in device.states.values())
    assert not np.array_equal(device.run(sound), first)
    assert np.array_equal(Device(exported).run(sound), first)


def test_order_of_outputs_does_not_matter(exported: Path) -> None:
    sound, order = some_sound(8), np.random.default_rng(0)
    device = Device(exported)
    outputs = [device.step(chunk, order) for chunk in np.split(sound, 8, axis=-1)]
    assert np.array_equal(np.concatenate(outputs, axis=-1), Device(exported).run(sound))


def test_two_streams_taken_in_turn_do_not_mix(exported: Path) -> None:
    sounds = [some_sound(12, seed) for seed in (1, 2)]
    alone = [Device(exported, seed).run(sound) for seed, sound in enumerate(sounds)]
    devices = [Device(exported, seed) for seed in (0, 1)]
    streams: list[list[np.ndarray]] = [[], []]
    for number in range(12):
        for outputs, device, sound in zip(streams, devices, sounds, strict=True):
            outputs.append(device.step(sound[..., number * CHUNK : (number + 1) * CHUNK]))
    for outputs, expected in zip(streams, alone, strict=True):
        assert np.array_equal(np.concatenate(outputs, axis=-1), expected)


def test_sizes_of_a_devices_blocks_do_not_matter(exported: Path) -> None:
    sound, random = some_sound(40), np.random.default_rng(0)
    device, waiting, outputs = Device(exported), np.zeros((1, 2, 0), np.float32), []
    rest = sound
    while rest.shape[-1]:
        size = int(random.integers(1, 700))
        waiting, rest = np.concatenate([waiting, rest[..., :size]], axis=-1), rest[..., size:]
        while waiting.shape[-1] >= CHUNK:
            outputs.append(device.step(waiting[..., :CHUNK]))
            waiting = waiting[..., CHUNK:]
    assert np.array_equal(np.concatenate(outputs, axis=-1), Device(exported).run(sound))


def test_future_samples_change_nothing_before_their_lookahead(exported: Path) -> None:
    sound = some_sound(20)
    changed = sound.copy()
    changed[..., 1500:] += LOUD
    one, two = Device(exported).run(sound), Device(exported).run(changed)
    first = int(np.abs(one - two).max(axis=(0, 1)).nonzero()[0][0])
    assert 1500 - 192 < first <= 1500 + 64


def test_the_target_speaker_matters(exported: Path) -> None:
    sound = some_sound(20)
    assert np.abs(Device(exported, 0).run(sound) - Device(exported, 1).run(sound)).max() > 1e-6


def test_weights_are_stored_in_half_precision_without_loss(model_folder: Path, exported: Path) -> None:
    graph = onnx.load(exported / "tse.onnx").graph
    halves = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16
    }
    weights = [part.numpy() for part in load_model(model_folder).network.state_dict().values() if part.numel() >= 256]
    stored = [values.astype(np.float32) for values in halves.values()]
    assert [name for name in halves if "front" in name] == []  # the enrollment head is not exported here
    used = [w for w in weights if any(w.shape == s.shape and np.array_equal(w, s) for s in stored)]
    assert sum(map(np.size, used)) > 0.8 * sum(map(np.size, weights))
    large = [tensor.name for tensor in graph.initializer if tensor.ByteSize() > 40_000 and tensor.name not in halves]
    assert large == []  # the filters of mel bands are below


def test_weights_that_are_not_exact_in_half_precision_are_rounded_and_reported(
    model_folder: Path, tmp_path: Path
) -> None:
    from audio_llm_export import export_gridnet

    torch.manual_seed(0)
    gridnet = GridNet(GridNetConfig(channels=8, hidden=6, blocks=2, heads=2, window=5)).eval()
    assert not export_gridnet(gridnet, tmp_path / "one").lossless
    assert export_gridnet(gridnet.half().float(), tmp_path / "two").lossless


def test_the_reference_is_exported_under_the_same_contract(tmp_path: Path) -> None:
    from audio_llm_export import export_gridnet

    torch.manual_seed(0)
    gridnet = GridNet(GridNetConfig(channels=8, hidden=6, blocks=2, heads=2, window=5)).half().float().eval()
    folder = export_gridnet(gridnet, tmp_path / "gridnet").folder
    contract = contract_of(folder)
    assert contract["enrolment"] is None
    assert contract["model"]["name"] == "tse-gridnet"
    assert contract["stream"]["conditions"] == [{"name": "embedding", "shape": [1, 256]}]
    sound = some_sound(12)
    with torch.inference_mode():
        expected = gridnet(torch.from_numpy(sound), torch.from_numpy(some_vector()))[:, 0].numpy()
    np.testing.assert_allclose(Device(folder).run(sound), expected, atol=1e-4)


def test_a_graph_that_differs_is_not_written(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audio_llm_export import export_tse
    from audio_llm_export.extractor_step import ExtractorStep

    right = ExtractorStep._filter
    monkeypatch.setattr(ExtractorStep, "_filter", lambda self, x, spectra: 1.01 * right(self, x, spectra))
    with pytest.raises(ParityError, match=r"tse\.onnx: differs from the trained network"):
        export_tse(model_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_differs_is_detected(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audio_llm_export import export_tse
    from audio_llm_export.extractor_step import ExtractorStep

    right = ExtractorStep._features
    monkeypatch.setattr(ExtractorStep, "_features", lambda self, *spectra: right(self, *spectra) + 1e-3)
    with pytest.raises(ParityError, match="its states by"):
        export_tse(model_folder, tmp_path / "out")


def test_command_writes_8_bits_and_asks_before_it_replaces(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "tse", "-o", str(tmp_path / "out"), "--model", str(model_folder), "--int8"]
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    names = ["enrolment.onnx", "tse.int8.onnx", "tse.onnx", "tse.json"]
    assert shown.out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert "with 8-bit weights" in shown.err
    contract = contract_of(tmp_path / "out")
    assert contract["stream"]["file"] == "tse.int8.onnx"
    loud = Device(tmp_path / "out").run(some_sound(20))
    assert np.isfinite(loud).all()
    assert np.abs(loud).max() > 0.01
    assert cli.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "-q"]) == 0


def test_a_file_instead_of_the_folder_and_a_missing_model_are_reported(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from audio_llm_export import export_tse

    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        export_tse(model_folder, tmp_path / "file")
    assert cli.main(["export", "tse", "-o", str(tmp_path / "out"), "--model", "no-such-model"]) == 3
    assert "no-such-model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
