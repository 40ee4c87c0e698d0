"""DSR's candidates with both scores: the sound is made again and the recogniser asked about every candidate."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from audio_llm.asr.base import Recognizer
from audio_llm.dlm.corrector import DecodingSettings, dsr_pool, list_weights, score_pool
from audio_llm.dlm.generate import Plan
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.pairs import make_sound
from audio_llm.dlm.rescore import Scales, Scored, choose
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER


def scored_pools(
    plan: Plan,
    lists: list[NBest],
    model: DenoisingLM,
    settings: DecodingSettings,
    recognizer: Recognizer,
    language_model: NgramLm,
    path: Path,
    limit: int,
) -> dict[str, list[Scored]]:
    """Return candidates by id, scores `asr`, `dlm`, `lm` and `proposed` (1 where the Denoising LM's list has it).

    Args:
        plan: The set's plan, which makes the sound again.
        lists: The set's lists.
        model: The Denoising LM.
        settings: Its beam and how many hypotheses are pooled.
        recognizer: Scores the candidates.
        language_model: Scores them too, and chooses with the recogniser's scores those of the list.
        path: JSON lines; what is there already is not made again.
        limit: Utterances at most, in the plan's order.
    """
    pools = _read(path)
    items = {item.text_id: item for shard in plan.shards for item in shard}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for nbest in lists[:limit]:
            if nbest.id in pools or not nbest.hypotheses:
                continue
            texts = list(dict.fromkeys(text for text in nbest.texts if text))
            weights = list_weights(nbest, texts, DEFAULT_NORMALIZER, settings, language_model)
            best = sorted(range(len(texts)), key=lambda i: -weights[i])[: settings.hypotheses]
            pool = dsr_pool(model, texts[0], [texts[i] for i in best], replace(settings, pool="pooled"))
            waveform = make_sound(items[nbest.id], plan.config.augmentation, plan.noises).waveform
            scored = score_pool(model, texts[0], pool, recognizer, waveform, language_model)
            proposed = set(dsr_pool(model, texts[0], (), replace(settings, pool="paper")))
            pools[nbest.id] = [Scored(s.text, {**s.scores, "proposed": float(s.text in proposed)}) for s in scored]
            rows = [{"text": s.text, **s.scores} for s in pools[nbest.id]]
            file.write(json.dumps({"id": nbest.id, "pool": rows}) + "\n")
            file.flush()
            if len(pools) % 20 == 0:
                logging.info("%s: %d of %d pools scored", path.stem, len(pools), min(limit, len(lists)))
    return pools


def choose_all(lists: Sequence[NBest], pools: Mapping[str, Sequence[Scored]], scales: Scales, pool: str) -> list[str]:
    """Return DSR's choice for each list; the recogniser's text where nothing could be scored."""
    texts = []
    for nbest in lists:
        own = of_pool(pools.get(nbest.id, ()), pool)
        texts.append(own[choose(own, scales)].text if own else nbest.best)
    return texts


def of_pool(scored: Sequence[Scored], pool: str) -> list[Scored]:
    """Return all candidates (`pooled`), or those that the Denoising LM proposed and the recogniser's text (`paper`)."""
    return [candidate for candidate in scored if pool == "pooled" or candidate.scores["proposed"]]


def _read(path: Path) -> dict[str, list[Scored]]:
    pools: dict[str, list[Scored]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            pools[row["id"]] = [Scored(c.pop("text"), c) for c in row["pool"]]
    return pools
