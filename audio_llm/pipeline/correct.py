"""Correctors by name, and the correction of N-best lists in batches."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audio_llm import hub
from audio_llm.asr.base import Recognizer
from audio_llm.correction import Correction, Corrector
from audio_llm.doctor import resolve_device
from audio_llm.errors import UsageError
from audio_llm.nbest import NBest

BATCH_SIZE = 32  # lists


@dataclass(frozen=True)
class CorrectorKind:
    """Registry entry of a corrector.

    Attributes:
        module: Module that holds the class; imported when it is used.
        class_name: Name of the class in it.
        settings: Light module with the class's `list_length`.
        default_model: Model that is used when none is named.
        decodings: Names of its decoding strategies.
        takes_llm: Whether its language model can be named.
    """

    module: str
    class_name: str
    settings: str
    default_model: str
    decodings: tuple[str, ...] = ()
    takes_llm: bool = False


CORRECTORS = {
    "dlm": CorrectorKind(
        "audio_llm.dlm.corrector",
        "DlmCorrector",
        "audio_llm.dlm.settings",
        "dlm-small",
        ("greedy", "dsr", "dlm-sum"),
    ),
    "ger": CorrectorKind(
        "audio_llm.ger.corrector",
        "GerCorrector",
        "audio_llm.ger.settings",
        "ger-small",
        ("free", "list", "slots"),
        takes_llm=True,
    ),
    "phrase": CorrectorKind("audio_llm.ger.phrase", "PhraseCorrector", "audio_llm.ger.settings", "ger-small"),
}


def load_corrector(
    name: str = "dlm",
    model: str | None = None,
    recognizer: Recognizer | None = None,
    decode: str | None = None,
    device: str = "cpu",
    gate: bool = True,
    llm: str | None = None,
) -> Corrector:
    """Load a corrector.

    Args:
        name: One of `CORRECTORS`.
        model: Name or folder of its model; None uses its default. `phrase` ignores a neural corrector inside.
        recognizer: Recognizer for decodings that score texts against the sound.
        decode: One of the corrector's `decodings`; None: `ger` as its model was tuned; `dlm` with `dsr` where the
            recognizer is the one that its model was tuned for, else with `dlm-sum`.
        device: `cpu`, `cuda` or `auto`.
        gate: Keep the recognizer's text where the expected gain is small.
        llm: For `ger`: path of the language model, if it was moved after the training.

    Raises:
        UsageError: A name is unknown.
        ModelNotFoundError: There is no such model.
    """
    folder = _find(name, model, decode)
    kind = CORRECTORS["phrase" if name == "ger" and hub.model_kind(folder) == "ger-phrase" else name]
    if llm is not None and not kind.takes_llm:
        raise UsageError(f"{name} has no language model", remedy="leave out --llm")
    options: dict[str, Any] = {"llm": llm} if llm is not None else {}
    if kind is CORRECTORS["phrase"]:
        options["neural"] = name == "ger"
    corrector_class = getattr(importlib.import_module(kind.module), kind.class_name)
    corrector: Corrector = corrector_class.load(
        folder, recognizer=recognizer, decode=decode, gate=gate, device=resolve_device(device), **options
    )
    return corrector


def list_length(
    name: str = "dlm", model: str | None = None, recognizer: Recognizer | None = None, decode: str | None = None
) -> int:
    """Return the number of hypotheses that a corrector uses, without loading it; arguments as for `load_corrector`.

    Raises:
        UsageError: A name is unknown.
        ModelNotFoundError, ModelFormatError: The model is missing, or its settings are damaged.
    """
    folder = _find(name, model, decode)
    length: int = importlib.import_module(CORRECTORS[name].settings).list_length(folder, decode, recognizer)
    return length


def _find(name: str, model: str | None, decode: str | None) -> Path:
    """Return the folder of a corrector's model."""
    if name not in CORRECTORS:
        raise UsageError(f"no corrector is named {name!r}", remedy=f"use one of {', '.join(CORRECTORS)}")
    kind = CORRECTORS[name]
    if decode is not None and decode not in kind.decodings:
        remedy = f"use one of {', '.join(kind.decodings)}" if kind.decodings else "leave it out"
        raise UsageError(f"{name} has no decoding named {decode!r}", remedy=remedy)
    return hub.find_model(model or kind.default_model)


def correct_lists(lists: Iterable[NBest], corrector: Corrector, batch_size: int = BATCH_SIZE) -> Iterator[Correction]:
    """Correct lists as they come.

    Args:
        lists: N-best lists.
        corrector: What corrects them.
        batch_size: Number of lists per batch.

    Yields:
        One correction per list, in order. If reading the lists fails, corrections of the lists before come first.
    """
    source = iter(lists)
    while True:
        batch: list[NBest] = []
        failure: Exception | None = None
        try:
            for nbest in itertools.islice(source, batch_size):
                batch.append(nbest)  # lists before a failure are still corrected
        except Exception as error:
            failure = error
        if batch:
            yield from corrector.correct(batch)
        if failure is not None:
            raise failure
        if len(batch) < batch_size:
            return


def correction_to_dict(correction: Correction) -> dict[str, Any]:
    """Return a correction as the plain JSON values of one output line."""
    return {
        "id": correction.id,
        "text": correction.text,
        "input": correction.input,
        "kept": correction.unchanged,
        "reason": correction.reason,
        "edits": [_edit_to_dict(edit) for edit in map(asdict, correction.edits)],
        "confidence": correction.confidence,
    }


def _edit_to_dict(edit: dict[str, Any]) -> dict[str, Any]:
    return {
        "from": edit["before"],
        "to": edit["after"],
        "source": edit["source"],
        "start": edit["start"],
        "end": edit["end"],
    }
