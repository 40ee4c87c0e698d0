"""Model directories of target-speaker extraction: the separately trained parts, and the complete model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from audio_llm import hub
from audio_llm.tse.enrollment import EnrollmentEncoder
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork

SEPARATOR, GRIDNET, SPEAKER, TARGET_SPEAKER = "tse-separator", "tse-gridnet", "tse-speaker", "tse"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TargetSpeakerModel:
    """The extraction networks, and the encoder of enrollment recordings that shares them; both in eval mode."""

    network: TargetSpeakerNetwork
    enrollment_encoder: EnrollmentEncoder


@dataclass(frozen=True)
class _SpeakerSettings:
    hidden: int = 256
    layers: int = 3


def load_separator(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Extractor:
    """Return a trained separator; raises as `hub.load_model`."""
    return hub.load_network(name_or_dir, SEPARATOR, ExtractorConfig, Extractor, device)


def load_speaker(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> SpeakerEncoder:
    """Return a small speaker encoder; raises as `hub.load_model`."""
    settings = _SpeakerSettings
    return hub.load_network(
        name_or_dir, SPEAKER, settings, lambda sizes: SpeakerEncoder(sizes.hidden, sizes.layers), device
    )


def load_target_speaker(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TargetSpeakerNetwork:
    """Return the extraction networks of a model; raises as `hub.load_model`."""
    return hub.load_network(name_or_dir, TARGET_SPEAKER, TargetSpeakerConfig, TargetSpeakerNetwork, device)


def save_model(folder: Path, network: TargetSpeakerNetwork, card: str, provenance: Mapping[str, Any]) -> None:
    """Write a complete model directory, in half precision."""
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    hub.save_model(folder, asdict(network.config), tensors, TARGET_SPEAKER, card, dict(provenance))


def load_model(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TargetSpeakerModel:
    """Return the model of a directory, or a packaged model by its name.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    network = load_target_speaker(name_or_dir, device)
    return TargetSpeakerModel(network, EnrollmentEncoder(network).eval())
