"""Open an ONNX network for one thread: the options that every session of this package shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audio_llm_realtime.contract import Port, check_ports, read_network
from audio_llm_realtime.errors import ContractError


def open_session(path: Path, sha256: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> Any:
    """Return an onnxruntime session of a network that was checked against its contract.

    One thread, no spinning, every optimisation, denormals taken as zero. ONNX Runtime takes the last of these from the
    first session of the process only: a program that opens a session of its own before this one loses it.

    Args:
        path: The ONNX file.
        sha256: What it must hash to.
        inputs: What it must take.
        outputs: What it must give.

    Raises:
        ModelNotFoundError: The file is missing.
        ContractError: The file is not the one described, or not a network.
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
    except Exception as error:  # its own classes share no base but this
        reason = " ".join(str(error).split())
        raise ContractError(f"not a network that runs here: {reason}", path=path) from None
    check_ports(path, "input", inputs, session.get_inputs())
    check_ports(path, "output", outputs, session.get_outputs())
    return session
