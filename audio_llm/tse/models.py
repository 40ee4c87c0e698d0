"""Model directories of target-speech hearing: the parts as they are trained, and the whole to be used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from audio_llm import hub
from audio_llm.tse.enrolment import EnrolmentEncoder
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.hearing import HearingConfig, TargetHearing
from audio_llm.tse.speaker import SpeakerEncoder

SEPARATOR, GRIDNET, SPEAKER, HEARING = "tse-separator", "tse-gridnet", "tse-speaker", "tse"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TargetSpeechModel:
    """What hears one person, and what learns from a look who that is; both in eval mode."""

    hearing: TargetHearing
    enrolment: EnrolmentEncoder


@dataclass(frozen=True)
class _SpeakerSettings:
    hidden: int = 256
    layers: int = 3


def load_separator(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Extractor:
    """Return a trunk trained by location; raises as `hub.load_model`."""
    return hub.load_network(name_or_dir, SEPARATOR, ExtractorConfig, Extractor, device)


def load_speaker(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> SpeakerEncoder:
    """Return a small speaker encoder; raises as `hub.load_model`."""
    settings = _SpeakerSettings
    return hub.load_network(name_or_dir, SPEAKER, settings, lambda own: SpeakerEncoder(own.hidden, own.layers), device)


def load_hearing(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TargetHearing:
    """Return the networks of a model; raises as `hub.load_model`."""
    return hub.load_network(name_or_dir, HEARING, HearingConfig, TargetHearing, device)


def save_model(folder: Path, hearing: TargetHearing, card: str, provenance: Mapping[str, Any]) -> None:
    """Write a model directory with everything, in half precision."""
    tensors = {name: tensor.half() for name, tensor in hearing.state_dict().items()}
    hub.save_model(folder, asdict(hearing.config), tensors, HEARING, card, dict(provenance))


def load_model(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TargetSpeechModel:
    """Return the model of a directory, or of a name that ships with the package.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    hearing = load_hearing(name_or_dir, device)
    return TargetSpeechModel(hearing, EnrolmentEncoder(hearing).eval())
