"""Controls of DSR's gain: the audio of another utterance, and subsets of its scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import data
import numpy as np
import systems
from dsr import choose_all
from evaluate import SOUND, System, evaluate, table, to_lists
from measure import SWAPPED, dsr_pools, make_models, scored_lists
from sets import TUNE_NAME, TUNE_SETS, plans, read_set

from audio_llm.align import count_edits
from audio_llm.dlm.rescore import Scored, choose, fit_weights
from audio_llm.dlm.settings import read_settings

SETS = ("real-kathleen", "synthetic-book")  # default sets
FOLDS = 5
PARTS: dict[str, tuple[str, ...]] = {  # subsets of scores to select DSR's candidates by
    "list": ("asr",),
    "list, trigram": ("asr", "lm"),
    "list, sound": ("asr", "sound"),
    "list, trigram, Denoising LM": ("asr", "lm", "dlm"),
    "list, trigram, sound": ("asr", "lm", "sound"),
    "all": systems.DSR_SCORES,
}


def report(folder: Path, output: Path, model_dir: Path, sets: list[str] | None, limit: int) -> str:
    """Return two tables: results with the audio of the next utterance, and cross-validation on the tuning lists.

    Args:
        folder: The data folder.
        output: The recipe's output folder.
        model_dir: The tuned Denoising LM.
        sets: Reporting sets.
        limit: Largest number of utterances per set, because swapped audio has to be scored again.
    """
    models = make_models(output, model_dir, read_settings(model_dir))
    everything = plans(folder)
    lists = {name: to_lists(read_set(output, name))[:limit] for name in sets or SETS}
    compared: dict[str, System] = {"recognizer": systems.recognizer}
    for swapped, label in ((False, ""), (True, ", sound of the next utterance")):
        whole = scored_lists(everything, output, models, lists, swapped)
        pools = dsr_pools(everything, output, models, lists, SWAPPED if swapped else "")
        compared[SOUND + label] = functools.partial(choose_all, pools=whole, score_weights=models.settings.shortlist)
        compared["DLM DSR" + label] = functools.partial(choose_all, pools=pools, score_weights=models.settings.dsr)
    swaps = table(evaluate(compared, lists))

    tune = {key: to_lists(read_set(output, key)) for key in TUNE_SETS}
    pools = dsr_pools(everything, output, models, tune)
    known = [nbest for rows in tune.values() for nbest in rows if pools.get(nbest.id)]
    candidates, references = [pools[nbest.id] for nbest in known], [nbest.reference or "" for nbest in known]
    lines = [f"| scores, {len(known)} tuning lists in {FOLDS} folds | WER % |", "|---|---|"]
    for name, scores in PARTS.items():
        lines.append(f"| {name} | {100 * cross_validated(candidates, references, scores):.2f} |")
    return swaps + "\n" + "\n".join(lines)


def cross_validated(candidates: Sequence[Sequence[Scored]], references: Sequence[str], scores: Sequence[str]) -> float:
    """Return the word error rate where each fold is corrected with weights that were fitted on the other folds."""
    folds = np.random.default_rng(data.SEED).permutation(len(references)) % FOLDS
    errors = 0
    for fold in range(FOLDS):
        training = np.flatnonzero(folds != fold)
        score_weights = fit_weights(
            [candidates[i] for i in training], [references[i] for i in training], scores, TUNE_NAME
        ).score_weights
        for i in np.flatnonzero(folds == fold):
            chosen = candidates[i][choose(candidates[i], score_weights)].text
            errors += count_edits(references[i].split(), chosen.split()).errors
    return errors / sum(len(reference.split()) for reference in references)
