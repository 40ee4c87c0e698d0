"""Resemblyzer's speaker encoder as a model directory: its pickle is read once, as tensors only, and deleted."""

from __future__ import annotations

from pathlib import Path

from audio_llm import hub
from audio_llm.errors import ModelFormatError
from audio_llm.registry import SPEAKER_ENCODER

SOURCE_NAME = "pretrained.pt"
_CARD = """# resemblyzer

Speaker encoder of Resemblyzer (Corentin Jemine, Apache-2.0): mel power, 40 bands -> LSTM, 3 x 256 -> linear -> ReLU ->
unit length, after "Generalized end-to-end loss for speaker verification" (Wan et al. 2018). Converted from the weights
in its wheel; the optimizer's state was left out.
"""


def convert(folder: Path) -> None:
    """Replace `pretrained.pt` in a folder by config.json, model.safetensors and README.md.

    Raises:
        ModelFormatError: The file does not hold the weights of a speaker encoder.
    """
    import torch

    path = folder / SOURCE_NAME
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        tensors = {str(name): tensor.float() for name, tensor in state.items()}
        bands = tensors["lstm.weight_ih_l0"].shape[1]
        embedding, hidden = tensors["linear.weight"].shape
    except Exception as error:  # any error of the unpickler, which executes nothing with weights_only
        remedy = "get it again"
        raise ModelFormatError(f"holds no speaker encoder: {error}", path=path, remedy=remedy) from None
    layers = sum(name.startswith("lstm.weight_hh") for name in tensors)
    config = {"bands": bands, "hidden": hidden, "layers": layers, "embedding": embedding}
    provenance = {"converted_from": SOURCE_NAME, "sha256": hub.file_sha256(path)}
    path.unlink()
    hub.save_model(folder, config, tensors, SPEAKER_ENCODER, _CARD, provenance)
