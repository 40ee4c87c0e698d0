"""The enrolment encoder as ONNX: a look of any length to the vector of the person in front."""

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

LOOK, VECTOR, FRONT = "look", "enrolled", "front_db"
_CHUNKS = 127  # of the look that is traced: a number that is no size of a network
LEAST_SAMPLES, MOST_SAMPLES = round(LEAST_S * SAMPLE_RATE), round(MOST_S * SAMPLE_RATE)


def write_enrolment(encoder: EnrollmentEncoder, path: Path) -> None:
    """Write the graph of an encoder: `look` (1, 2, T) float32 to `enrolled` (1, 256) and `front_db` (1,), T free."""
    look = torch.randn(1, 2, _CHUNKS * CHUNK, generator=torch.Generator().manual_seed(0))
    with _framing_by_gather():
        to_onnx(_WholeChunks(encoder), (0.1 * look,), path, [LOOK], [VECTOR, FRONT], {LOOK: {2: "samples"}}, _CHUNKS)


class _WholeChunks(nn.Module):
    """Leaves out what is behind the last whole chunk."""

    def __init__(self, encoder: EnrollmentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, look: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, 256) and (1,) of (1, 2, T)."""
        enrolled = self.encoder.encode(look[..., : look.shape[-1] // CHUNK * CHUNK])
        return enrolled.vector, enrolled.frontal_level_db


@contextlib.contextmanager
def _framing_by_gather() -> Iterator[None]:
    """Export `unfold` as one Gather; the exporter's own way for a length not known is a loop."""
    torch.onnx.register_custom_op_symbolic("aten::unfold", _unfold, OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::unfold", OPSET)


@symbolic_helper.parse_args("v", "i", "i", "i")
def _unfold(g: Any, x: Any, axis: int, width: int, hop: int) -> Any:
    whole = [g.op("Constant", value_t=torch.tensor(number)) for number in (0, 1, hop)]
    length = g.op("Gather", g.op("Shape", x), g.op("Constant", value_t=torch.tensor(axis)))
    spare = g.op("Sub", length, g.op("Constant", value_t=torch.tensor(width - hop)))
    starts = g.op("Mul", g.op("Range", whole[0], g.op("Div", spare, whole[2]), whole[1]), whole[2])
    column = g.op("Unsqueeze", starts, g.op("Constant", value_t=torch.tensor([1])))
    index = g.op("Add", column, g.op("Constant", value_t=torch.arange(width)))
    return g.op("Gather", x, index, axis_i=axis)
