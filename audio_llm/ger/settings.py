"""How a corrector of this package is used: light questions about its model directory, answered without its network."""

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
    """How a neural corrector decodes; tuned on tuning data and kept beside its settings.

    Attributes:
        mode: `free`: any text; `list`: words of the list only; `slots`: one choice in each slot of the list's
            confusion network.
        beam: Width of the search in `list` and `slots`; `free` is greedy.
        gates: For each mode, when a correction is taken.
    """

    mode: Mode = "free"
    beam: int = 4
    gates: dict[str, Gate] = field(default_factory=lambda: {mode: Gate(max_novel=2) for mode in MODES})


def list_length(folder: Path, mode: str | None = None, recognizer: Any = None) -> int:
    """Return how many hypotheses a model can make use of.

    Args:
        folder: The model directory, of a neural or of a phrase corrector.
        mode: How it decodes; of no account.
        recognizer: What makes the lists; of no account.

    Raises:
        ModelFormatError: The directory is damaged.
    """
    from audio_llm.hub import model_settings

    return int(model_settings(folder).get("settings", {}).get("prompt", {}).get("hypotheses", _PHRASE_LIST))
