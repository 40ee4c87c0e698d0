"""The weights of Resemblyzer's speaker encoder, used as teacher and for evaluation; none of its code is run.

Install it with `pip install --no-deps -r recipes/tse/requirements-teacher.txt`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from audio_llm.errors import MissingDependencyError, ModelFormatError
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.teacher_vectors import load_teacher


def read_resemblyzer(weights: Path | None = None) -> SpeakerEncoder:
    """Return the encoder in eval mode.

    Args:
        weights: `pretrained.pt` of Resemblyzer; None: that of the installed package.

    Raises:
        MissingDependencyError: None is given and it is not installed.
        ModelFormatError: The file holds no weights.
    """
    path = weights or _installed()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFormatError(f"no weights: {error}", path=path, remedy="give Resemblyzer's pretrained.pt") from None
    return load_teacher(state)


def _installed() -> Path:
    spec = importlib.util.find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        remedy = "pip install --no-deps -r recipes/tse/requirements-teacher.txt, or give its file"
        raise MissingDependencyError("Resemblyzer is not installed", remedy=remedy)
    return Path(spec.origin).parent / "pretrained.pt"
