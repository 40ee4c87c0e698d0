"""The Denoising LM's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import data
import numpy as np
import recognizer
import speed
import systems
import torch
from dsr import Pool, scored
from evaluate import (
    Proposals,
    System,
    evaluate,
    gated,
    ngram_scorer,
    rescoring,
    table,
    to_lists,
    tune_gates,
    tune_temperature,
    unchanged_share,
    write_json,
)

from audio_llm import hub
from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.dlm.corrector import SETTINGS_NAME, DecodingSettings, Proposal, read_settings, settings_to_json
from audio_llm.dlm.dsr import Pools
from audio_llm.dlm.gate import Gate, tune_gate
from audio_llm.dlm.generate import GenerationConfig, Plan, generate, plan_recordings, plan_speech, read_pairs
from audio_llm.dlm.model import load, save
from audio_llm.dlm.pack import pack
from audio_llm.dlm.rescore import Scales, tune_scales
from audio_llm.lm.char_lm import CharLm, CharLmConfig, train_char_lm
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import load_ngram, save_ngram
from audio_llm.nbest import Hypothesis, NBest, read_nbest
from audio_llm.simulation.augment import CLEAN
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.training.loop import TrainingConfig

TUNE_SETS = ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean")
SUM_LISTS = 150  # tuning lists that DLM-sum's factor and gate are found on, for time
SYNTHETIC_TESTS = ("tune", "book", "voice")
LISTED = 100  # hypotheses kept of each utterance; 20 of them are the list that the baselines choose from
REFERENCES = 600  # fed as if they had been heard
LANGUAGE_MODEL, SOUND_MODEL = "novels-3gram", "ctc-small"
HEARD_PAIRS = Path("pairs", "ctc-train.jsonl")  # in the output folder
PAIR_COPIES = 6  # of each pair of pocketsphinx beside those of the CTC recogniser, which cost next to nothing
PAPER_SCALES = "dsr-paper.json"  # in the output folder
CHAR_LM = TrainingConfig(100_000, schedule_by="time", log_every=50, validate_every=500)
STAGES = (
    "generate",
    "pack",
    "lm",
    "char-lm",
    "tune",
    "report",
    "transfer",
    "ctc-pack",
    "ctc-pairs",
    "ctc-report",
    "speed",
)


def plans(folder: Path) -> dict[str, Plan]:
    """Return the plan of every set of pairs: synthetic speech and recordings, for training, tuning and reporting."""
    config = GenerationConfig(nbest=LISTED)
    parts = data.sentences(folder)
    result = {"synthetic-train": plan_speech(parts["train"], config)}
    clean = replace(config, augmentation=CLEAN)
    for name in SYNTHETIC_TESTS:
        voices = (data.HELD_OUT_VOICE,) if name == "voice" else config.voices
        result[f"synthetic-{name}"] = plan_speech(parts[name], replace(clean, voices=voices))
    for name, rows in data.recordings(folder).items():
        result[f"real-{name}"] = plan_recordings([(r.id, r.path, r.text) for r in rows], clean)
    return result


def stage_generate(
    folder: Path, output: Path, sets: list[str] | None, workers: int, max_minutes: float | None, max_shards: int | None
) -> None:
    """Make the pairs of the named sets, in that order."""
    everything = plans(folder)
    for name in sets or everything:
        report = generate(
            everything[name],
            output / "pairs" / name,
            workers,
            max_minutes,
            max_shards,
            progress=functools.partial(logging.info, "%s: %d of %d shards", name),
        )
        logging.info("%s: %s", name, report)


def stage_pack(folder: Path, output: Path, max_texts: int | None) -> None:
    """Pack the training and tuning pairs that are there, and the other training sentences."""
    pairs = [*_pairs(output, "synthetic-train"), *_pairs(output, "real-train")]
    heard = recognizer.read_heard_pairs(output / HEARD_PAIRS)
    tune = [
        pair
        for name in ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean")
        for pair in _pairs(output, name)
    ]
    texts = [sentence.words for sentence in data.sentences(folder)["train"]][:max_texts]
    data.check_no_leak([*texts, *(pair["reference"] for pair in (*pairs, *heard))], folder)
    pack(pairs, texts, tune, output / "packed", other_pairs=heard, copies=PAIR_COPIES if heard else 1)
    counts = len(pairs), len(heard), len(texts), len(tune)
    logging.info("packed %d pairs of pocketsphinx, %d of the CTC recogniser, %d texts, %d tuning pairs", *counts)


def stage_lm(folder: Path, output: Path) -> None:
    """Train the n-gram model on the training sentences; it is a baseline and a part of DLM-sum and DSR."""
    texts = [sentence.words for sentence in data.sentences(folder)["train"]]
    data.check_no_leak(texts, folder)
    provenance = {"recipe": "recipes/dlm", "seed": data.SEED, "sentences": len(texts)}
    target = output / LANGUAGE_MODEL
    card = (target / hub.CARD_NAME).read_text() if (target / hub.CARD_NAME).exists() else f"# {LANGUAGE_MODEL}\n"
    save_ngram(train_ngram(texts), target, card, provenance)


def stage_char_lm(folder: Path, output: Path, max_minutes: float | None, max_texts: int | None, resume: bool) -> None:
    """Train a Transformer language model of the Denoising LM's size on the same sentences: a baseline."""
    parts = data.sentences(folder)
    texts, tune = ([sentence.words for sentence in parts[name]][:max_texts] for name in ("train", "tune"))
    data.check_no_leak(texts, folder)
    torch.manual_seed(data.SEED)
    model = CharLm(CharLmConfig())
    limits: Any = {"max_minutes": max_minutes, "resume": resume}
    result = train_char_lm(model, texts, tune, output / "char-lm", CHAR_LM, seed=data.SEED, **limits)
    logging.info("%s", result)


def stage_tune(folder: Path, output: Path, model_dir: Path, finished: Path) -> None:
    """Find gates and scales on the tuning pairs; write the finished model directory with its settings."""
    name, tune = "+".join(TUNE_SETS), to_lists(_tuning_pairs(output))
    models = _models(output, model_dir, _first_settings(output, tune))
    settings = models.settings
    few = [tune[i] for i in np.random.default_rng(data.SEED).permutation(len(tune))[:SUM_LISTS]]
    settings = replace(settings, list_scales=tune_temperature(models.model, few, settings, models.language_model))
    for lists, decoding in ((tune, "greedy"), (few, "dlm-sum")):
        gates = tune_gates(models.model, lists, settings, [decoding], models.language_model)
        settings = replace(settings, gates=gates)
    everything = plans(folder)
    sets = {key: to_lists(_pairs(output, key)) for key in TUNE_SETS}
    whole = _scored_lists(everything, output, models, sets)
    heard = [nbest for nbest in tune if whole.get(nbest.id)]
    references = [nbest.reference or "" for nbest in heard]
    found = tune_scales([whole[n.id] for n in heard], references, {"asr": 0.1}, ["sound", "lm"], name)
    logging.info("list and sound: %s", found)
    models = replace(models, settings=replace(settings, shortlist=found.scales))
    pools = _dsr_pools(everything, output, models, sets)
    heard = [nbest for nbest in tune if pools.get(nbest.id)]
    references = [nbest.reference or "" for nbest in heard]
    dsr = systems.tune_dsr([pools[n.id] for n in heard], references, name)
    paper = systems.tune_dsr([systems.of_paper(pools[n.id]) for n in heard], references, name)
    (output / PAPER_SCALES).write_text(json.dumps(asdict(paper)))
    settings = replace(models.settings, dsr=dsr)
    perfect = {key: _as_heard(lists) for key, lists in sets.items()}
    proposals = systems.dsr_proposals(heard, pools, settings)
    proposals += _perfect_proposals(everything, output, replace(models, settings=settings), perfect)
    references += [nbest.reference or "" for lists in perfect.values() for nbest in lists]
    gates = {**settings.gates, "dsr": _gate(proposals, references)}
    settings = replace(settings, gates=gates)
    logging.info("settings: %s", settings)
    provenance = {"recipe": "recipes/dlm", "seed": data.SEED, "tuned_on": list(TUNE_SETS)}
    provenance |= {"recognizer": settings.recognizer, "training": hub.model_info(model_dir).provenance}
    assets = {SETTINGS_NAME: json.dumps(settings_to_json(settings), indent=1)}
    card = (finished / "README.md").read_text() if (finished / "README.md").exists() else f"# {finished.name}\n"
    save(models.model, finished, card, provenance, assets)


def stage_report(
    folder: Path, output: Path, model_dir: Path, sets: list[str] | None, only: list[str] | None = None
) -> None:
    """Measure every system, or only those named, on the reporting sets; write results.json and the tables."""
    tune = to_lists(_tuning_pairs(output))
    models = _models(output, model_dir, read_settings(model_dir))
    names = sets or [f"synthetic-{n}" for n in ("book", "voice")] + [
        f"real-{n}" for n in data.recordings(folder) if n != "train" and not n.startswith("tune")
    ]
    lists = {name: rows for name in names if (rows := to_lists(_pairs(output, name)))}
    everything = plans(folder)
    texts = [sentence.words for sentence in data.sentences(folder)["train"]]
    train = to_lists([*_pairs(output, "synthetic-train"), *_pairs(output, "real-train")])
    found = systems.baselines(models, tune, "+".join(TUNE_SETS), train, texts)
    paper = Scales(**json.loads((output / PAPER_SCALES).read_text()))
    whole, pools = _scored_lists(everything, output, models, lists), _dsr_pools(everything, output, models, lists)
    found |= systems.sounding(models.settings, paper, whole, pools) | systems.denoised(models) | systems.oracles()
    found = {name: system for name, system in found.items() if only is None or name in only}
    rows = evaluate(found, lists)
    write_json(rows, output / "results.json")
    (output / "tables.md").write_text(table(rows))
    print(table(rows))
    if only is None:
        print(_references_as_input(everything, output, models, lists))


def _references_as_input(
    plans: dict[str, Plan], output: Path, models: systems.Models, lists: dict[str, list[NBest]]
) -> str:
    """Return which share of the references comes back unchanged, by decoding and gate."""
    lines = ["| references as input, unchanged | gate off | gate on | texts |", "|---|---|---|---|"]
    gates = models.settings.gates
    references = [nbest.reference or "" for rows in lists.values() for nbest in rows][:REFERENCES]
    for decoding in systems.DECODINGS:
        run = Proposals(models.model, models.settings, decoding, models.language_model)
        shares = [unchanged_share(run.system(gate), references) for gate in (Gate(off=True), gates[decoding])]
        lines.append(f"| {decoding} | {100 * shares[0]:.2f} % | {100 * shares[1]:.2f} % | {len(references)} |")
    for name, rows in lists.items():
        perfect = {name: _as_heard(rows)[:REFERENCES]}
        proposals = _perfect_proposals(plans, output, models, perfect)
        same = [
            100 * float(np.mean([a == b.reference for a, b in zip(gated(proposals, gate), perfect[name], strict=True)]))
            for gate in (Gate(off=True), gates["dsr"])
        ]
        lines.append(f"| DSR, {name} | {same[0]:.2f} % | {same[1]:.2f} % | {len(proposals)} |")
    return "\n".join(lines)


def _first_settings(output: Path, tune: list[NBest]) -> DecodingSettings:
    """Return settings that name the models beside, with the scales of list and n-gram model."""
    language_model = load_ngram(output / LANGUAGE_MODEL)
    return DecodingSettings(
        recognizer=next(pair["asr"] for pair in _tuning_pairs(output)),
        listed=LISTED,
        language_model=LANGUAGE_MODEL,
        language_model_sha256=hub.fingerprint(output / LANGUAGE_MODEL),
        list_scales=rescoring(ngram_scorer(language_model), tune, "+".join(TUNE_SETS))[1],
        sound_model=SOUND_MODEL,
        sound_model_sha256=hub.fingerprint(output / SOUND_MODEL),
    )


def _models(output: Path, model_dir: Path, settings: DecodingSettings) -> systems.Models:
    trained = output / "char-lm" / "best"
    char_lm = CharLm.load(trained) if trained.exists() else None
    return systems.Models(load(model_dir), settings, load_ngram(output / LANGUAGE_MODEL), char_lm)


def _scored_lists(plans: dict[str, Plan], output: Path, models: systems.Models, sets: dict[str, list[NBest]]) -> Pool:
    """Return all texts of all lists with their scores but the Denoising LM's."""
    pools = _pool_maker(output, models)
    label = f"{models.settings.sound_model_sha256} {models.settings.language_model_sha256}"
    result: Pool = {}
    for name, lists in sets.items():
        path = output / "sound" / f"{name}.jsonl"
        result |= scored(plans[name], lists, pools.of_list, path, label)
    return result


def _dsr_pools(
    plans: dict[str, Plan], output: Path, models: systems.Models, sets: dict[str, list[NBest]], suffix: str = ""
) -> Pool:
    """Return DSR's candidates of all lists."""
    settings = models.settings
    weights = sum(float(tensor.double().abs().sum()) for tensor in models.model.state_dict().values())
    label = f"{settings.sound_model_sha256} {settings.language_model_sha256} {weights:.6e} {settings.shortlist}"
    label += f" {settings.shortlisted} {settings.beam}"
    result: Pool = {}
    for name, lists in sets.items():
        path = output / "dsr" / f"{name}{suffix}.jsonl"
        result |= scored(plans[name], lists, _pool_maker(output, models).make, path, label)
    return result


def _pool_maker(output: Path, models: systems.Models) -> Pools:
    scorer = CtcRecognizer.load(output / SOUND_MODEL)
    settings = models.settings
    sizes = settings.shortlisted, settings.beam
    return Pools(models.model, scorer, models.language_model, settings.shortlist, *sizes)


def _perfect_proposals(
    plans: dict[str, Plan], output: Path, models: systems.Models, perfect: dict[str, list[NBest]]
) -> list[Proposal]:
    """Return DSR's choice where the reference itself was heard."""
    pools = _dsr_pools(plans, output, models, perfect, "-references")
    return systems.dsr_proposals([nbest for lists in perfect.values() for nbest in lists], pools, models.settings)


def _as_heard(lists: list[NBest]) -> list[NBest]:
    """Return the references as if they had been heard."""
    return [
        NBest(nbest.id, (Hypothesis(nbest.reference or "", 0.0),), nbest.reference)
        for nbest in lists
        if nbest.reference
    ]


def _gate(proposals: list[Proposal], references: list[str]) -> Gate:
    heard, candidates = [p.heard for p in proposals], [p.candidate for p in proposals]
    return tune_gate(heard, candidates, [p.gain for p in proposals], references)[0]


def stage_transfer(folder: Path, output: Path, model_dir: Path, ctc: Path | None, limit: int) -> None:
    """Use the model on lists of Whisper and of our CTC recogniser, of which it knows nothing."""
    models = _models(output, model_dir, read_settings(model_dir))
    found: dict[str, System] = {"recogniser": systems.recogniser, **systems.denoised(models)}
    found["oracle"] = systems.oracles()["oracle of 100"]
    sets = {name: _normalized(read_nbest(folder / "nbest" / f"{name}.json"))[:limit] for name in data.TRANSFER_LISTS}
    if ctc is not None:
        heard = recognizer.recognized(folder, ctc, limit)
        sets.update({f"ctc, {name}": [nbest for nbest in lists if nbest.best] for name, lists in heard.items()})
    rows = evaluate(found, sets)
    (output / "transfer.md").write_text(table(rows))
    print(table(rows))


def stage_speed(folder: Path, output: Path, model_dir: Path, limit: int) -> None:
    """Measure what correction costs."""
    lists = to_lists(_pairs(output, "synthetic-tune"))[:limit]
    recordings = [Path(r.path) for r in data.recordings(folder)["tune-kathleen"]][:limit]
    print(speed.report(lists, recordings, model_dir))


def _normalized(lists: Iterable[NBest]) -> list[NBest]:
    return [
        NBest(
            nbest.id,
            tuple(Hypothesis(DEFAULT_NORMALIZER(h.text), h.score) for h in nbest.hypotheses),
            DEFAULT_NORMALIZER(nbest.reference or ""),
        )
        for nbest in lists
    ]


def _tuning_pairs(output: Path) -> list[dict[str, Any]]:
    return [pair for name in TUNE_SETS for pair in _pairs(output, name)]


def _pairs(output: Path, name: str) -> list[dict[str, Any]]:
    folder = output / "pairs" / name
    return [row for row in read_pairs(folder) if "error" not in row] if any(folder.glob("*.ok")) else []


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, required=True, help="folder with text/, audio/ and nbest/")
    parser.add_argument("--output", type=Path, default=Path("exp/dlm"))
    parser.add_argument("--sets", nargs="*", help="generate: which sets of pairs, in this order (default: all)")
    parser.add_argument("--only", nargs="*", help="report: only these systems, by their names in the tables")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--max-shards", type=int, help="generate: so many shards of each set at most")
    parser.add_argument("--max-texts", type=int, help="pack, char-lm: so many training sentences")
    parser.add_argument("--resume", action="store_true", help="char-lm: go on where it stopped")
    parser.add_argument("--limit", type=int, default=100, help="transfer, ctc-report, speed: utterances of each set")
    parser.add_argument("--ctc", type=Path, help="transfer: a CTC recogniser's model directory")
    parser.add_argument("--model", type=Path, help="tune, report, transfer: a model directory")
    parser.add_argument("--finished", type=Path, help="tune: the model directory to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.stage == "generate":
        limits = arguments.max_minutes, arguments.max_shards
        stage_generate(arguments.data, arguments.output, arguments.sets, arguments.workers, *limits)
    elif arguments.stage == "pack":
        stage_pack(arguments.data, arguments.output, arguments.max_texts)
    elif arguments.stage == "lm":
        stage_lm(arguments.data, arguments.output)
    elif arguments.stage == "char-lm":
        stage_char_lm(arguments.data, arguments.output, arguments.max_minutes, arguments.max_texts, arguments.resume)
    elif arguments.stage == "tune":
        stage_tune(arguments.data, arguments.output, arguments.model, arguments.finished)
    elif arguments.stage == "report":
        stage_report(arguments.data, arguments.output, arguments.model, arguments.sets, arguments.only)
    elif arguments.stage == "transfer":
        stage_transfer(arguments.data, arguments.output, arguments.model, arguments.ctc, arguments.limit)
    elif arguments.stage == "ctc-pack":
        recognizer.pack_speech(arguments.data, arguments.output / "ctc", arguments.workers, arguments.max_minutes)
    elif arguments.stage == "ctc-pairs":
        recognizer.write_pairs(arguments.output / "ctc", arguments.model, arguments.output / HEARD_PAIRS)
    elif arguments.stage == "ctc-report":
        print(recognizer.report(arguments.data, arguments.model, arguments.limit))
    elif arguments.stage == "speed":
        stage_speed(arguments.data, arguments.output, arguments.model, arguments.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
