"""The teacher of the enrolment encoder: Resemblyzer's speaker encoder, read once into the packed data.

Install it with `pip install --no-deps -r recipes/tse/requirements-teacher.txt`. Only its weights are read; none of its
code runs.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import data
import torch
from safetensors.torch import load_file, save_file

from audio_llm.errors import DataError, MissingDependencyError, ModelFormatError
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.teacher_vectors import load_teacher, write_vectors

NAME = "teacher.safetensors"


def teach(weights: Path | None, packed: Path) -> None:
    """Keep the teacher's weights beside the packs, and add its vector of every person to each of them.

    Args:
        weights: `pretrained.pt` of Resemblyzer; None: that of the installed package.
        packed: Folder of the packs.
    """
    path = weights or _installed()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFormatError(f"no weights: {error}", path=path, remedy="give Resemblyzer's pretrained.pt") from None
    teacher = load_teacher(state)
    save_file({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, packed / NAME)
    for part in data.PARTS:
        logging.info("%s: vectors of %d people", part, write_vectors(packed / part, teacher))


def read_teacher(packed: Path) -> SpeakerEncoder:
    """Return the teacher that `teach` has kept."""
    path = packed / NAME
    if not path.is_file():
        raise DataError("no teacher", path=path, remedy="run the stage 'teach'")
    return load_teacher(load_file(path))


def _installed() -> Path:
    found = importlib.util.find_spec("resemblyzer")
    if found is None or found.origin is None:
        remedy = "pip install --no-deps -r recipes/tse/requirements-teacher.txt, or give --teacher"
        raise MissingDependencyError("the teacher is Resemblyzer", remedy=remedy)
    return Path(found.origin).parent / "pretrained.pt"
