"""Tiny models with a contract, whose every output sample can be predicted."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[2] / "realtime"
if str(PACKAGE) not in sys.path:  # the device's package is installed separately from the library
    sys.path.insert(0, str(PACKAGE))

RATE, CHUNK, LOOKAHEAD, WIDTH = 16_000, 128, 64, 4


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model directory; its keywords change the contract."""

    def make(name: str = "model", conditioned: bool = True, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        hashes = {file: write_network(folder / file, conditioned) for file in ("tse.onnx", "enrolment.onnx")}
        if not conditioned:
            changes = {"stream__conditions": [], "enrolment": None, **changes}
        contract = {
            "format": "audio-llm-hearing",
            "version": 2,
            "sample_rate": RATE,
            "channels": 2,
            "chunk_samples": CHUNK,
            "lookahead_samples": LOOKAHEAD,
            "latency_samples": CHUNK + LOOKAHEAD,
            "model": {"name": f"tiny-{name}", "fingerprint": "0" * 64},
            "stream": {
                "file": "tse.onnx",
                "sha256": hashes["tse.onnx"],
                "chunk": {"name": "chunk", "shape": [1, 2, CHUNK]},
                "conditions": [{"name": "enrolled", "shape": [1, WIDTH]}],
                "sound": {"name": "sound", "shape": [1, 2, CHUNK]},
                "states": [
                    {"input": "tail", "output": "next_tail", "shape": [1, 2, LOOKAHEAD]},
                    {"input": "level", "output": "next_level", "shape": [1, 1, 1]},
                ],
                "initial": "zeros",
            },
            "enrolment": {
                "file": "enrolment.onnx",
                "sha256": hashes["enrolment.onnx"],
                "look": {"name": "look", "shape": [1, 2, None]},
                "vector": {"name": "enrolled", "shape": [1, WIDTH]},
                "front": {"name": "front_db", "shape": [1]},
                "least_front_db": -20.0,
                "least_samples": RATE,
                "most_samples": 2 * RATE,
            },
            "versions": {"torch": "0"},
        }
        for path, value in changes.items():
            *parents, key = path.split("__")
            part: Any = contract
            for parent in parents:
                part = part[parent]
            part[key] = value
        (folder / "tse.json").write_text(json.dumps(contract), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def contract(make_model: Callable[..., Path]) -> Any:
    """Return the contract of a tiny model."""
    from audio_llm_realtime.contract import load_contract

    return load_contract(make_model())


@pytest.fixture
def make_engine(contract: Any) -> Callable[..., Any]:
    """Return a function that makes an engine which delays by 64 samples and adds `memory` of its state.

    With memory, every sample depends on all chunks that came before.
    """
    pytest.importorskip("onnxruntime")
    from audio_llm_realtime.engine import Engine

    def make(gain: float = 1.0, memory: float = 0.0, **options: Any) -> Any:
        engine = Engine(contract, warm_up=2, **options)
        engine.set_conditions(np.array([gain, memory, 0, 0], np.float32))
        return engine

    return make


@pytest.fixture
def sound() -> np.ndarray:
    """Return one second of binaural noise, 125 chunks."""
    noise = np.random.default_rng(3).standard_normal((2, RATE))
    return np.clip(0.1 * noise, -0.5, 0.5).astype(np.float32)


def write_network(path: Path, conditioned: bool = True) -> str:
    """Write one of the two networks; return its hash.

    tse.onnx: sound = gain x input 64 samples before + memory x level; level = level before / 2 + mean of the chunk.
    enrolment.onnx: enrolled = [1, 0, mean of the recording, 0]; front_db = that mean in percent.
    """
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def port(name: str, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def numbers(name: str, values: Any, of: Any = np.float32) -> Any:
        return onnx.numpy_helper.from_array(np.asarray(values, of), name)

    node = helper.make_node
    if path.name == "tse.onnx":
        nodes = [
            node("Split", ["chunk", "halves"], ["first", "next_tail"], axis=2),
            node("Concat", ["tail", "first"], ["late"], axis=2),
            node("Split", ["enrolled"], ["gain", "memory", "a", "b"], axis=1, num_outputs=4),
            node("ReduceMean", ["chunk", "axes"], ["mean"], keepdims=1),
            node("Mul", ["level", "half"], ["decayed"]),
            node("Add", ["decayed", "mean"], ["next_level"]),
            node("Mul", ["late", "gain"], ["amplified"]),
            node("Mul", ["next_level", "memory"], ["remembered"]),
            node("Add", ["amplified", "remembered"], ["sound"]),
        ]
        inputs = [port("chunk", 1, 2, CHUNK), port("enrolled", 1, WIDTH)]
        inputs += [port("tail", 1, 2, LOOKAHEAD), port("level", 1, 1, 1)]
        outputs = [port("next_level", 1, 1, 1), port("sound", 1, 2, CHUNK), port("next_tail", 1, 2, LOOKAHEAD)]
        constants = [
            numbers("halves", [64, 64], np.int64),
            numbers("axes", [1, 2], np.int64),
            numbers("half", [[[0.5]]]),
        ]
        if not conditioned:  # sound = input 64 samples before
            nodes = [*nodes[:2], *nodes[3:6], node("Identity", ["late"], ["sound"])]
            del inputs[1]
    else:
        nodes = [
            node("ReduceMean", ["look", "axes"], ["mean"], keepdims=0),
            node("Reshape", ["mean", "form"], ["column"]),
            node("Concat", ["front", "column", "back"], ["enrolled"], axis=1),
            node("Mul", ["mean", "hundred"], ["percent"]),
            node("Reshape", ["percent", "single"], ["front_db"]),
        ]
        inputs, outputs = [port("look", 1, 2, None)], [port("enrolled", 1, WIDTH), port("front_db", 1)]
        constants = [numbers("axes", [1, 2], np.int64), numbers("form", [1, 1], np.int64)]
        constants += [numbers("front", [[1.0, 0.0]]), numbers("back", [[0.0]])]
        constants += [numbers("hundred", 100.0), numbers("single", [1], np.int64)]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """Restore them: a session that treats them as zero does so for all code of the thread that opened it."""
    yield
    torch.set_flush_denormal(False)
