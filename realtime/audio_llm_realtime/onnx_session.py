"""Open an ONNX session for one thread, with the options that every session of this package shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audio_llm_realtime.contract import Port, check_ports, read_network
from audio_llm_realtime.errors import ContractError


def open_session(path: Path, sha256: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> Any:
    """Return an onnxruntime session of a network, checked against its contract.

    One thread, no spinning, all optimizations, denormals as zero. ONNX Runtime takes the last option from the first
    session of the process only: a program that opens another session before this one loses it.

    Args:
        path: The ONNX file.
        sha256: Expected hash of the file.
        inputs: Expected inputs of the network.
        outputs: Expected outputs of the network.

    Raises:
        ModelNotFoundError: The file is missing.
        ContractError: The file does not match the contract, or is not a network.
    """
    import onnxruntime

    content = read_network(path, sha256)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    for key, value in (
        ("session.set_denormal_as_zero", "1"),
        ("session.intra_op.allow_spinning", "0"),
        ("session.inter_op.allow_spinning", "0"),
    ):
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base class
        reason = " ".join(str(error).split())
        raise ContractError(f"not a network that runs here: {reason}", path=path) from None
    check_ports(path, "input", inputs, session.get_inputs())
    check_ports(path, "output", outputs, session.get_outputs())
    return session
