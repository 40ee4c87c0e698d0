"""The Denoising LM's recipe: stages as plain functions, run one by one or in order."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import controls
import data
import loop
import measure
import recognizer
import speed
import systems
import torch
from evaluate import System, evaluate, table, to_lists
from measure import LANGUAGE_MODEL
from sets import ON_REQUEST, TRAIN_SETS, plans, read_set, tuning_pairs

from audio_llm import hub
from audio_llm.dlm.generate import generate
from audio_llm.dlm.model import load
from audio_llm.dlm.pack import pack
from audio_llm.dlm.settings import read_settings
from audio_llm.errors import DataError
from audio_llm.lm.char_lm import CharLm, CharLmConfig, train_char_lm
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import load_ngram, save_ngram
from audio_llm.nbest import Hypothesis, NBest, read_nbest
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.training.loop import TrainingConfig

CTC_PAIRS = Path("pairs", "ctc-train.jsonl")  # in the output folder
PAIR_COPIES = 6  # copies of each pair of pocketsphinx, to balance the pairs of the CTC recognizer
CHAR_LM = TrainingConfig(100_000, schedule_by="time", log_every=50, validate_every=500)
STAGES = (
    "generate",
    "pack",
    "lm",
    "char-lm",
    "tune",
    "tune-sound",
    "report",
    "controls",
    "loop",
    "transfer",
    "ctc-pack",
    "ctc-tune",
    "ctc-pairs",
    "ctc-report",
    "speed",
)


def stage_generate(
    folder: Path, output: Path, sets: list[str] | None, workers: int, max_minutes: float | None, max_shards: int | None
) -> None:
    """Generate the pairs of the named sets, in that order; the time limit is that of all of them."""
    everything = plans(folder)
    began = time.monotonic()
    for name in sets or [name for name in everything if name != ON_REQUEST]:
        report = generate(
            everything[name],
            output / "pairs" / name,
            workers,
            None if max_minutes is None else max(0.0, max_minutes - (time.monotonic() - began) / 60),
            max_shards,
            progress=functools.partial(logging.info, "%s: %d of %d shards", name),
        )
        logging.info("%s: %s", name, report)


def stage_pack(folder: Path, output: Path, sets: list[str] | None, max_texts: int | None) -> None:
    """Pack the available training and tuning pairs, and the other training sentences."""
    pairs = [pair for name in sets or TRAIN_SETS for pair in read_set(output, name)]
    ctc_pairs = recognizer.read_ctc_pairs(output / CTC_PAIRS)
    tune = tuning_pairs(output)
    texts = [sentence.words for sentence in data.sentences(folder)["train"]][:max_texts]
    data.check_no_leak([*texts, *(pair["reference"] for pair in (*pairs, *ctc_pairs))], folder)
    pack(pairs, texts, tune, output / "packed", other_pairs=ctc_pairs, copies=PAIR_COPIES if ctc_pairs else 1)
    counts = len(pairs), len(ctc_pairs), len(texts), len(tune)
    logging.info("packed %d pairs of pocketsphinx, %d of the CTC recognizer, %d texts, %d tuning pairs", *counts)


def stage_lm(folder: Path, output: Path) -> None:
    """Train the n-gram model on the training sentences; it is a baseline and a part of DLM-sum and DSR."""
    texts = [sentence.words for sentence in data.sentences(folder)["train"]]
    data.check_no_leak(texts, folder)
    provenance = {"recipe": "recipes/dlm", "seed": data.SEED, "sentences": len(texts)}
    target = output / LANGUAGE_MODEL
    card = (target / hub.CARD_NAME).read_text() if (target / hub.CARD_NAME).exists() else f"# {LANGUAGE_MODEL}\n"
    save_ngram(train_ngram(texts), target, card, provenance)


def stage_char_lm(
    folder: Path, output: Path, max_minutes: float | None, max_texts: int | None, resume: bool, cpu_bf16: bool
) -> None:
    """Train a Transformer language model of the Denoising LM's size on the same sentences: a baseline."""
    parts = data.sentences(folder)
    texts, tune = ([sentence.words for sentence in parts[name]][:max_texts] for name in ("train", "tune"))
    data.check_no_leak(texts, folder)
    torch.manual_seed(data.SEED)
    model = CharLm(CharLmConfig())
    limits: Any = {"max_minutes": max_minutes, "resume": resume}
    training = replace(CHAR_LM, cpu_bf16=cpu_bf16)
    result = train_char_lm(model, texts, tune, output / "char-lm", training, seed=data.SEED, **limits)
    logging.info("%s", result)


def stage_transfer(folder: Path, output: Path, model_dir: Path, ctc: Path | None, limit: int) -> None:
    """Evaluate the model on lists of Whisper and of the CTC recognizer, which it was not trained on."""
    models = measure.make_models(output, model_dir, read_settings(model_dir))
    compared: dict[str, System] = {"recognizer": systems.recognizer, **systems.denoised(models)}
    compared["oracle"] = systems.oracles()["oracle of 100"]
    sets = {name: _normalized(read_nbest(folder / "nbest" / f"{name}.json"))[:limit] for name in data.TRANSFER_LISTS}
    if ctc is not None:
        ctc_lists = recognizer.recognized(folder, ctc, limit)
        sets.update({f"ctc, {name}": _by_rank(lists) for name, lists in ctc_lists.items()})
    rows = evaluate(compared, sets)
    (output / "transfer.md").write_text(table(rows))
    print(table(rows))


def stage_loop(output: Path, model_dir: Path, named: list[str], sets: list[str]) -> None:
    """Compare Denoising LMs that differ only in their training pairs, with the settings of `model_dir`."""
    models = {name: load(path) for name, _, path in (word.partition("=") for word in named)}
    language_model = load_ngram(output / LANGUAGE_MODEL)
    lists = {name: to_lists(read_set(output, name)) for name in sets}
    for name, rows in lists.items():
        if not rows:
            raise DataError(f"the set {name} has no pairs", path=output, remedy="run the stage generate")
    tables = loop.compare(models, read_settings(hub.find_model(model_dir)), language_model, lists)
    (output / "loop.md").write_text(tables)
    print(tables)


def stage_speed(folder: Path, output: Path, model_dir: Path, limit: int) -> None:
    """Measure the cost of correction."""
    lists = to_lists(read_set(output, "synthetic-tune"))[:limit]
    recordings = [Path(r.path) for r in data.recordings(folder)["tune-kathleen"]][:limit]
    print(speed.report(lists, recordings, model_dir))


def _by_rank(lists: Iterable[NBest]) -> list[NBest]:
    """Return the lists with a best text, without scores, as those count for the tuned recognizer only."""
    return [
        NBest(nbest.id, tuple(Hypothesis(h.text) for h in nbest.hypotheses), nbest.reference)
        for nbest in lists
        if nbest.best
    ]


def _normalized(lists: Iterable[NBest]) -> list[NBest]:
    return [
        NBest(
            nbest.id,
            tuple(Hypothesis(DEFAULT_NORMALIZER(h.text), h.score) for h in nbest.hypotheses),
            DEFAULT_NORMALIZER(nbest.reference or ""),
        )
        for nbest in lists
    ]


def main() -> int:
    """Run the stage given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, required=True, help="folder with text/, audio/ and nbest/")
    parser.add_argument("--output", type=Path, default=Path("exp/dlm"))
    parser.add_argument("--sets", nargs="*", help="generate, pack, report, controls, loop: names of sets")
    parser.add_argument("--only", nargs="*", help="report: names of systems in the tables; default: all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--max-shards", type=int, help="generate: largest number of shards per set")
    parser.add_argument("--max-texts", type=int, help="pack, char-lm: number of training sentences")
    parser.add_argument("--resume", action="store_true", help="char-lm: resume the training")
    parser.add_argument("--cpu-bf16", action="store_true", help="char-lm: bfloat16, for CPUs with AVX512_BF16 or AMX")
    parser.add_argument(
        "--limit",
        type=int,
        default=100,
        help="controls, transfer, ctc-report, speed: largest number of utterances per set",
    )
    parser.add_argument("--ctc", type=Path, help="transfer: model directory of a CTC recognizer")
    parser.add_argument("--model", type=Path, help="a model directory")
    parser.add_argument("--models", nargs="+", metavar="NAME=DIR", help="loop: Denoising LMs and their names")
    parser.add_argument("--finished", type=Path, help="tune, tune-sound, ctc-tune: the model directory to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.stage == "generate":
        limits = arguments.max_minutes, arguments.max_shards
        stage_generate(arguments.data, arguments.output, arguments.sets, arguments.workers, *limits)
    elif arguments.stage == "pack":
        stage_pack(arguments.data, arguments.output, arguments.sets, arguments.max_texts)
    elif arguments.stage == "lm":
        stage_lm(arguments.data, arguments.output)
    elif arguments.stage == "char-lm":
        limits = arguments.max_minutes, arguments.max_texts
        stage_char_lm(arguments.data, arguments.output, *limits, arguments.resume, arguments.cpu_bf16)
    elif arguments.stage == "tune":
        measure.tune_on_lists(arguments.output, arguments.model, arguments.finished)
    elif arguments.stage == "tune-sound":
        measure.tune_on_sound(arguments.data, arguments.output, arguments.finished)
    elif arguments.stage == "report":
        measure.report(arguments.data, arguments.output, arguments.model, arguments.sets, arguments.only)
    elif arguments.stage == "controls":
        print(controls.report(arguments.data, arguments.output, arguments.model, arguments.sets, arguments.limit))
    elif arguments.stage == "loop":
        names = [word.partition("=")[0] for word in arguments.models or [] if "=" in word]
        if not arguments.model or len(names) < 2 or len({*names}) < len(arguments.models):
            parser.error("loop: give --model, and with --models two or more NAME=DIR with different names")
        stage_loop(arguments.output, arguments.model, arguments.models, arguments.sets or ["synthetic-voice"])
    elif arguments.stage == "transfer":
        stage_transfer(arguments.data, arguments.output, arguments.model, arguments.ctc, arguments.limit)
    elif arguments.stage == "ctc-pack":
        recognizer.pack_speech(arguments.data, arguments.output / "ctc", arguments.workers, arguments.max_minutes)
    elif arguments.stage == "ctc-tune":
        language_model = arguments.output / LANGUAGE_MODEL
        recognizer.tune_search(arguments.output / "ctc", arguments.model, language_model, arguments.finished)
    elif arguments.stage == "ctc-pairs":
        recognizer.write_pairs(arguments.output / "ctc", arguments.model, arguments.output / CTC_PAIRS)
    elif arguments.stage == "ctc-report":
        print(recognizer.report(arguments.data, arguments.model, arguments.limit))
    elif arguments.stage == "speed":
        stage_speed(arguments.data, arguments.output, arguments.model, arguments.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
