"""The Denoising LM's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import data
import numpy as np
import recognizer
import torch
from dsr import choose_all, of_pool, scored_pools
from evaluate import (
    RIVAL,
    Proposals,
    System,
    evaluate,
    ngram_scorer,
    rescoring,
    table,
    to_lists,
    tune_gates,
    tune_temperature,
    unchanged_share,
    write_json,
)

from audio_llm import hub, metrics
from audio_llm.asr.engines import load_recognizer
from audio_llm.dlm.corrector import SETTINGS_NAME, Decoding, DecodingSettings, read_settings, settings_to_json
from audio_llm.dlm.decode import Candidate
from audio_llm.dlm.gate import Gate, tune_gate
from audio_llm.dlm.generate import GenerationConfig, Plan, generate, plan_recordings, plan_speech, read_pairs
from audio_llm.dlm.model import DenoisingLM, load, save
from audio_llm.dlm.pack import pack
from audio_llm.dlm.rescore import Scales, Scored, choose, tune_scales
from audio_llm.ger.phrase import PhraseCorrector
from audio_llm.lm.char_lm import CharLm, CharLmConfig, train_char_lm
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import NgramLm, load_ngram, save_ngram
from audio_llm.nbest import Hypothesis, NBest, read_nbest
from audio_llm.simulation.augment import CLEAN
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.training.loop import TrainingConfig

TUNE_SETS = ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean")
DSR_GRID = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)
DECODINGS: tuple[Decoding, ...] = ("greedy", "dlm-sum")  # those that need no sound
SUM_LISTS = 150  # tuning lists that DLM-sum's factor and gate are found on, for time
SYNTHETIC_TESTS = ("tune", "book", "voice")
LISTED = 100  # hypotheses kept of each utterance; 20 of them are the list that the baselines choose from
REFERENCES = 600  # fed as if they had been heard
LANGUAGE_MODEL = "novels-3gram"
CHAR_LM = TrainingConfig(100_000, schedule_by="time", log_every=50, validate_every=500)
STAGES = ("generate", "pack", "lm", "char-lm", "tune", "report", "dsr", "transfer", "ctc-pack", "ctc-report")


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
    tune = [
        pair
        for name in ("synthetic-tune", "real-tune-kathleen", "real-tune-dev-clean")
        for pair in _pairs(output, name)
    ]
    texts = [sentence.words for sentence in data.sentences(folder)["train"]][:max_texts]
    data.check_no_leak([*texts, *(pair["reference"] for pair in pairs)], folder)
    pack(pairs, texts, tune, output / "packed")
    logging.info("packed %d pairs, %d texts, %d tuning pairs", len(pairs), len(texts), len(tune))


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


def stage_tune(output: Path, model_dir: Path, finished: Path, name: str) -> None:
    """Find gates and scales on the tuning pairs; write the finished model directory with its settings."""
    model = load(model_dir)
    tune = to_lists(_tuning_pairs(output))
    version = next(pair["asr"] for pair in _tuning_pairs(output))
    language_model = load_ngram(output / LANGUAGE_MODEL)
    settings = DecodingSettings(
        recognizer=version,
        language_model=LANGUAGE_MODEL,
        language_model_sha256=hub.fingerprint(output / LANGUAGE_MODEL),
        list_scales=rescoring(ngram_scorer(language_model), tune, "+".join(TUNE_SETS))[1],
    )
    few = [tune[i] for i in np.random.default_rng(data.SEED).permutation(len(tune))[:SUM_LISTS]]
    settings = replace(settings, list_scales=tune_temperature(model, few, settings, language_model))
    settings = replace(settings, gates=tune_gates(model, tune, settings, ["greedy"], language_model))
    settings = replace(settings, gates=tune_gates(model, few, settings, ["dlm-sum"], language_model))
    if (found := output / "dsr" / "settings.json").exists():
        content = json.loads(found.read_text())
        gates = {**settings.gates, "dsr": Gate(**content["gate"])}
        settings = replace(settings, dsr=Scales(**content["scales"]), gates=gates)
    logging.info("settings: %s", settings)
    provenance = {"recipe": "recipes/dlm", "seed": data.SEED, "tuned_on": list(TUNE_SETS), "recognizer": version}
    provenance["training"] = hub.model_info(model_dir).provenance
    assets = {SETTINGS_NAME: json.dumps(settings_to_json(settings), indent=1)}
    card = (finished / "README.md").read_text() if (finished / "README.md").exists() else f"# {name}\n"
    save(model, finished, card, provenance, assets)


def stage_report(
    folder: Path, output: Path, model_dir: Path, sets: list[str] | None, only: list[str] | None = None
) -> None:
    """Measure every system, or only those named, on the reporting sets; write results.json and the tables."""
    tune = to_lists(_tuning_pairs(output))
    model = load(model_dir)
    settings = read_settings(model_dir)
    language_model = load_ngram(output / LANGUAGE_MODEL)
    systems = _systems(folder, output, model, settings, tune, language_model)
    systems = {name: system for name, system in systems.items() if only is None or name in only}
    names = sets or [f"synthetic-{n}" for n in ("book", "voice")] + [
        f"real-{n}" for n in data.recordings(folder) if n != "train" and not n.startswith("tune")
    ]
    lists = {name: to_lists(_pairs(output, name)) for name in names}
    rows = evaluate(systems, {name: rows for name, rows in lists.items() if rows})
    write_json(rows, output / "results.json")
    (output / "tables.md").write_text(table(rows))
    print(table(rows))
    if only is not None:
        return
    references = [nbest.reference or "" for rows_ in lists.values() for nbest in rows_][:REFERENCES]
    for decoding in DECODINGS:
        proposals = Proposals(model, settings, decoding, language_model)
        for label, gate in (("off", Gate(off=True)), ("on", settings.gates[decoding])):
            kept = unchanged_share(proposals.system(gate), references)
            print(f"references as input, {decoding}, gate {label}: {100 * kept:.2f} % of {len(references)} unchanged")


def stage_dsr(folder: Path, output: Path, model_dir: Path, sets: list[str] | None, limit: int) -> None:
    """Measure DSR in both readings on the first utterances of each set; its scales are found on the tuning sets."""
    model, settings, sphinx = load(model_dir), read_settings(model_dir), load_recognizer("sphinx")
    language_model = load_ngram(output / LANGUAGE_MODEL)
    everything = plans(folder)

    def prepared(name: str) -> tuple[list[NBest], dict[str, list[Scored]]]:
        lists = to_lists(_pairs(output, name))[:limit]
        path = output / "dsr" / f"{name}.jsonl"
        return lists, scored_pools(everything[name], lists, model, settings, sphinx, language_model, path, limit)

    tuning = [prepared(name) for name in TUNE_SETS]
    lists = [nbest for rows, pools in tuning for nbest in rows if pools.get(nbest.id)]
    candidates = {key: pool for _, pools in tuning for key, pool in pools.items()}
    references = [nbest.reference or "" for nbest in lists]
    systems: dict[str, System] = {"recogniser": _recogniser}
    for pool in ("paper", "pooled"):
        own = [of_pool(candidates[nbest.id], pool) for nbest in lists]
        found = tune_scales(own, references, {"asr": 1.0}, ["dlm", "lm"], "+".join(TUNE_SETS), grid=DSR_GRID)
        logging.info("DSR %s: %s", pool, found)
        if pool == settings.pool:
            _write_dsr_settings(output, lists, own, found.scales)
        systems[f"DSR, {pool}"] = functools.partial(choose_all, pools=candidates, scales=found.scales, pool=pool)
    reported = {}
    for name in sets or ["synthetic-book", "real-kathleen"]:
        reported[name], pools = prepared(name)
        candidates.update(pools)
    rows = evaluate(systems, reported)
    (output / "dsr.md").write_text(table(rows))
    print(table(rows))


def _write_dsr_settings(output: Path, lists: list[NBest], pools: list[list[Scored]], scales: Scales) -> None:
    """Write the scales and a tuned gate, for the tune stage to put into the model."""
    chosen = [pool[choose(pool, scales)] for pool in pools]
    gains = [scales.total(best) - scales.total(pool[0]) for best, pool in zip(chosen, pools, strict=True)]
    candidates = [Candidate(best.text, best.scores["dlm"]) for best in chosen]
    margins = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    gate, _ = tune_gate(
        [pool[0].text for pool in pools], candidates, gains, [nbest.reference or "" for nbest in lists], margins
    )
    (output / "dsr" / "settings.json").write_text(json.dumps({"scales": asdict(scales), "gate": asdict(gate)}))


def stage_transfer(folder: Path, output: Path, model_dir: Path, ctc: Path | None, limit: int) -> None:
    """Use the model on lists of Whisper and of our CTC recogniser, of which it knows nothing."""
    model, settings = load(model_dir), read_settings(model_dir)
    systems: dict[str, System] = {"recogniser": _recogniser, "oracle": _oracle}
    systems.update(_denoised(model, settings, load_ngram(output / LANGUAGE_MODEL)))
    sets = {name: _normalized(read_nbest(folder / "nbest" / f"{name}.json"))[:limit] for name in data.TRANSFER_LISTS}
    if ctc is not None:
        heard = recognizer.recognized(folder, ctc, limit)
        sets.update({f"ctc, {name}": [nbest for nbest in lists if nbest.best] for name, lists in heard.items()})
    print(table(evaluate(systems, sets)))


def _systems(
    folder: Path,
    output: Path,
    model: DenoisingLM,
    settings: DecodingSettings,
    tune: list[NBest],
    language_model: NgramLm,
) -> dict[str, System]:
    texts = [sentence.words for sentence in data.sentences(folder)["train"]]
    train = to_lists([*_pairs(output, "synthetic-train"), *_pairs(output, "real-train")])
    phrase = PhraseCorrector.train(train, text=texts)
    tune_name = "+".join(TUNE_SETS)
    systems: dict[str, System] = {"recogniser": _recogniser}
    systems[RIVAL], _ = rescoring(ngram_scorer(language_model), tune, tune_name)
    systems["phrase table"] = lambda lists: [c.text for c in phrase.correct(lists)]
    if (output / "char-lm" / "best").exists():
        char_lm = CharLm.load(output / "char-lm" / "best")
        systems["character LM rescoring"], _ = rescoring(char_lm.log_probs, tune, tune_name)
    systems.update(_denoised(model, settings, language_model))
    systems["oracle of the list"] = _oracle
    return systems


def _denoised(model: DenoisingLM, settings: DecodingSettings, language_model: NgramLm) -> dict[str, System]:
    systems: dict[str, System] = {}
    for decoding in DECODINGS:
        proposals = Proposals(model, settings, decoding, language_model)
        systems[f"DLM {decoding}, gate off"] = proposals.system(Gate(off=True))
        systems[f"DLM {decoding}, gate on"] = proposals.system(settings.gates[decoding])
    return systems


def _recogniser(lists: Sequence[NBest]) -> list[str]:
    return [nbest.best for nbest in lists]


def _oracle(lists: Sequence[NBest]) -> list[str]:
    return [metrics.oracle(nbest) for nbest in lists]


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
    parser.add_argument("--limit", type=int, default=100, help="dsr, transfer, ctc-report: utterances of each set")
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
        stage_tune(arguments.output, arguments.model, arguments.finished, arguments.finished.name)
    elif arguments.stage == "report":
        stage_report(arguments.data, arguments.output, arguments.model, arguments.sets, arguments.only)
    elif arguments.stage == "dsr":
        stage_dsr(arguments.data, arguments.output, arguments.model, arguments.sets, arguments.limit)
    elif arguments.stage == "transfer":
        stage_transfer(arguments.data, arguments.output, arguments.model, arguments.ctc, arguments.limit)
    elif arguments.stage == "ctc-pack":
        recognizer.pack_speech(arguments.data, arguments.output / "ctc", arguments.workers, arguments.max_minutes)
    elif arguments.stage == "ctc-report":
        print(recognizer.report(arguments.data, arguments.model, arguments.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
