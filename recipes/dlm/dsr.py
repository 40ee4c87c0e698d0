"""DSR's candidates with their scores: the audio is regenerated and every candidate is scored on it, once."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from audio_llm.dlm.dsr import NormalizedNBest
from audio_llm.dlm.generate import Plan
from audio_llm.dlm.pairs import PairItem, make_sound
from audio_llm.dlm.rescore import Scored, ScoreWeights, choose
from audio_llm.nbest import NBest
from audio_llm.simulation.augment import Augmentation
from audio_llm.text import DEFAULT_NORMALIZER

Pool = dict[str, list[Scored]]  # id -> candidates, the recognizer's best first


def scored(
    plan: Plan,
    lists: Sequence[NBest],
    make: Callable[[NormalizedNBest, np.ndarray], list[Scored]],
    path: Path,
    label: str,
    swapped: bool = False,
) -> Pool:
    """Return the candidates of each list that is not empty.

    Args:
        plan: The plan of the set, from which the audio is regenerated.
        lists: The N-best lists of the set.
        make: (list, (T,) float32 at 16 kHz) -> candidates.
        path: JSON-lines file of candidates; utterances that it contains are not scored again.
        label: Identifies all models that the scores depend on; a file with another label is replaced.
        swapped: As a control, score each list on the audio of the next utterance.
    """
    pools = _read(path, label)
    items = {item.text_id: item for shard in plan.shards for item in shard}
    other = dict(zip((n.id for n in lists), (n.id for n in (*lists[1:], *lists[:1])), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if pools else "w", encoding="utf-8") as file:
        if not pools:
            file.write(json.dumps({"label": label}) + "\n")
        for nbest in lists:
            normalized = NormalizedNBest.of(nbest, DEFAULT_NORMALIZER)
            if nbest.id in pools or not normalized.texts:
                continue
            pools[nbest.id] = make(
                normalized, _sound(items[other[nbest.id] if swapped else nbest.id], plan.config.augmentation)
            )
            file.write(json.dumps({"id": nbest.id, "pool": [_row(c) for c in pools[nbest.id]]}) + "\n")
            file.flush()
            if len(pools) % 100 == 0:
                logging.info("%s: %d of %d utterances scored", path.stem, len(pools), len(lists))
    return {nbest.id: pools.get(nbest.id, []) for nbest in lists}


@functools.lru_cache(maxsize=4000)
def _sound(item: PairItem, augmentation: Augmentation) -> np.ndarray:
    """Return the waveform of an item; cached, because a set is scored several times."""
    return make_sound(item, augmentation).waveform


def choose_all(lists: Sequence[NBest], pools: Mapping[str, Sequence[Scored]], score_weights: ScoreWeights) -> list[str]:
    """Return the best candidate for each list; the recognizer's text if there are no candidates."""
    candidates = [pools.get(nbest.id, ()) for nbest in lists]
    return [
        pool[choose(pool, score_weights)].text if pool else nbest.best
        for pool, nbest in zip(candidates, lists, strict=True)
    ]


def _row(candidate: Scored) -> dict[str, str | float]:
    return {"text": candidate.text, **{name: round(score, 3) for name, score in candidate.scores.items()}}


def _read(path: Path, label: str) -> Pool:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines or json.loads(lines[0]) != {"label": label}:
        return {}
    rows = [json.loads(line) for line in lines[1:]]
    return {row["id"]: [Scored(c.pop("text"), c) for c in row["pool"]] for row in rows}
