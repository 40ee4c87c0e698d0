"""Model directories of target-speech hearing: the parts as they are trained, and the whole to be used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from audio_llm import hub
from audio_llm.errors import ModelFormatError
from audio_llm.tse.enrolment import EnrolmentEncoder
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.hearing import HearingConfig, TargetHearing
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.speaker import SpeakerEncoder

SEPARATOR, GRIDNET, SPEAKER, HEARING = "tse-separator", "tse-gridnet", "tse-speaker", "tse"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TargetSpeechModel:
    """What hears one person, and what learns from a look who that is; both in eval mode."""

    hearing: TargetHearing
    enrolment: EnrolmentEncoder


def load_separator(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Extractor:
    """Return a trunk trained by location; raises as `hub.load_model`."""
    loaded = hub.load_model(name_or_dir, SEPARATOR, device)
    return _filled(Extractor(_read(ExtractorConfig, loaded.config, loaded.path)), loaded.tensors, loaded.path)


def load_speaker(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> SpeakerEncoder:
    """Return a small speaker encoder; raises as `hub.load_model`."""
    loaded = hub.load_model(name_or_dir, SPEAKER, device)
    return _filled(_read(SpeakerEncoder, loaded.config, loaded.path), loaded.tensors, loaded.path)


def load_hearing(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TargetHearing:
    """Return the networks of a model; raises as `hub.load_model`."""
    loaded = hub.load_model(name_or_dir, HEARING, device)
    return _filled(TargetHearing(_hearing_config(loaded.config, loaded.path)), loaded.tensors, loaded.path)


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


def _hearing_config(config: Mapping[str, Any], path: Path) -> HearingConfig:
    extractor = _read(ExtractorConfig, config.get("extractor", {}), path)
    selector = _read(SelectorConfig, config.get("selector", {}), path)
    return _read(HearingConfig, {**config, "extractor": extractor, "selector": selector}, path)


def _read(cls: type[Any], config: Mapping[str, Any], path: Path) -> Any:
    try:
        return cls(**config)
    except TypeError as error:
        raise ModelFormatError(f"its settings are not a {cls.__name__}'s: {error}", path=path) from None


def _filled(module: M, tensors: Mapping[str, Tensor], path: Path) -> M:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ModelFormatError(f"its weights do not fit its settings: {error}", path=path) from None
    device = next(iter(tensors.values())).device
    return module.to(device).eval()
