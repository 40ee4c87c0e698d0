"""The teacher of the enrolment encoder: Resemblyzer's speaker encoder, read once into the packed data.

See `recipes/resemblyzer_weights.py` for how it is installed.
"""

from __future__ import annotations

import logging
from pathlib import Path

import data
from resemblyzer_weights import read_resemblyzer
from safetensors.torch import load_file, save_file

from audio_llm.errors import DataError
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.teacher_vectors import load_teacher, write_vectors

NAME = "teacher.safetensors"


def teach(weights: Path | None, packed: Path) -> None:
    """Keep the teacher's weights beside the packs, and add its vector of every person to each of them.

    Args:
        weights: `pretrained.pt` of Resemblyzer; None: that of the installed package.
        packed: Folder of the packs.
    """
    teacher = read_resemblyzer(weights)
    save_file({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, packed / NAME)
    for part in data.PARTS:
        logging.info("%s: vectors of %d people", part, write_vectors(packed / part, teacher))


def read_teacher(packed: Path) -> SpeakerEncoder:
    """Return the teacher that `teach` has kept."""
    path = packed / NAME
    if not path.is_file():
        raise DataError("no teacher", path=path, remedy="run the stage 'teach'")
    return load_teacher(load_file(path))
