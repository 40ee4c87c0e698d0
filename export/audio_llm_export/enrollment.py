"""The enrollment encoder as ONNX: a recording of any length to the vector of the frontal speaker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import symbolic_helper

from audio_llm.tse.enrollment import LEAST_S, MOST_S, EnrollmentEncoder
from audio_llm.tse.frames import CHUNK, SAMPLE_RATE
from audio_llm_export.graph import OPSET, to_onnx

RECORDING, VECTOR, FRONTAL_LEVEL = "look", "enrolled", "front_db"  # names in the ONNX file
_CHUNKS = 127  # length of the traced recording: a number that is no size of a network
LEAST_SAMPLES, MOST_SAMPLES = round(LEAST_S * SAMPLE_RATE), round(MOST_S * SAMPLE_RATE)


def write_enrollment(encoder: EnrollmentEncoder, path: Path) -> None:
    """Write the graph of an encoder: RECORDING (1, 2, T) float32 to VECTOR (1, 256) and FRONTAL_LEVEL (1,), T free."""
    recording = torch.randn(1, 2, _CHUNKS * CHUNK, generator=torch.Generator().manual_seed(0))
    with _framing_by_gather():
        to_onnx(
            _WholeChunks(encoder),
            (0.1 * recording,),
            path,
            [RECORDING],
            [VECTOR, FRONTAL_LEVEL],
            {RECORDING: {2: "samples"}},
            _CHUNKS,
        )


class _WholeChunks(nn.Module):
    """Ignores the samples after the last whole chunk."""

    def __init__(self, encoder: EnrollmentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, recording: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (1, 2, T); return the vector (1, 256) and the frontal level (1,) in dB."""
        enrollment = self.encoder.encode(recording[..., : recording.shape[-1] // CHUNK * CHUNK])
        return enrollment.vector, enrollment.frontal_level_db


@contextlib.contextmanager
def _framing_by_gather() -> Iterator[None]:
    """Export `unfold` as one Gather; for an unknown length, the exporter writes a loop by default."""
    torch.onnx.register_custom_op_symbolic("aten::unfold", _unfold, OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::unfold", OPSET)


@symbolic_helper.parse_args("v", "i", "i", "i")
def _unfold(g: Any, x: Any, axis: int, width: int, hop: int) -> Any:
    whole = [g.op("Constant", value_t=torch.tensor(number)) for number in (0, 1, hop)]
    length = g.op("Gather", g.op("Shape", x), g.op("Constant", value_t=torch.tensor(axis)))
    usable = g.op("Sub", length, g.op("Constant", value_t=torch.tensor(width - hop)))
    starts = g.op("Mul", g.op("Range", whole[0], g.op("Div", usable, whole[2]), whole[1]), whole[2])
    column = g.op("Unsqueeze", starts, g.op("Constant", value_t=torch.tensor([1])))
    index = g.op("Add", column, g.op("Constant", value_t=torch.arange(width)))
    return g.op("Gather", x, index, axis_i=axis)
