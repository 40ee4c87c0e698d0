"""N-best lists in, corrections out, in order and in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from audio_llm.correction import Correction, Corrector
from audio_llm.nbest import NBest

BATCH_SIZE = 32  # lists


def correct_lists(lists: Iterable[NBest], corrector: Corrector, batch_size: int = BATCH_SIZE) -> Iterator[Correction]:
    """Correct lists as they come.

    Args:
        lists: N-best lists.
        corrector: What corrects them.
        batch_size: How many go through the corrector at once.

    Yields:
        One correction per list, in order. Where reading the lists fails, those before the failure come first.
    """
    source = iter(lists)
    while True:
        batch: list[NBest] = []
        failure: Exception | None = None
        try:
            for nbest in itertools.islice(source, batch_size):
                batch.append(nbest)  # what was read before a failure is kept
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
        "kept": correction.kept,
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
