"""One torch module to one ONNX file: opset 17, weights in half precision, DFT matrices as formulas."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from audio_llm_export.half_precision import store_half_precision
from audio_llm_export.tables import store_tables

OPSET = 17


def to_onnx(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    unit: int | None = None,
) -> None:
    """Write a module as an ONNX file.

    Args:
        module: The module; a weight that is not exact in half precision stays float32.
        examples: One example tensor per input.
        path: The file to write.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        dynamic: Axes of free length and their names, by the input's name.
        unit: Sizes that are multiples of it are made free, since tracing turns some sizes into constants.
    """
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # about tracing: constant shapes are intended
        torch.onnx.export(
            module.eval(),
            examples,
            buffer,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in (dynamic or {}).items()},
            opset_version=OPSET,
            dynamo=False,  # this exporter keeps a length free, and is faster
            do_constant_folding=False,  # folded weights would not be exact in half precision
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    if unit is not None:
        _set_free(model, unit, examples)
    _remove_unused(model.graph)
    _merge_constants(model.graph)
    _take_from_stacks(model.graph)
    store_tables(model.graph)
    store_half_precision(model.graph)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def open_session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """Return a single-threaded session, as on a device."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _set_free(model: onnx.ModelProto, unit: int, examples: Sequence[Tensor]) -> None:
    """Have onnxruntime infer each size of a Reshape that is a multiple of `unit`, as no other size is."""
    traced = copy.deepcopy(model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Reshape"]
    traced.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = {entry.name: example.numpy() for entry, example in zip(model.graph.input, examples, strict=True)}
    sizes = {name: value.shape for name, value in zip(names, open_session(traced).run(names, feeds), strict=True)}
    for node in model.graph.node:
        shape = sizes.get(node.output[0], ())
        if sum(length % unit == 0 for length in shape) != 1:
            continue
        free = np.array([-1 if length % unit == 0 else length for length in shape])
        node.input[1] = f"{node.output[0]}.shape"
        model.graph.initializer.append(numpy_helper.from_array(free, node.input[1]))


def _remove_unused(graph: onnx.GraphProto) -> None:
    needed = {output.name for output in graph.output}
    used = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            used.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(used))
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _merge_constants(graph: onnx.GraphProto) -> None:
    """Store each constant once, among the initializers."""
    names: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            value = node.attribute[0].t
            key = (value.data_type, tuple(value.dims), numpy_helper.to_array(value).tobytes())
            if key not in names:
                names[key] = value.name = f"constant_{len(names)}"
                graph.initializer.append(value)
            renamed[node.output[0]] = names[key]
        else:
            nodes.append(node)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def _take_from_stacks(graph: onnx.GraphProto) -> None:
    """Replace an element taken from a stack by the tensor that was stacked."""
    makers = {output: node for node in graph.node for output in node.output}
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        stack = makers.get(node.input[0]) if node.op_type == "Gather" else None
        if stack is None or stack.op_type != "Concat" or _axis(node) or _axis(stack):
            continue
        index, parts = numbers.get(node.input[1]), [makers.get(name) for name in stack.input]
        single = [part for part in parts if part is not None and part.op_type == "Unsqueeze"]
        if index is None or index.ndim or len(single) != len(parts):
            continue
        if all(not numbers.get(part.input[1], np.ones(1)).any() for part in single):
            taken = helper.make_node("Identity", single[int(index)].input[:1], node.output, name=node.name)
            node.CopyFrom(taken)
    _remove_unused(graph)


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
