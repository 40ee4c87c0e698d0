"""Tuning and reporting: scores candidates once, tunes weights and gates on tuning sets, evaluates every system."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import data
import numpy as np
import systems
from dsr import Pool, scored
from evaluate import (
    Proposals,
    evaluate,
    gated,
    ngram_scorer,
    rescoring,
    table,
    to_lists,
    tune_gates,
    tune_temperature,
    unchanged_fraction,
    write_json,
)
from sets import LISTED, TUNE_NAME, TUNE_SETS, plans, read_set, tuning_pairs

from audio_llm import hub
from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.dlm.corrector import Proposal
from audio_llm.dlm.dsr import DsrCandidates
from audio_llm.dlm.generate import Plan
from audio_llm.dlm.model import load, save
from audio_llm.dlm.rescore import ScoreWeights, fit_weights
from audio_llm.dlm.settings import SETTINGS_NAME, DecodingSettings, read_settings, settings_to_json
from audio_llm.gate import Gate, tune_gate
from audio_llm.lm.char_lm import CharLm
from audio_llm.lm.ngram import load_ngram
from audio_llm.nbest import Hypothesis, NBest

SUM_LISTS = 120  # tuning lists for DLM-sum's factor and gate, to limit the time
REFERENCES, SOUND_REFERENCES = 600, 200  # references used as hypotheses: in total, and per set with audio
LANGUAGE_MODEL, SOUND_MODEL = "novels-3gram", "ctc-small"
PAPER_WEIGHTS = "dsr-paper.json"  # in the output folder
SWAPPED = "-swapped"


def tune_on_lists(output: Path, model_dir: Path, finished: Path) -> None:
    """Tune the weights and gates of the decodings that need no audio; write the finished model directory with them."""
    tune = to_lists(tuning_pairs(output))
    models = make_models(output, model_dir, _first_settings(output, tune))
    settings = models.settings
    few = [tune[i] for i in np.random.default_rng(data.SEED).permutation(len(tune))[:SUM_LISTS]]
    settings = replace(settings, list_scales=tune_temperature(models.model, few, settings, models.language_model))
    for lists, decoding in ((tune, "greedy"), (few, "dlm-sum")):
        gates = tune_gates(models.model, lists, settings, [decoding], models.language_model)
        settings = replace(settings, gates=gates)
    provenance = {"recipe": "recipes/dlm", "seed": data.SEED, "tuned_on": list(TUNE_SETS)}
    provenance |= {"recognizer": settings.recognizer, "training": hub.model_info(model_dir).provenance}
    _save(replace(models, settings=settings), finished, provenance)


def tune_on_sound(folder: Path, output: Path, finished: Path) -> None:
    """Tune the weights and the gate of DSR; write them into the finished model directory."""
    settings = replace(
        read_settings(finished), sound_model=SOUND_MODEL, sound_model_sha256=hub.fingerprint(output / SOUND_MODEL)
    )
    models = make_models(output, finished, settings)
    everything = plans(folder)
    sets = {key: to_lists(read_set(output, key)) for key in TUNE_SETS}
    tune = [nbest for lists in sets.values() for nbest in lists]

    whole = scored_lists(everything, output, models, sets)
    known = [nbest for nbest in tune if whole.get(nbest.id)]
    references = [nbest.reference or "" for nbest in known]
    fit = fit_weights([whole[n.id] for n in known], references, ["asr", "sound", "lm"], TUNE_NAME)
    logging.info("list and sound: %s", fit)
    models = replace(models, settings=replace(settings, shortlist=fit.score_weights))

    pools = dsr_pools(everything, output, models, sets)
    known = [nbest for nbest in tune if pools.get(nbest.id)]
    references = [nbest.reference or "" for nbest in known]
    dsr = systems.tune_dsr([pools[n.id] for n in known], references, TUNE_NAME)
    paper = systems.tune_dsr([systems.of_paper(pools[n.id]) for n in known], references, TUNE_NAME)
    (output / PAPER_WEIGHTS).write_text(json.dumps(asdict(paper)))
    models = replace(models, settings=replace(models.settings, dsr=dsr))

    perfect = {key: _as_lists(lists) for key, lists in sets.items()}
    proposals = systems.dsr_proposals(known, pools, models.settings)
    proposals += _perfect_proposals(everything, output, models, perfect)
    references += [nbest.reference or "" for lists in perfect.values() for nbest in lists]
    gates = {**models.settings.gates, "dsr": _gate(proposals, references)}
    models = replace(models, settings=replace(models.settings, gates=gates))
    logging.info("settings: %s", models.settings)
    _save(models, finished, hub.model_info(finished).provenance)


def _save(models: systems.Models, finished: Path, provenance: dict[str, Any]) -> None:
    assets = {SETTINGS_NAME: json.dumps(settings_to_json(models.settings), indent=1)}
    card = (finished / "README.md").read_text() if (finished / "README.md").exists() else f"# {finished.name}\n"
    save(models.model, finished, card, provenance, assets)


def report(folder: Path, output: Path, model_dir: Path, sets: list[str] | None, only: list[str] | None = None) -> None:
    """Evaluate all systems, or those named, on the reporting sets; write results.json and the tables."""
    tune = to_lists(tuning_pairs(output))
    models = make_models(output, model_dir, read_settings(model_dir))
    names = sets or [f"synthetic-{n}" for n in ("book", "voice")] + [
        f"real-{n}" for n in data.recordings(folder) if n != "train" and not n.startswith("tune")
    ]
    lists = {name: rows for name in names if (rows := to_lists(read_set(output, name)))}
    everything = plans(folder)
    texts = [sentence.words for sentence in data.sentences(folder)["train"]]
    train = to_lists([*read_set(output, "synthetic-train"), *read_set(output, "real-train")])
    compared = systems.baselines(models, tune, TUNE_NAME, train, texts)
    paper = ScoreWeights(**json.loads((output / PAPER_WEIGHTS).read_text()))
    whole, pools = scored_lists(everything, output, models, lists), dsr_pools(everything, output, models, lists)
    compared |= systems.sounding(models.settings, paper, whole, pools) | systems.denoised(models) | systems.oracles()
    compared = {name: system for name, system in compared.items() if only is None or name in only}
    rows = evaluate(compared, lists)
    write_json(rows, output / "results.json")
    (output / "tables.md").write_text(table(rows))
    print(table(rows))
    if only is None:
        print(_references_as_input(everything, output, models, lists))


def _references_as_input(
    plans: dict[str, Plan], output: Path, models: systems.Models, lists: dict[str, list[NBest]]
) -> str:
    """Return the fraction of references that stay unchanged as input, by decoding and gate."""
    lines = ["| references as input, unchanged | gate off | gate on | texts |", "|---|---|---|---|"]
    gates = models.settings.gates
    references = [nbest.reference or "" for rows in lists.values() for nbest in rows][:REFERENCES]
    for decoding in systems.DECODINGS:
        run = Proposals(models.model, models.settings, decoding, models.language_model)
        fractions = [unchanged_fraction(run.system(gate), references) for gate in (Gate(off=True), gates[decoding])]
        lines.append(f"| {decoding} | {100 * fractions[0]:.2f} % | {100 * fractions[1]:.2f} % | {len(references)} |")
    for name, rows in lists.items():
        perfect = {name: _as_lists(rows)[:SOUND_REFERENCES]}
        proposals = _perfect_proposals(plans, output, models, perfect)
        same = [
            100 * float(np.mean([a == b.reference for a, b in zip(gated(proposals, gate), perfect[name], strict=True)]))
            for gate in (Gate(off=True), gates["dsr"])
        ]
        lines.append(f"| DSR, {name} | {same[0]:.2f} % | {same[1]:.2f} % | {len(proposals)} |")
    return "\n".join(lines)


def _first_settings(output: Path, tune: list[NBest]) -> DecodingSettings:
    """Return settings with the names of the other models and the weights of list and n-gram model."""
    language_model = load_ngram(output / LANGUAGE_MODEL)
    return DecodingSettings(
        recognizer=next(pair["asr"] for pair in tuning_pairs(output)),
        listed=LISTED,
        language_model=LANGUAGE_MODEL,
        language_model_sha256=hub.fingerprint(output / LANGUAGE_MODEL),
        list_scales=rescoring(ngram_scorer(language_model), tune, TUNE_NAME)[1],
    )


def make_models(output: Path, model_dir: Path, settings: DecodingSettings) -> systems.Models:
    trained = output / "char-lm" / "best"
    char_lm = CharLm.load(trained) if trained.exists() else None
    return systems.Models(load(model_dir), settings, load_ngram(output / LANGUAGE_MODEL), char_lm)


def scored_lists(
    plans: dict[str, Plan], output: Path, models: systems.Models, sets: dict[str, list[NBest]], swapped: bool = False
) -> Pool:
    """Return all texts of all lists with all scores except the Denoising LM's; `swapped` as in `dsr.scored`."""
    pools = _pool_maker(output, models)
    label = f"{models.settings.sound_model_sha256} {models.settings.language_model_sha256}"
    result: Pool = {}
    for name, lists in sets.items():
        path = output / "sound" / f"{name}{SWAPPED if swapped else ''}.jsonl"
        result |= scored(plans[name], lists, pools.of_list, path, label, swapped)
    return result


def dsr_pools(
    plans: dict[str, Plan], output: Path, models: systems.Models, sets: dict[str, list[NBest]], suffix: str = ""
) -> Pool:
    """Return DSR's candidates of all lists; the suffix is added to the file names, `SWAPPED` for that control."""
    settings = models.settings
    weights = sum(float(tensor.double().abs().sum()) for tensor in models.model.state_dict().values())
    shortlist = str(settings.shortlist).replace("ScoreWeights", "Scales")  # the label of stored files
    label = f"{settings.sound_model_sha256} {settings.language_model_sha256} {weights:.6e} {shortlist}"
    label += f" {settings.shortlisted} {settings.proposals}"
    result: Pool = {}
    for name, lists in sets.items():
        path = output / "dsr" / f"{name}{suffix}.jsonl"
        result |= scored(plans[name], lists, _pool_maker(output, models).make, path, label, suffix == SWAPPED)
    return result


def _pool_maker(output: Path, models: systems.Models) -> DsrCandidates:
    scorer = CtcRecognizer.load(output / SOUND_MODEL, search=False)
    settings = models.settings
    sizes = settings.shortlisted, settings.proposals
    return DsrCandidates(models.model, scorer, models.language_model, settings.shortlist, *sizes)


def _perfect_proposals(
    plans: dict[str, Plan], output: Path, models: systems.Models, perfect: dict[str, list[NBest]]
) -> list[Proposal]:
    """Return DSR's proposals where the list consists of the reference."""
    pools = dsr_pools(plans, output, models, perfect, "-references")
    return systems.dsr_proposals([nbest for lists in perfect.values() for nbest in lists], pools, models.settings)


def _as_lists(lists: list[NBest]) -> list[NBest]:
    """Return lists that consist of the reference."""
    return [
        NBest(nbest.id, (Hypothesis(nbest.reference or "", 0.0),), nbest.reference)
        for nbest in lists
        if nbest.reference
    ]


def _gate(proposals: list[Proposal], references: list[str]) -> Gate:
    hypotheses, candidates = [p.hypothesis for p in proposals], [p.candidate for p in proposals]
    return tune_gate(hypotheses, candidates, [p.gain for p in proposals], references)[0]
