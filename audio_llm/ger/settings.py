"""Decoding settings of a corrector, and facts about its model directory that need no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from audio_llm.gate import Gate

Mode = Literal["free", "list", "slots"]
MODES: tuple[Mode, ...] = ("free", "list", "slots")
_PHRASE_LIST = 20


@dataclass(frozen=True)
class GerDecoding:
    """Decoding of a neural corrector; tuned on validation data and saved with the model.

    Attributes:
        mode: `free`: any text; `list`: words of the list only; `slots`: one word, or none, in each slot of the list's
            confusion network.
        beam: Beam width in `list` and `slots`; `free` is greedy.
        gates: For each mode, when a correction is accepted.
    """

    mode: Mode = "free"
    beam: int = 4
    gates: dict[str, Gate] = field(default_factory=lambda: {mode: Gate(max_novel=2) for mode in MODES})


def list_length(folder: Path, mode: str | None = None, recognizer: Any = None) -> int:
    """Return how many hypotheses of a list a model uses.

    Args:
        folder: The model directory, of a neural or of a phrase corrector.
        mode: Ignored; correctors share this signature.
        recognizer: Ignored.

    Raises:
        ModelFormatError: The directory is damaged.
    """
    from audio_llm.hub import model_settings

    return int(model_settings(folder).get("settings", {}).get("prompt", {}).get("hypotheses", _PHRASE_LIST))
