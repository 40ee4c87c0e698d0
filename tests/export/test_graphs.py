"""What makes graphs small: few operations for the extractor's step, formulas for tables, weights in half precision."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.frames import CHUNK


@pytest.mark.parametrize(
    "config",
    [
        ExtractorConfig(channels=8, hidden=8, blocks=2, stride=2, embedding=0, outputs=3, front=True),
        ExtractorConfig(channels=8, hidden=6, blocks=1, stride=5, context=1, kernel=3, embedding=4, outputs=1),
        ExtractorConfig(8, 6, 2, 4, kernel=0, embedding=0, outputs=3, front=True, recurrence="linear", window=576),
    ],
    ids=["separates", "conditioned", "linear recurrence and long window"],
)
def test_few_operations_do_the_extractors_step(config: ExtractorConfig) -> None:
    from audio_llm_export.extractor_step import ExtractorStep

    torch.manual_seed(0)
    extractor = Extractor(config).eval()
    step = ExtractorStep(extractor)
    state = extractor.initial_state()
    states = list(step.states(state).values())
    film = extractor.condition(torch.randn(1, config.embedding)) if config.embedding else None
    with torch.inference_mode():
        for _ in range(10):
            chunk = 0.1 * torch.randn(1, 2, CHUNK)
            expected, state = extractor.step(chunk, film, state)
            actual, states = step(chunk, None if film is None else film[0], *states)
            torch.testing.assert_close(actual, expected[0].flatten(0, 1), atol=1e-6, rtol=1e-4)
    for expected, actual in zip(step.states(state).values(), states, strict=True):
        torch.testing.assert_close(expected, actual, atol=1e-5, rtol=1e-4)


def one_table(table: np.ndarray) -> onnx.ModelProto:
    rows = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, table.shape[0]])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, table.shape[1]])
    node = helper.make_node("MatMul", ["x", "table"], ["y"])
    graph = helper.make_graph([node], "one", [rows], [output], [numpy_helper.from_array(table, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def transform(inverse: bool) -> np.ndarray:
    length = 192
    turns = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length
    table = np.concatenate([np.cos(turns), -np.sin(turns)], axis=1) * np.hanning(length)[:, None]
    if inverse:
        weight = np.full(length // 2 + 1, 2.0)
        weight[[0, -1]] = 1.0
        table = (table * np.tile(weight, 2) / length).T
    return table.astype(np.float32)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_transform_becomes_a_formula(inverse: bool) -> None:
    from audio_llm_export.tables import store_tables

    table = transform(inverse)
    model = one_table(table)
    store_tables(model.graph)
    assert model.ByteSize() < 10_000 < table.nbytes
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rows = np.eye(len(table), dtype=np.float32)
    actual = np.concatenate([session.run(None, {"x": row[None]})[0] for row in rows])
    np.testing.assert_allclose(actual, table, atol=3e-7)


def test_another_table_stays() -> None:
    from audio_llm_export.tables import store_tables

    table = transform(False)
    table[3, 5] += 1e-3
    model = one_table(table)
    store_tables(model.graph)
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), table)


def test_only_exact_tensors_are_stored_in_half_precision() -> None:
    from audio_llm_export.half_precision import store_half_precision

    exact = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float16).astype(np.float32)
    for table, halved in ((exact, True), (exact + np.float32(1e-5), False), (exact[:4, :4], False)):
        model = one_table(table)
        store_half_precision(model.graph)
        assert (model.graph.initializer[0].data_type == onnx.TensorProto.FLOAT16) is halved
        session = onnxruntime.InferenceSession(model.SerializeToString())
        rows = np.eye(len(table), dtype=np.float32)
        assert np.array_equal(np.concatenate([session.run(None, {"x": row[None]})[0] for row in rows]), table)
