"""Model directories of speech enhancement."""

from __future__ import annotations

import os

from audio_llm import hub
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork

MASK = "mask"


def load_mask(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> MaskNetwork:
    """Return a mask network in eval mode.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    return hub.load_network(name_or_dir, MASK, MaskConfig, MaskNetwork, device)
