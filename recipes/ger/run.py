"""The recipe: synthetic lists, a language model from scratch, its adaptation to a domain, and evaluation.

python recipes/ger/run.py STAGE --data DATA [--output exp/ger] ...
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data
import evaluate
import numpy as np
import plot
import recognize
import speech_sets
import systems

from audio_llm.asr.pronounce import read_dictionary
from audio_llm.errors import DataError
from audio_llm.ger.checkpoint import GerCheckpoint
from audio_llm.ger.checkpoint import load as load_checkpoint
from audio_llm.ger.corrector import GerCorrector
from audio_llm.ger.data import ListData, pack_data, read_data
from audio_llm.ger.neural import NeuralScorer
from audio_llm.ger.phrase import PhraseCorrector, PhraseSettings
from audio_llm.ger.phrase_training import NeuralFolds, fold_of_lists, train_phrase_corrector
from audio_llm.ger.small_lm import SmallLmSettings, create_small_lm
from audio_llm.ger.train import GerTrainConfig, train_ger
from audio_llm.list_metrics import score_corrections
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import load_ngram
from audio_llm.metrics import word_errors
from audio_llm.nbest import NBest
from audio_llm.simulation.confusions import learn_confusions
from audio_llm.simulation.lists import ListNoise, simulate_list
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.training.config import load_config

CONFIG = Path(__file__).resolve().parent / "config"
COPIES = 3  # synthetic lists of each sentence
SHORT_FRACTION = 0.1  # fraction of the lists with 1 to 4 hypotheses
FOLDS = 5
MIN_KEEP_CORRECT = 0.998  # of the correct texts, for the careful corrector
ENGLISH_LISTS = 8000  # synthetic lists mixed with single sentences, so that lists are not forgotten
UNSEEN_DOMAINS = "phrase, margin for strangers"
PICTURED = ("phrase", UNSEEN_DOMAINS)  # the first of these that was evaluated
CURVE = (250, 500, 1000, 2000, 10_000)  # lists
NOISE_ARMS = {
    "ger": ["ger.use_noise=false"],
    "ger+E": [],
    "ger+E+MINE": ["distillation.negatives=both"],
}
REAL_SPEECH_TRAIN, REAL_SPEECH_TEST = (
    ("train", "tune-kathleen", "tune-dev-clean"),
    ("kathleen", "dev-clean", "dev-clean-60", "test-other", "speechocean"),
)
LANGUAGE_MODEL = PhraseSettings().language_model  # model of the package; its text contains nothing that is scored
DOMAINS = {"LibriSpeech": ("test_ls_clean", "test_ls_other"), "Common Voice": ("test_cv",)}
_ALL_WEIGHTS = [
    "ger.tune=all",
    "training.optimizer=muon",
    "training.muon_except=[embed,segments,adapter]",
    "training.learning_rate=1e-3",
]
ARMS = {  # arms of the neural corrector: overrides of config/adapt.yaml
    "ger": ["ger.use_noise=false"],
    "ger+E": [],
    "all+E": _ALL_WEIGHTS,
}


def stage_simulate(folder: Path, output: Path) -> None:
    """Simulate lists for the sentences of books and write them as shards, with tokenizer and random model."""
    texts, tuning = data.sentences(folder)
    data.check_no_leak(texts, data.scored_texts(folder))
    confusions = learn_confusions([], texts, read_dictionary())
    rng = np.random.default_rng(data.SEED)

    def make(sentences: Sequence[str], copies: int) -> Iterator[NBest]:
        for number, text in enumerate([*sentences] * copies):
            count = 5 if rng.random() >= SHORT_FRACTION else int(rng.integers(1, 5))
            yield simulate_list(str(number), text, confusions, ListNoise(hypotheses=count), rng)

    pack_data(data.as_data(make(tuning, 1)), output / "made-up" / "tune")
    count = pack_data(data.as_data(make(texts, COPIES)), output / "made-up" / "train")
    create_small_lm(texts, output / "small", SmallLmSettings(), data.SEED)
    logging.info("%d lists of %d sentences", count, len(texts))


def stage_english(folder: Path, output: Path) -> None:
    """Write shards of single sentences of books and some synthetic lists, for a model of more English."""
    texts, tuning = data.sentences(folder)
    data.check_no_leak(texts, data.scored_texts(folder))
    for name, sentences, count in (("tune", tuning, ENGLISH_LISTS // 40), ("train", texts, ENGLISH_LISTS)):
        lists = read_data([output / "made-up" / name], DEFAULT_NORMALIZER.name)
        some = np.random.default_rng(data.SEED).permutation(len(lists))[:count]
        alone = ListData(tuple(sentences), (("",),) * len(sentences))  # as if no words were recognized
        pack_data(alone + lists.rows(some.tolist()), output / "english" / name)


def stage_recognize(
    folder: Path, output: Path, sets: Sequence[str], conditions: Sequence[str], asr: str, workers: int, limit: int
) -> None:
    """Recognize recordings, with noise or without, by a recognizer of the project."""
    recordings = speech_sets.recordings(folder)
    for name in sets:
        part = "train" if name.startswith(("train", "tune")) else "test"
        tasks = recognize.plan(recordings[name][:limit], part, conditions)
        count = recognize.recognize(tasks, folder, asr, output / "heard" / f"{asr}-{name}.jsonl", workers)
        logging.info("%s: %d lists", name, count)


def stage_atis(folder: Path, output: Path, base: Path, arm: str, fold: str, minutes: float, resume: bool) -> None:
    """Adapt the base model to ATIS.

    Args:
        folder: The data folder.
        output: Output folder; the models are written below `atis/`.
        base: The base model.
        arm: One of `ARMS`.
        fold: `held-out`: without the held-out fifth; `all`: with it; `0`, `1`: without that half of the
            folds, for the neural reranker of the phrase corrector.
        minutes: Time limit in minutes.
        resume: Resume the training.
    """
    parts = data.atis_parts(folder)
    lists = parts["train"] if fold == "held-out" else [*parts["train"], *parts["held-out"]]
    tuning = parts["tune"]
    if fold in ("0", "1"):
        fold_of = fold_of_lists([*lists, *tuning], data.SEED, PhraseSettings(folds=FOLDS))
        lists, tuning = ([n for n in some if _half(fold_of[_words(n)]) != int(fold)] for some in (lists, tuning))
    config = load_config(GerTrainConfig, CONFIG / "adapt.yaml", ARMS[arm])
    provenance = {"recipe": "recipes/ger", "arm": arm, "part": fold}
    target = output / "atis" / f"{arm}-{fold}"
    options: dict[str, Any] = {"max_minutes": minutes, "resume": resume, "provenance": provenance}
    options["tuning"] = data.as_data(tuning)
    logging.info("%s", train_ger(data.as_data(lists), base, target, config, **options))


def stage_atis_report(folder: Path, output: Path) -> None:
    """Compare all systems on ATIS: the held-out fifth of the training lists, and the test lists."""
    parts = data.atis_parts(folder)
    for part, train, fold in (
        ("held-out", parts["train"], "held-out"),
        ("test", [*parts["train"], *parts["held-out"]], "all"),
    ):
        rescoring = systems.train_rescoring(train_ngram([" ".join(_words(n)) for n in train]), parts["tune"])
        phrase = train_phrase_corrector([*train, *parts["tune"]], data.SEED)
        compared = systems.baselines("oracle of 5")
        compared |= {"trigram of references, rescoring": rescoring, "phrase": systems.Texts(phrase)}
        for arm in ARMS:
            model = output / "atis" / f"{arm}-{fold}" / "best"
            if model.exists():
                compared |= _neural_systems(model, arm)
        store = output / "out" / f"atis-{part}.json"
        print(f"### ATIS, {part}: {len(parts[part])} lists\n")
        print(evaluate.table(parts[part], evaluate.measure(compared, parts[part], store)))


def stage_atis_both(folder: Path, output: Path, arm: str) -> None:
    """Train the phrase corrector with neural reranker on ATIS, and compare."""
    parts = data.atis_parts(folder)
    train = [*parts["train"], *parts["held-out"], *parts["tune"]]
    compared = _correctors(train, _neural_folds(output / "atis", arm))
    compared["phrase + neural"].corrector.save(output / "atis" / "both", {"recipe": "recipes/ger"})
    store = output / "out" / "atis-both.json"
    print(evaluate.table(parts["test"], evaluate.measure(compared, parts["test"], store)))


def stage_domains(folder: Path, output: Path, base: Path | None) -> None:
    """Correct lists of other domains: LibriSpeech and Common Voice out of fold, each separately; the others unseen.

    Args:
        folder: The data folder.
        output: Output folder of the texts.
        base: The base model for the neural reranker; it was not trained on these lists.
    """
    neural = _unseen(base)
    train = {name: data.lists(folder, name) for name in data.SHIPPABLE}
    everything = [nbest for lists in train.values() for nbest in lists]
    corrected: dict[str, dict[str, str]] = {}
    for number, held_out in enumerate(data.folds(everything)):
        ids = {nbest.id for nbest in held_out}
        for names in DOMAINS.values():
            domain_lists = [nbest for name in names for nbest in train[name]]
            training = [n for n in domain_lists if n.id not in ids]
            scored = [n for n in domain_lists if n.id in ids]
            for name, system in (_correctors(training, neural) | _careful(training)).items():
                corrected.setdefault(name, {}).update(zip((nbest.id for nbest in scored), system(scored), strict=True))
        logging.info("fold %d is done", number + 1)
    unseen = {UNSEEN_DOMAINS: systems.Texts(_for_unseen_domains(train))}
    for name in data.REPORTED:
        lists = train.get(name) or data.lists(folder, name)
        compared = systems.baselines("oracle of 5")
        compared |= {system: _stored_texts(texts) for system, texts in corrected.items()} if name in train else unseen
        store = output / "out" / f"{name}.json"
        print(f"### {name}: {len(lists)} lists\n")
        print(evaluate.table(lists, evaluate.measure(compared, lists, store)))


def stage_real_speech(output: Path, base: Path | None, asr: str) -> None:
    """Correct lists of real speech by a recognizer of the project; save the corrector."""
    train, sets = _training_lists(output, asr), _test_sets(output, asr)
    data.check_no_leak(
        [nbest.reference or "" for nbest in train], [n.reference or "" for lists in sets.values() for n in lists]
    )
    recognizer_lm = "pocketsphinx" if asr == "sphinx" else ""
    groups = _speaker_groups(output, asr)
    correctors = _correctors(train, _unseen(base, len(set(groups))), recognizer_lm, groups)
    provenance = {"recipe": "recipes/ger", "stage": "own", "seed": data.SEED, "lists of": asr, "lists": len(train)}
    correctors["phrase"].corrector.save(output / f"own-{asr}", provenance)
    sets["all of them"] = _all_of(sets)
    for name, lists in sets.items():
        store = output / "out" / f"{asr}-{name}.json"
        print(f"### {asr}, {name}: {len(lists)} lists\n")
        print(evaluate.table(lists, evaluate.measure(systems.baselines("oracle of 20") | correctors, lists, store)))


def stage_noise(folder: Path, output: Path, base: Path, arm: str, minutes: float, asr: str, resume: bool) -> None:
    """Adapt the base model to a recognizer's lists of noisy speech."""
    lists_folder = output / "heard"
    config = load_config(GerTrainConfig, CONFIG / "adapt.yaml", NOISE_ARMS[arm])
    train = recognize.read_data(lists_folder / f"{asr}-train.jsonl")
    tuning = recognize.read_data(lists_folder / f"{asr}-tune-kathleen.jsonl") + recognize.read_data(
        lists_folder / f"{asr}-tune-dev-clean.jsonl"
    )
    target = output / "noise" / f"{asr}-{arm}"
    options: dict[str, Any] = {"max_minutes": minutes, "resume": resume}
    options["provenance"] = {"recipe": "recipes/ger", "arm": arm}
    logging.info("%s", train_ger(train, base, target, config, tuning=tuning, **options))


def stage_noise_report(folder: Path, output: Path, asr: str) -> None:
    """Compare the arms on noisy speech: with the noise embedding, without, and with a wrong one."""
    compared: dict[str, systems.System] = {"1-best": systems.first, "oracle of 20": systems.best_possible}
    correctors: dict[str, GerCheckpoint] = {}
    for arm in NOISE_ARMS:
        model = output / "noise" / f"{asr}-{arm}" / "best"
        if not model.exists():
            continue
        correctors[arm] = checkpoint = load_checkpoint(model)
        if checkpoint.collator.encoder is not None:
            for control in ("zero", "shuffled", "random"):
                other = replace(checkpoint, collator=systems.WrongNoise.of(checkpoint.collator, control))
                correctors[f"{arm}, E {control}"] = other
    for name, checkpoint in correctors.items():
        compared[f"{name}, slots"] = systems.Texts(GerCorrector(checkpoint, "slots", gate=False))
    sets = {
        (name, condition): recognize.read(output / "heard" / f"{asr}-{name}.jsonl", condition)
        for name in ("kathleen", "dev-clean")
        for condition in (recognize.CLEAN, *map(str, recognize.SNRS_DB[asr]))
    }
    chosen = {key: lists for key, lists in sets.items() if lists and 0.1 <= _first_rate(lists) <= 0.6}
    if not chosen:
        raise DataError(
            "no set has 10 to 60 % wrong words", remedy="recognize kathleen and dev-clean with more or less noise"
        )
    lists = [nbest for some in chosen.values() for nbest in some]
    surprises = {name: systems.surprise(checkpoint, lists) for name, checkpoint in correctors.items()}
    for name, values in surprises.items():
        print(f"{name}: {values.mean():.3f} nats per word of the reference")
    for before, after in itertools.combinations(surprises, 2):
        low, high = evaluate.mean_interval(lists, surprises[before] - surprises[after])
        print(f"{before} against {after}: {low:+.3f} to {high:+.3f} nats per word (95 %)")
    texts = evaluate.measure(compared, lists, output / "out" / f"{asr}-noise.json")
    print(f"### {asr}, where 10 to 60 % of the words are wrong: {len(lists)} lists\n")
    print(evaluate.table(lists, texts))
    for (name, condition), some in chosen.items():
        ids = {nbest.id for nbest in some}
        rows = [row for row, nbest in enumerate(lists) if nbest.id in ids]
        part = {n: t if n.endswith("/ms") else [t[row] for row in rows] for n, t in texts.items()}
        print(f"### {asr}, {name}, {condition}: {len(rows)} lists\n")
        print(evaluate.table([lists[row] for row in rows], part))
    for before, after in itertools.combinations(correctors, 2):
        low, high = evaluate.difference(lists, texts[f"{before}, slots"], texts[f"{after}, slots"])
        print(f"{before} against {after}, slots: {-high:+.2f} to {-low:+.2f} points of WER (95 %)")


def stage_curve(folder: Path, output: Path) -> None:
    """Train the phrase corrector on growing subsets of ATIS' lists; write and print its test word error rates."""
    parts = data.atis_parts(folder)
    train = [*parts["train"], *parts["held-out"], *parts["tune"]]
    order = np.random.default_rng(data.SEED).permutation(len(train))
    references = [nbest.reference or "" for nbest in parts["test"]]
    rates: dict[str, float] = {}
    for count in CURVE:
        corrector = train_phrase_corrector([train[i] for i in order[:count]], data.SEED, PhraseSettings(folds=FOLDS))
        texts = systems.Texts(corrector)(parts["test"])
        rates[str(min(count, len(train)))] = rate = word_errors(references, texts).rate
        print(f"{min(count, len(train))} lists: {100 * rate:.2f} %")
    (output / "curve.json").write_text(json.dumps(rates))


def stage_plot(folder: Path, output: Path) -> None:
    """Plot the curves and sets that the other stages have written to the output folder."""
    sets = {name: data.lists(folder, name) for name in (data.ATIS_TEST, *data.REPORTED)}
    sets["own recognizer"] = _all_of(_test_sets(output, "sphinx"))
    stores = {data.ATIS_TEST: "atis-both", "own recognizer": "sphinx-all of them"}
    rows = {}
    for name, lists in sets.items():
        stored = json.loads((output / "out" / f"{stores.get(name, name)}.json").read_text())["texts"]
        texts = stored[next(system for system in PICTURED if system in stored)]
        rows[name] = score_corrections(lists, texts, DEFAULT_NORMALIZER)
    plot.draw(
        json.loads((output / "curve.json").read_text()), output / "base" / "train.jsonl", rows, output / "results.png"
    )


def _test_sets(output: Path, asr: str) -> dict[str, list[NBest]]:
    return {
        name: recognize.read(output / "heard" / f"{asr}-{name}.jsonl", recognize.CLEAN) for name in REAL_SPEECH_TEST
    }


def _all_of(sets: Mapping[str, Sequence[NBest]]) -> list[NBest]:
    return list({nbest.id: nbest for lists in sets.values() for nbest in lists}.values())


def _first_rate(lists: Sequence[NBest]) -> float:
    return word_errors([nbest.reference or "" for nbest in lists], [nbest.best for nbest in lists]).rate


def _correctors(
    lists: Sequence[NBest], neural: NeuralFolds | None, recognizer_lm: Any = "", groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the systems trained on lists: rescoring, the phrase corrector without and with neural reranker."""
    settings = PhraseSettings(folds=FOLDS, recognizer_lm=recognizer_lm)
    trained = train_phrase_corrector(lists, data.SEED, settings, neural=neural, groups=groups)
    correctors: dict[str, Any] = {
        "trigram of novels, rescoring": systems.train_rescoring(load_ngram(LANGUAGE_MODEL), lists),
        "phrase": systems.Texts(replace(trained, neural_reranker=None)),
    }
    return correctors if neural is None else correctors | {"phrase + neural": systems.Texts(trained)}


def _careful(lists: Sequence[NBest]) -> dict[str, systems.System]:
    settings = PhraseSettings(folds=FOLDS, min_correct_retained=MIN_KEEP_CORRECT)
    return {"phrase, careful": systems.Texts(train_phrase_corrector(lists, data.SEED, settings))}


def _for_unseen_domains(train: Mapping[str, Sequence[NBest]]) -> PhraseCorrector:
    """Return a corrector of all lists, its margin tuned on domains that are held out in turn."""
    domains = [[nbest for name in names for nbest in train[name]] for names in DOMAINS.values()]
    held_out = []
    for number, unseen in enumerate(domains):
        training = [nbest for other, lists in enumerate(domains) if other != number for nbest in lists]
        corrector = train_phrase_corrector(training, data.SEED, PhraseSettings(folds=FOLDS))
        held_out.append((replace(corrector, score_range=None), unseen))
    everything = [nbest for lists in domains for nbest in lists]
    corrector = train_phrase_corrector(everything, data.SEED, PhraseSettings(folds=FOLDS))
    return replace(corrector, score_range=None, margin=systems.find_margin(held_out))


def _unseen(base: Path | None, folds: int = FOLDS) -> NeuralFolds | None:
    """Return for every fold a neural corrector that was not trained on the lists; None without a base model."""
    if base is None:
        return None
    scorer: Any = systems.CachedScorer(NeuralScorer(load_checkpoint(base)))
    return NeuralFolds((scorer,) * folds, scorer)


def _neural_folds(folder: Path, name: str) -> NeuralFolds:
    """Return the neural correctors NAME-0, NAME-1 (trained without that half of the folds) and NAME-all of a folder."""
    halves = [NeuralScorer(load_checkpoint(folder / f"{name}-{half}" / "best")) for half in (0, 1)]
    final = NeuralScorer(load_checkpoint(folder / f"{name}-all" / "best"))
    return NeuralFolds(tuple(halves[_half(fold)] for fold in range(FOLDS)), final)


def _speaker_groups(output: Path, asr: str) -> list[str]:
    """Return the group of each training list: Kathleen, speechocean762, or one of three of LibriSpeech's speakers."""
    groups = []
    for nbest in _training_lists(output, asr):
        speaker = nbest.id.split("-")[0]
        kathleen = speaker.startswith("arctic")
        groups.append("kathleen" if kathleen else f"libri{int(speaker) % 3}" if "-" in nbest.id else "ocean")
    return groups


def _training_lists(output: Path, asr: str) -> list[NBest]:
    return [
        nbest
        for name in REAL_SPEECH_TRAIN
        for nbest in recognize.read(output / "heard" / f"{asr}-{name}.jsonl", recognize.CLEAN)
    ]


def _stored_texts(texts: Mapping[str, str]) -> systems.System:
    return lambda lists: [texts[nbest.id] for nbest in lists]


def _neural_systems(model: Path, name: str) -> dict[str, systems.System]:
    checkpoint = load_checkpoint(model)
    return {
        f"{name}, {mode}": systems.Texts(GerCorrector(checkpoint, mode, gate=False))  # type: ignore[arg-type]
        for mode in ("free", "slots")
    }


def _words(nbest: NBest) -> tuple[str, ...]:
    return tuple(DEFAULT_NORMALIZER(nbest.reference or "").split())


def _half(fold: int) -> int:
    return 0 if fold < 2 else 1


def main() -> int:
    """Run the stage named on the command line."""
    stages: dict[str, Callable[[argparse.Namespace], None]] = {
        "simulate": lambda a: stage_simulate(a.data, a.output),
        "english": lambda a: stage_english(a.data, a.output),
        "hear": lambda a: stage_recognize(a.data, a.output, a.sets, a.conditions, a.asr, a.workers, a.limit),
        "atis": lambda a: stage_atis(a.data, a.output, a.base, a.arm, a.fold, a.max_minutes, a.resume),
        "atis-report": lambda a: stage_atis_report(a.data, a.output),
        "atis-both": lambda a: stage_atis_both(a.data, a.output, a.arm),
        "domains": lambda a: stage_domains(a.data, a.output, a.base),
        "noise": lambda a: stage_noise(a.data, a.output, a.base, a.noise_arm, a.max_minutes, a.asr, a.resume),
        "noise-report": lambda a: stage_noise_report(a.data, a.output, a.asr),
        "curve": lambda a: stage_curve(a.data, a.output),
        "plot": lambda a: stage_plot(a.data, a.output),
        "own": lambda a: stage_real_speech(a.output, a.base, a.asr),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--data", type=Path, required=True, help="data folder with text/, audio/ and nbest/")
    parser.add_argument("--output", type=Path, default=Path("exp/ger"))
    parser.add_argument("--base", type=Path, help="atis, domains, own, noise: the base model")
    parser.add_argument("--arm", choices=tuple(ARMS), default="ger+E")
    parser.add_argument(
        "--fold", choices=("held-out", "all", "0", "1"), default="held-out", help="atis: lists that are held out"
    )
    parser.add_argument("--noise-arm", choices=tuple(NOISE_ARMS), default="ger+E", help="noise: arm to train")
    parser.add_argument("--max-minutes", type=float, default=10.0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sets", nargs="*", default=["train"], help="stage hear: sets of recordings")
    parser.add_argument("--conditions", nargs="*", default=["clean"], help="stage hear: clean, any, or SNRs in dB")
    parser.add_argument("--asr", default="sphinx", help="stages own, hear: the recognizer")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=int, default=100_000, help="stage hear: maximum recordings of a set")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stages[arguments.stage](arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
