"""The teacher of the enrollment encoder: Resemblyzer's speaker encoder, copied once into the packed data.

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
    """Store the teacher's weights next to the packs, and add its vector of every speaker to each pack.

    Args:
        weights: Resemblyzer's `pretrained.pt`; None: the one of the installed package.
        packed: Folder of the packs.
    """
    teacher = read_resemblyzer(weights)
    save_file({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, packed / NAME)
    for part in data.PARTS:
        logging.info("%s: vectors of %d speakers", part, write_vectors(packed / part, teacher))


def read_teacher(packed: Path) -> SpeakerEncoder:
    """Return the teacher stored by `teach`."""
    path = packed / NAME
    if not path.is_file():
        raise DataError("no teacher", path=path, remedy="run the stage 'teach'")
    return load_teacher(load_file(path))
