"""Small ONNX graphs with the inputs and outputs of networks that others have published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

FLOAT, INT32, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64


def build_s3(
    path: Path,
    stride: int = 4,
    size: int = 6561,
    positions: bool = False,
    shape: tuple[int, ...] = (1, -1),
    bands: int | str = 128,
    length_type: int = INT32,
    offset: int = 0,
    as_float: bool = False,
) -> Path:
    """Save a graph that gives one number every `stride` frames, counted from the first.

    Args:
        path: The file.
        stride: Frames.
        size: Numbers are below it.
        positions: Whether a number says how many came before it, in place of how loud the 20th band is.
        shape: Of the output.
        bands: Of the features that it takes.
        length_type: Of the length that it takes.
        offset: Added to every number.
        as_float: Whether the numbers are floats.
    """
    node, constant = onnx.helper.make_node, onnx.helper.make_tensor

    def whole(name: str, *values: int) -> Any:
        return constant(name, INT64, [len(values)], values)

    constants = [
        *(whole(name, value) for name, value in (("zero", 0), ("two", 2), ("stride", stride), ("twenty", 20))),
        *(whole("twenty-one", 21), whole("far", 1 << 40), whole("shape", *shape), whole("offset", offset)),
        *(whole("first", 0), whole("size", size), constant("scale", FLOAT, [], [1000.0])),
        *(constant("nought", INT64, [], [0]), constant("one", INT64, [], [1])),
    ]
    every = [
        node("Slice", ["feats", "twenty", "twenty-one", "one-axis"], ["band"]),
        node("Slice", ["band", "first", "far", "two", "stride"], ["some"]),
        node("Mul", ["some", "scale"], ["loud"]),
        node("Abs", ["loud"], ["positive"]),
        node("Cast", ["positive"], ["loudness"], to=INT64),
        node("Shape", ["some"], ["sizes"]),
        node("Gather", ["sizes", "two-scalar"], ["count"], axis=0),
        node("Range", ["nought", "count", "one"], ["order"]),
        node("Shape", ["feats"], ["all-sizes"]),
        node("Gather", ["all-sizes", "two-scalar"], ["frames"], axis=0),
        node("Cast", ["feats_length"], ["length"], to=INT64),
        node("Sub", ["length", "frames"], ["wrong"]),  # 0 where the length that is given is the right one
        node("Add", ["order" if positions else "loudness", "wrong"], ["sum"]),
        node("Mod", ["sum", "size"], ["small"]),
        node("Add", ["small", "offset"], ["moved"]),
        node("Reshape", ["moved", "shape"], ["shaped"]),
        node("Cast", ["shaped"], ["indices"], to=FLOAT if as_float else INT32),
    ]
    constants += [whole("one-axis", 1), constant("two-scalar", INT64, [], [2])]
    inputs = [
        onnx.helper.make_tensor_value_info("feats", FLOAT, [1, bands, "T"]),
        onnx.helper.make_tensor_value_info("feats_length", length_type, [1]),
    ]
    outputs = [onnx.helper.make_tensor_value_info("indices", FLOAT if as_float else INT32, None)]
    graph = onnx.helper.make_graph(every, "tokenizer", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def build_campplus(path: Path, bands: int | str = 80, width: int = 192, inputs: int = 1, finite: bool = True) -> Path:
    """Save a graph that mixes how loud each band is on average, and how much it moves.

    Args:
        path: The file.
        bands: Of the features that it takes.
        width: Numbers that it gives.
        inputs: How many it takes.
        finite: Whether what it gives is finite.
    """
    node, constant = onnx.helper.make_node, onnx.helper.make_tensor
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((80 if bands == "C" else int(bands), width)).astype(np.float32)
    constants = [
        constant("mix", FLOAT, mix.shape, mix.ravel()),
        constant("axis", INT64, [1], [1]),
        constant("scale", FLOAT, [], [1.0 if finite else float("inf")]),
    ]
    nodes = [
        node("Abs", ["fbank"], ["sizes"]),
        node("ReduceMean", ["sizes", "axis"], ["moves"], keepdims=0),
        node("MatMul", ["moves", "mix"], ["mixed"]),
        node("Mul", ["mixed", "scale"], ["embedding"]),
    ]
    given = [onnx.helper.make_tensor_value_info("fbank", FLOAT, ["B", "T", bands])]
    given += [onnx.helper.make_tensor_value_info(f"more{n}", FLOAT, [1]) for n in range(inputs - 1)]
    outputs = [onnx.helper.make_tensor_value_info("embedding", FLOAT, None)]
    graph = onnx.helper.make_graph(nodes, "speaker", given, outputs, constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path
