"""The CTC recognizer: its training and validation data, and its word error rates."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
import numpy as np
from speech_sets import Recording

from audio_llm import hub, metrics
from audio_llm.align import count_edits
from audio_llm.asr.ctc import CtcPosteriors, CtcRecognizer, load_network, save_ctc
from audio_llm.asr.ctc_data import CLEAN, SpeechItem, items_from_rows, items_from_texts, make_waveform, pack
from audio_llm.asr.ctc_search import SearchSettings, WordPrior
from audio_llm.asr.ctc_train import log_probs_packed, recognize_packed
from audio_llm.lm.ngram import load_ngram
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER

VOICES = ("flite:rms", "flite:slt", "flite:awb", "flite:kal16")
SYNTHETIC_SENTENCES = 24_000  # for training; 27 hours
RECORDED_COPIES = 3  # copies of each recording: one unchanged, two augmented
REPORTED = ("kathleen", "dev-clean-60", "dev-clean", "test-other")  # sets of recordings
PAIR_PASSES, PAIR_DROPOUT = 1, 0.1  # passes over the training data, for pairs, and dropout in them
MAX_ERRORS = 0.8  # word errors over reference words of a hypothesis that is used in a pair
SEARCH = {
    "language_weight": (0.6, 0.15),
    "word_reward": (1.5, 0.7),
    "unknown_reward": (-5.0, 2.0),
}  # initial value, step
TUNE_SENTENCES = 100  # synthesized, in addition to the tuning recordings


def pack_speech(folder: Path, output: Path, workers: int, max_minutes: float | None) -> None:
    """Write the packed sets `spoken` (synthetic) and `recorded` for training, and `tune` for validation."""
    parts = data.sentences(folder)
    sets = data.recordings(folder)
    order = np.random.default_rng(data.SEED).permutation(len(parts["train"]))[:SYNTHETIC_SENTENCES]
    synthetic = _synthetic([parts["train"][i] for i in order])
    data.check_no_leak([item.words for item in synthetic], folder)
    tune = _synthetic(parts["tune"][:TUNE_SENTENCES])
    tune += [item for name in ("tune-kathleen", "tune-dev-clean") for item in _recorded(sets[name])]
    recorded = _recorded(sets["train"], RECORDED_COPIES)
    packs = {"tune": (tune, CLEAN), "recorded": (recorded, None), "spoken": (synthetic, None)}
    began = time.monotonic()
    for name, (items, variation) in packs.items():
        if items:
            left = None if max_minutes is None else max(0.0, max_minutes - (time.monotonic() - began) / 60)
            logging.info("%s: %s", name, pack(items, output / name, variation, workers, left))


def tune_search(packs: Path, model_dir: Path, language_model: Path, finished: Path) -> None:
    """Tune the weights of the trigram in the search; write the model with them to `finished`."""
    network = load_network(model_dir)
    network_outputs = log_probs_packed(network, packs / "tune")
    ngram = load_ngram(language_model)

    def errors(settings: SearchSettings) -> float:
        prior = WordPrior(ngram, settings)
        results = [CtcPosteriors(log_probs).search(settings.beam, prior) for _, log_probs in network_outputs]
        rate = metrics.word_errors(
            [reference for reference, _ in network_outputs], [texts[0][0] if texts else "" for texts in results]
        ).rate
        logging.info("%s: WER %.4f", settings, rate)
        return rate

    best = SearchSettings(language_model=language_model.name, language_model_sha256=hub.fingerprint(language_model))
    best = replace(best, **{name: guess for name, (guess, _) in SEARCH.items()})
    lowest = errors(best)
    for size in (1.0, 0.5):
        for name, (_, step) in SEARCH.items():
            for direction in (-1, 1):
                while True:
                    tried = replace(best, **{name: getattr(best, name) + direction * size * step})
                    rate = errors(tried)
                    if rate >= lowest:
                        break
                    best, lowest = tried, rate
    save_ctc(network, finished, f"# {finished.name}\n", hub.model_info(model_dir).provenance, search=best)


def write_pairs(packs: Path, model_dir: Path, output: Path) -> None:
    """Write the recognizer's hypotheses of its training data, as JSON lines of `reference` and `hypotheses`.

    Hypotheses that are mostly wrong are skipped, because they would train a corrector to invent words.
    """
    network = load_network(model_dir)
    rows = []
    for name in (name for name in ("spoken", "recorded") if (packs / name).exists()):
        for reference, texts in recognize_packed(network, packs / name, PAIR_PASSES, PAIR_DROPOUT, data.SEED):
            words = reference.split()
            near = [t for t in texts if count_edits(words, t.split()).errors <= MAX_ERRORS * len(words)]
            if near:
                rows.append({"reference": reference, "hypotheses": [{"text": text} for text in near]})
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_ctc_pairs(path: Path) -> list[dict[str, Any]]:
    """Read the pairs from `write_pairs`; none if it was not run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(folder: Path, model_dir: Path, limit: int) -> str:
    """Return a table of word error rates on held-out speech, without and with the search."""
    head = "WER % (95 %), greedy | WER % (95 %), search | S/D/I | WER %, audio shuffled"
    lines = [f"| set | utterances | {head} |", "|---" * 6 + "|"]
    recognizer = CtcRecognizer.load(model_dir)
    for name, items in _reported(folder, limit).items():
        references = [item.words for item in items]
        greedy, searched = [], []
        for item in items:
            waveform = make_waveform(item, CLEAN)
            greedy.append(recognizer.posteriors(waveform).greedy_text())
            searched.append(recognizer.recognize(waveform).best)
        counts = metrics.word_errors(references, searched)
        shuffled = metrics.word_errors(references, [*searched[1:], searched[0]])
        lines.append(
            f"| {name} | {len(items)} | {_rate(references, greedy)} | {_rate(references, searched)} | "
            f"{counts.substitutions}/{counts.deletions}/{counts.insertions} | {100 * shuffled.rate:.1f} |"
        )
    return "\n".join(lines)


def recognized(folder: Path, model_dir: Path, limit: int, nbest: int = 5) -> dict[str, list[NBest]]:
    """Return the recognizer's N-best lists of the first utterances of each reported set."""
    recognizer = CtcRecognizer.load(model_dir)
    return {
        name: [
            replace(recognizer.recognize(make_waveform(item, CLEAN), nbest, item.id), reference=item.words)
            for item in items
        ]
        for name, items in _reported(folder, limit).items()
    }


def _reported(folder: Path, limit: int) -> dict[str, list[SpeechItem]]:
    sets = data.recordings(folder)
    items = {"flite, held-out novel": _synthetic(data.sentences(folder)["book"][:limit])}
    return items | {name: _recorded(sets[name][:limit]) for name in REPORTED}


def _rate(references: Sequence[str], texts: Sequence[str]) -> str:
    interval = metrics.bootstrap_interval(metrics.utterance_errors(references, texts))
    rate = metrics.word_errors(references, texts).rate
    return f"{100 * rate:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def _synthetic(sentences: Sequence[data.Sentence]) -> list[SpeechItem]:
    return items_from_texts([(s.id, s.text, s.words) for s in sentences], VOICES, data.SEED)


def _recorded(recordings: Sequence[Recording], copies: int = 1) -> list[SpeechItem]:
    rows = [{"path": r.path, "text": r.text, "id": r.id} for r in recordings]
    return items_from_rows(rows, Path(), copies, data.SEED, DEFAULT_NORMALIZER.name)
