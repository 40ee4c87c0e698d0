"""Decoding settings of a Denoising LM, stored with its weights, and decisions that follow from them."""

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
    """How a model decodes; tuned on validation data and stored with the weights.

    Attributes:
        normalizer: Name of the normalizer of the hypotheses.
        recognizer: Version of the recognizer that the score weights were tuned for. Other recognizers get the same
            weights, unchecked.
        beam: Beam width in DLM-sum.
        listed: Number of hypotheses to request from the recognizer.
        hypotheses: Number of these that the Denoising LM reads in DLM-sum, the best by `list_scales`.
        language_model: Name of the n-gram model for the score `lm`: a folder next to the model's, or a name that
            `hub.find_model` knows; empty for none.
        language_model_sha256: Fingerprint of the n-gram model.
        list_scales: Weights of the scores `asr` (the recognizer's) and `lm` of a listed hypothesis. The total is its
            log-weight in DLM-sum.
        rank_weight: In a list without scores the log-weight of rank r is -r * rank_weight.
        pool: Source of DSR's candidates: the Denoising LM (`paper`), or it and the recognizer (`pooled`).
        sound_model: Name of the CTC recognizer that scores texts against the audio in DSR: a folder next to the
            model's, or a name that `hub.find_model` knows; empty: the recognizer that produced the list scores them.
        sound_model_sha256: Fingerprint of the CTC recognizer.
        shortlist: Weights of the scores `asr`, `sound`, `lm` that select the texts of a list for DSR.
        shortlisted: Number of these texts.
        proposals: Number of texts that the Denoising LM proposes in DSR; a single one comes from greedy search, which
            is several times as fast as beam search.
        dsr: Weights of the scores of DSR's candidates (see `dsr.DsrCandidates`).
        gates: Gate of each decoding.
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
    """Return `dsr` if the settings were tuned for this recognizer and name a sound model, else `dlm-sum`."""
    tuned_for = recognizer is not None and recognizer.version == settings.recognizer
    return "dsr" if tuned_for and settings.sound_model else "dlm-sum"


def list_length(folder: Path, decoding: Decoding | None = None, recognizer: Recognizer | None = None) -> int:
    """Return how many hypotheses a model can use: the full list only from the recognizer it was tuned for.

    Args:
        folder: The model directory.
        decoding: The decoding; None: the default one.
        recognizer: Source of the lists.

    Raises:
        ModelFormatError: The settings file is damaged.
    """
    settings = read_settings(folder)
    return useful_hypotheses(settings, decoding or default_decoding(settings, recognizer), recognizer)


def useful_hypotheses(settings: DecodingSettings, decoding: Decoding, recognizer: Recognizer | None) -> int:
    """Return the same as `list_length`, for settings that are loaded already."""
    if decoding == "greedy":
        return 1
    if decoding == "dsr" and not settings.sound_model:  # scoring a text takes the recognizer long
        return settings.shortlisted
    tuned_for = recognizer is None or recognizer.version == settings.recognizer
    return settings.listed if tuned_for else settings.hypotheses


def read_settings(folder: Path) -> DecodingSettings:
    """Read the decoding settings of a model directory; the defaults if it has none.

    Raises:
        ModelFormatError: The settings file is damaged.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        return DecodingSettings()
    try:
        return settings_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(
            f"damaged decoding settings: {error}", path=path, remedy="tune them or get the model again"
        ) from None


def settings_to_json(settings: DecodingSettings) -> dict[str, Any]:
    """Return the settings as plain JSON values."""
    return asdict(settings)


def settings_from_json(content: dict[str, Any]) -> DecodingSettings:
    """Build settings from the result of `settings_to_json`."""
    content = dict(content)
    for name in {"list_scales", "shortlist", "dsr"} & set(content):
        content[name] = ScoreWeights(**content[name])
    content["gates"] = {name: Gate(**gate) for name, gate in content["gates"].items()}
    return DecodingSettings(**content)
