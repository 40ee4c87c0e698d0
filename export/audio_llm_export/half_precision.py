"""Store weights in half precision: each with a Cast that onnxruntime runs once, when it loads the file."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

_SMALL = 256  # a tensor with fewer elements stays float32

M = TypeVar("M", bound=nn.Module)


def is_half(module: nn.Module) -> bool:
    """Return whether every weight is exact in half precision."""
    return all(torch.equal(part, part.half().float()) for part in module.parameters())


def round_to_half(module: M) -> M:
    """Return a copy whose weights are rounded to half precision."""
    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for part in rounded.parameters():
            part.copy_(part.half().float())
    return rounded


def store_half_precision(graph: onnx.GraphProto) -> None:
    """Store tensors as float16 where that is lossless; the graph still computes in float32."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if values.size < _SMALL or not np.array_equal(halves.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT))
    prepend_nodes(graph, casts)


def prepend_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Insert nodes before all others: nodes that compute weights precede those that use them."""
    nodes = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
