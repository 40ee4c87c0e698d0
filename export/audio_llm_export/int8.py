"""The stream graph with 8-bit integer weights: a smaller file and less memory traffic."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from audio_llm_export.half_precision import store_half_precision
from audio_llm_export.tables import store_tables

_TYPES = ("MatMul", "Gemm", "LSTM")


def write_int8(source: Path, path: Path) -> None:
    """Write a graph with the weights of its matrix products in 8 bits; activations are quantized dynamically.

    Constants that are not trained weights, such as DFT matrices, are not quantized.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # folds weights to constants
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "plain.onnx")
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        plain = onnx.load(options.optimized_model_filepath)
        before = logging.root.level
        logging.root.setLevel(logging.ERROR)  # the quantizer recommends a preprocessing step that was just done
        try:
            quantize_dynamic(
                plain,
                path,
                op_types_to_quantize=list(_TYPES),
                nodes_to_exclude=_tables(plain.graph),
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.root.setLevel(before)
    model = onnx.load(path)
    store_tables(model.graph)
    store_half_precision(model.graph)
    path.write_bytes(model.SerializeToString())


def _tables(graph: onnx.GraphProto) -> list[str]:
    """Return the matrix products with a constant that is not exact in half precision, as every trained weight is."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    matrices = {node.name: tensors[name] for node in graph.node for name in node.input[1:2] if name in tensors}
    return [name for name, matrix in matrices.items() if not np.array_equal(matrix.astype(np.float16), matrix)]
