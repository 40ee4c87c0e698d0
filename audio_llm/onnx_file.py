"""Third-party networks in ONNX files of the user, run with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from audio_llm.errors import MissingDependencyError, ModelFormatError, ModelNotFoundError

ONNX_SUFFIX = ".onnx"


def open_session(path: Path, what: str) -> Any:
    """Return an onnxruntime session on the CPU, on as many threads as torch has.

    Args:
        path: The file.
        what: Name of the network for messages: `the S3Tokenizer`.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelNotFoundError: There is no such file.
        ModelFormatError: The file is not a network.
    """
    try:
        import onnxruntime
    except ImportError:
        remedy = "pip install 'audio-llm[export]'"
        raise MissingDependencyError(f"{what} needs onnxruntime", path=path, remedy=remedy) from None
    if not path.is_file():
        raise ModelNotFoundError("no such file", path=path, remedy=f"give the {ONNX_SUFFIX} file of {what}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelFormatError(f"onnxruntime cannot read it: {error}", path=path, remedy="check the file") from None


def accepts_shape(part: Any, shape: tuple[int | None, ...]) -> bool:
    """Return whether a session's input accepts a shape, in which None is a dynamic size."""
    sizes = part.shape
    if len(sizes) != len(shape):
        return False
    return all(not isinstance(size, int) or size == expected for size, expected in zip(sizes, shape, strict=True))
