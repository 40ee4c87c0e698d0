"""A trained model to one that ships: half precision, with its card."""

from __future__ import annotations

import logging
from pathlib import Path

from audio_llm import hub


def finish(trained: Path, folder: Path, card: Path, recipe: str) -> None:
    """Write the model directory `folder`.

    Args:
        trained: As a training left it.
        folder: The model to make.
        card: Its text.
        recipe: Where it was made, such as `recipes/codec`.
    """
    loaded = hub.load_model(trained)
    provenance = {"recipe": recipe, "training": loaded.provenance}
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in loaded.tensors.items()}
    hub.save_model(folder, loaded.config, tensors, loaded.kind, card.read_text(encoding="utf-8"), provenance)
    logging.info("%s: %s", folder, hub.fingerprint(folder))
