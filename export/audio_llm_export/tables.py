"""DFT matrices as formulas: the values of a sine and integer indices instead of a matrix.

onnxruntime computes the matrix once, when it loads the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from audio_llm_export.half_precision import prepend_nodes

_LARGE = 10_000  # smallest number of elements of a matrix that is replaced
_NEAR = 2e-7  # largest difference from the formula, for elements up to 1


def store_tables(graph: onnx.GraphProto) -> None:
    """Replace each windowed DFT matrix, or inverse one, by its formula; other tensors stay."""
    formula_nodes: list[onnx.NodeProto] = []
    small: list[onnx.TensorProto] = []
    for tensor in list(graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < _LARGE:
            continue
        table = numpy_helper.to_array(tensor)
        for inverse in (False, True):
            formula = _Formula.of(table.T if inverse else table, inverse)
            if formula is not None:
                graph.initializer.remove(tensor)
                formula.write(tensor.name, formula_nodes, small)
                break
    graph.initializer.extend(small)
    prepend_nodes(graph, formula_nodes)


class _Formula:
    """Window and DFT: (N, 2 x bins), the cosines first."""

    def __init__(self, window: np.ndarray, inverse: bool) -> None:
        self.window, self.inverse, self.length = window, inverse, len(window)
        self.bins = self.length // 2 + 1
        weight = np.ones(self.bins, np.float32)
        if inverse:
            weight[1:-1] = 2.0
        self.weight = np.tile(weight, 2)

    @classmethod
    def of(cls, table: np.ndarray, inverse: bool) -> _Formula | None:
        """Return the formula of the table, or None if it is not a windowed DFT."""
        length, columns = table.shape
        if length % 2 or columns != length + 2:
            return None
        formula = cls(table[:, 0].copy(), inverse)
        return formula if np.abs(formula.table() - table).max() <= _NEAR else None

    def table(self) -> np.ndarray:
        """Return (N, 2 x bins) float32."""
        turns = np.outer(np.arange(self.length), np.arange(self.bins)) % self.length
        waves = np.concatenate([self.cosines()[turns], self.sines()[turns]], axis=1)
        return waves * self.window[:, None] * self.weight

    def cosines(self) -> np.ndarray:
        return np.cos(2.0 * np.pi * np.arange(self.length) / self.length).astype(np.float32)

    def sines(self) -> np.ndarray:
        return -np.sin(2.0 * np.pi * np.arange(self.length) / self.length).astype(np.float32)

    def write(self, name: str, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> None:
        """Append the nodes and the constants that compute the tensor `name`."""
        parts = {
            "time": np.arange(self.length)[:, None],
            "bin": np.arange(self.bins)[None],
            "length": np.array(self.length),
            "cosines": self.cosines(),
            "sines": self.sines(),
            "window": self.window[:, None],
            "weight": self.weight,
        }
        tensors.extend(numpy_helper.from_array(part, f"{name}.{key}") for key, part in parts.items())

        def add(operation: str, inputs: str, output: str, **attributes: Any) -> None:
            names = [f"{name}.{part}" for part in inputs.split()]
            nodes.append(helper.make_node(operation, names, [f"{name}{output}"], **attributes))

        add("Mul", "time bin", ".product")
        add("Mod", "product length", ".turns")
        add("Gather", "cosines turns", ".real", axis=0)
        add("Gather", "sines turns", ".imaginary", axis=0)
        add("Concat", "real imaginary", ".waves", axis=1)
        add("Mul", "waves window", ".windowed")
        add("Mul", "windowed weight", ".weighted" if self.inverse else "")
        if self.inverse:
            add("Transpose", "weighted", "", perm=[1, 0])
