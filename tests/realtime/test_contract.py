"""The contract: what does not match is refused, and the message says what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from audio_llm_realtime.contract import Port, check_ports, load_contract
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrollment import Enroller
from audio_llm_realtime.errors import ContractError, ModelNotFoundError


def test_contract_is_read(make_model: Callable[..., Path]) -> None:
    contract = load_contract(make_model())
    assert (contract.sample_rate, contract.chunk_samples, contract.lookahead_samples) == (16_000, 128, 64)
    assert (contract.chunk_ms, contract.lookahead_ms) == (8.0, 4.0)
    assert [port.name for port in contract.stream.inputs] == ["chunk", "enrolled", "tail", "level"]
    assert contract.enrollment is not None
    assert contract.enrollment.recording.shape == (1, 2, None)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 1}, "version is 1, not 2"),
        ({"channels": 1}, "channels is 1, not 2"),
        ({"latency_samples": 128}, "latency_samples"),
        ({"lookahead_samples": 256, "latency_samples": 384}, "lookahead_samples is more"),
        ({"sample_rate": "16k"}, "sample_rate is '16k'"),
        ({"model__name": ""}, "model.name is ''"),
        ({"stream__chunk__shape": [1, 2, 64]}, "stream.chunk.shape is [1, 2, 64]"),
        ({"stream__initial": "ones"}, "stream.initial is 'ones'"),
        ({"stream__file": "../tse.onnx"}, "stream.file is '../tse.onnx'"),
        ({"stream__states": {}}, "stream.states is not a list"),
        ({"stream__states": [{"input": "tail", "output": "x", "shape": [1, None, 64]}]}, "stream.states[0].shape"),
        ({"stream__states": [{"input": "chunk", "output": "x", "shape": [1]}]}, "one name twice"),
        ({"enrolment__vector__shape": [1, 9]}, "enrolment.vector.shape is [1, 9]"),
        ({"enrolment__look__shape": [1, 1, None]}, "enrolment.look.shape"),
        ({"enrolment__front__shape": [1, 1]}, "enrolment.front.shape is [1, 1]"),
        ({"enrolment__least_front_db": "low"}, "enrolment.least_front_db is 'low', not a number"),
        ({"enrolment__least_front_db": float("nan")}, "enrolment.least_front_db is nan, not a number"),
        ({"enrolment__most_samples": 10}, "enrolment.most_samples"),
    ],
)
def test_contract_that_contradicts_itself_is_refused(
    make_model: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    folder = make_model(**changes)
    with pytest.raises(ContractError) as caught:
        load_contract(folder)
    assert message in str(caught.value)
    assert caught.value.path == folder / "tse.json"
    assert caught.value.exit_status == 3


def test_missing_key_is_named(make_model: Callable[..., Path]) -> None:
    path = make_model() / "tse.json"
    content = json.loads(path.read_text())
    del content["stream"]["sound"]
    path.write_text(json.dumps(content))
    with pytest.raises(ContractError, match=r"stream\.sound is missing"):
        load_contract(path.parent)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_contract_that_is_no_object_is_refused(make_model: Callable[..., Path], text: str) -> None:
    path = make_model() / "tse.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ContractError):
        load_contract(path.parent)


def test_missing_files_are_named(make_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no tse\.json"):
        load_contract(tmp_path)
    folder = make_model()
    (folder / "tse.onnx").unlink()
    (folder / "enrolment.onnx").unlink()
    for use in (Engine, Enroller):
        with pytest.raises(ModelNotFoundError, match=r"\.onnx: this file of the model is missing"):
            use(load_contract(folder))


def test_file_that_was_changed_is_refused(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    with (folder / "tse.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ContractError, match="sha256 differs"):
        Engine(load_contract(folder))


@pytest.mark.parametrize(
    "states, message",
    [
        ([("tail", "next_tail", [1, 2, 64])], "'level' is not in tse.json"),
        ([("tail", "next_tail", [1, 2, 64]), ("level", "next_level", [1, 1, 2])], "'level' has the shape [1, 1, 1]"),
        ([("tail", "next_tail", [1, 2, 64]), ("loud", "next_level", [1, 1, 1])], "no input 'loud'"),
        ([("tail", "next_tail", [1, 2, 64]), ("level", "next_loud", [1, 1, 1])], "no output 'next_loud'"),
    ],
)
def test_network_with_other_states_is_refused(
    make_model: Callable[..., Path], states: list[tuple[str, str, list[int]]], message: str
) -> None:
    pytest.importorskip("onnxruntime")
    listed = [dict(zip(("input", "output", "shape"), state, strict=True)) for state in states]
    with pytest.raises(ContractError) as caught:
        Engine(load_contract(make_model(stream__states=listed)))
    assert message in str(caught.value)


def test_size_that_the_network_leaves_free_fits_any() -> None:
    def actual_ports(*shape: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="vector", shape=list(shape), type="tensor(float)")]

    stated, path = [Port("vector", (1, 4))], Path("x.onnx")
    check_ports(path, "output", stated, actual_ports("batch", 4))
    for shape in ((1, 5), (1,), (1, 4, 1)):
        with pytest.raises(ContractError, match="'vector' has the shape"):
            check_ports(path, "output", stated, actual_ports(*shape))
    with pytest.raises(ContractError, match="has the shape"):  # a fixed size does not take what may have any
        check_ports(path, "input", [Port("vector", (1, None))], actual_ports(1, 4))
    with pytest.raises(ContractError, match=r"tensor\(double\), not float32"):
        check_ports(path, "input", stated, [SimpleNamespace(name="vector", shape=[1, 4], type="tensor(double)")])


def test_file_that_is_no_network_is_refused(make_model: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    hash_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    folder = make_model(stream__sha256=hash_of_nothing)
    (folder / "tse.onnx").write_bytes(b"")
    with pytest.raises(ContractError, match="not a network that runs here"):
        Engine(load_contract(folder))


def test_order_of_states_does_not_matter(make_model: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    import numpy as np

    states = [{"input": "tail", "output": "next_tail", "shape": [1, 2, 64]}]
    states.insert(0, {"input": "level", "output": "next_level", "shape": [1, 1, 1]})
    chunk = np.random.default_rng(0).standard_normal((2, 128)).astype(np.float32)
    outs = []
    for name, changes in (("a", {}), ("b", {"stream__states": states})):
        engine = Engine(load_contract(make_model(name, **changes)), warm_up=1)
        engine.set_conditions(np.array([0.5, 0.5, 0, 0]))
        outs.append([engine.process(chunk) for _ in range(3)])
    np.testing.assert_array_equal(*outs)
