"""Waveform to acoustic codes and back, by a trained model."""

from __future__ import annotations

import os
from pathlib import Path

from audio_llm import hub
from audio_llm.codec.model import CodecConfig, CodecNetwork

KIND = "codec"


def load_codec_network(name_or_dir: str | os.PathLike[str] | Path, device: str = "cpu") -> CodecNetwork:
    """Return a codec's network in eval mode.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    return hub.load_network(name_or_dir, KIND, CodecConfig, CodecNetwork, device)
