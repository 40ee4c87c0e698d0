"""How a Denoising LM decodes: settings beside the weights, and what follows from them before any network is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from audio_llm.asr.base import Recognizer
from audio_llm.dlm.rescore import ScoreWeights
from audio_llm.errors import ModelFormatError
from audio_llm.gate import Gate

SETTINGS_NAME = "decoding.json"
Decoding = Literal["greedy", "dsr", "dlm-sum"]
Pool = Literal["paper", "pooled"]


@dataclass(frozen=True)
class DecodingSettings:
    """How a model decodes; tuned on tuning data and stored beside the weights.

    Attributes:
        normalizer: Name of the normaliser for what comes in.
        recognizer: Version of the recogniser the scales were tuned for; another gets the same, unchecked scales.
        beam: Width of the search in DLM-sum.
        listed: Hypotheses of the recogniser that are asked for.
        hypotheses: Those of them that the Denoising LM reads in DLM-sum, the best by `list_scales`.
        language_model: Name of the n-gram model behind the score `lm`, a folder beside the model's or any that
            `hub.find_model` knows; empty for none.
        language_model_sha256: Its fingerprint.
        list_scales: How a hypothesis of the list is weighed, scores `asr` (the list's own) and `lm`. The total is its
            log-weight in DLM-sum.
        rank_weight: In a list without scores the log-weight of rank r is -r * rank_weight.
        pool: Where DSR's candidates come from: the Denoising LM (`paper`) or it and the recogniser (`pooled`).
        sound_model: Name of the CTC recogniser that tells DSR how well a text fits the sound, a folder beside the
            model's or any that `hub.find_model` knows; empty: the recogniser that made the list tells it.
        sound_model_sha256: Its fingerprint.
        shortlist: ScoreWeights of the scores `asr`, `sound`, `lm` that choose the texts of a list for DSR.
        shortlisted: How many.
        proposals: Texts that the Denoising LM proposes in DSR; one is found by greedy search, which
            is several times as fast as a beam.
        dsr: ScoreWeights for DSR; scores as in `dsr.DsrCandidates`.
        gates: Gate for each decoding.
    """

    normalizer: str = "spoken"
    recognizer: str = ""
    beam: int = 3
    listed: int = 20
    hypotheses: int = 4
    language_model: str = ""
    language_model_sha256: str = ""
    list_scales: ScoreWeights = field(default_factory=lambda: ScoreWeights({"asr": 0.05, "lm": 0.0}))
    rank_weight: float = 0.5
    pool: Pool = "pooled"
    sound_model: str = ""
    sound_model_sha256: str = ""
    shortlist: ScoreWeights = field(default_factory=lambda: ScoreWeights({"asr": 0.05, "sound": 0.1, "lm": 0.0}))
    shortlisted: int = 8
    proposals: int = 1
    dsr: ScoreWeights = field(default_factory=lambda: ScoreWeights({"asr": 0.05, "sound": 0.1, "dlm": 1.0}))
    gates: dict[str, Gate] = field(default_factory=lambda: {name: Gate() for name in ("greedy", "dsr", "dlm-sum")})


def default_decoding(settings: DecodingSettings, recognizer: Recognizer | None) -> Decoding:
    """Return `dsr` where the recogniser is the one that the scales were found for and the settings name a sound model.

    Else `dlm-sum`.
    """
    tuned_for = recognizer is not None and recognizer.version == settings.recognizer
    return "dsr" if tuned_for and settings.sound_model else "dlm-sum"


def list_length(folder: Path, decoding: Decoding | None = None, recognizer: Recognizer | None = None) -> int:
    """Return how many hypotheses a model can make use of: the full length only of the recogniser it was tuned for.

    Args:
        folder: The model directory.
        decoding: None: the default one.
        recognizer: What makes the lists.

    Raises:
        ModelFormatError: The settings are damaged.
    """
    settings = read_settings(folder)
    return useful_hypotheses(settings, decoding or default_decoding(settings, recognizer), recognizer)


def useful_hypotheses(settings: DecodingSettings, decoding: Decoding, recognizer: Recognizer | None) -> int:
    """Do as `list_length` with settings that are read already."""
    if decoding == "greedy":
        return 1
    if decoding == "dsr" and not settings.sound_model:  # the recogniser takes long for each text
        return settings.shortlisted
    tuned_for = recognizer is None or recognizer.version == settings.recognizer
    return settings.listed if tuned_for else settings.hypotheses


def read_settings(folder: Path) -> DecodingSettings:
    """Read the decoding settings of a model directory; the defaults where it has none.

    Raises:
        ModelFormatError: They are damaged.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        return DecodingSettings()
    try:
        return settings_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(
            f"damaged decoding settings: {error}", path=path, remedy="tune or get it again"
        ) from None


def settings_to_json(settings: DecodingSettings) -> dict[str, Any]:
    """Return the settings as plain JSON values."""
    return asdict(settings)


def settings_from_json(content: dict[str, Any]) -> DecodingSettings:
    """Build settings from what `settings_to_json` gave."""
    content = dict(content)
    for name in {"list_scales", "shortlist", "dsr"} & set(content):
        content[name] = ScoreWeights(**content[name])
    content["gates"] = {name: Gate(**gate) for name, gate in content["gates"].items()}
    return DecodingSettings(**content)
