"""Package a trained model: half precision, with its card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audio_llm import hub


def finish(trained: Path, folder: Path, card: Path, recipe: str, settings: Mapping[str, Any] | None = None) -> None:
    """Write the model directory `folder`.

    Args:
        trained: Model directory of a training.
        folder: Model directory to write.
        card: Text of the card.
        recipe: Folder of the recipe, such as `recipes/codec`.
        settings: Settings to add, such as tuned thresholds.
    """
    loaded = hub.load_model(trained)
    provenance = {"recipe": recipe, "training": loaded.provenance}
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in loaded.tensors.items()}
    config, text = {**loaded.config, **(settings or {})}, card.read_text(encoding="utf-8")
    hub.save_model(folder, config, tensors, loaded.kind, text, provenance)
    logging.info("%s: %s", folder, hub.fingerprint(folder))
