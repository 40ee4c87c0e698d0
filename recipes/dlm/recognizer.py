"""Our own CTC recogniser: what it is trained and tuned on, and its word error rates."""

from __future__ import annotations

import json
import logging
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
SPOKEN_SENTENCES = 24_000  # for training; 27 hours
RECORDED_COPIES = 3  # of each recording: one as it is, two varied
REPORTED = ("kathleen", "dev-clean-60", "dev-clean", "test-other")  # recordings
HEARING_PASSES, HEARING_DROPOUT = 1, 0.1  # of the spoken sentences, for pairs
MOST_WRONG = 0.8  # of the words of a pair that is used
SEARCH = {"language_weight": (0.6, 0.15), "word_reward": (1.5, 0.7), "unknown_reward": (-5.0, 2.0)}  # first guess, step
TUNE_SENTENCES = 100  # spoken, beside the tuning recordings


def pack_speech(folder: Path, output: Path, workers: int, max_minutes: float | None) -> None:
    """Make the packs `spoken` and `recorded` for training and `tune` to choose the best model by."""
    parts = data.sentences(folder)
    sets = data.recordings(folder)
    order = np.random.default_rng(data.SEED).permutation(len(parts["train"]))[:SPOKEN_SENTENCES]
    spoken = _spoken([parts["train"][i] for i in order])
    data.check_no_leak([item.words for item in spoken], folder)
    tune = _spoken(parts["tune"][:TUNE_SENTENCES])
    tune += [item for name in ("tune-kathleen", "tune-dev-clean") for item in _recorded(sets[name])]
    recorded = _recorded(sets["train"], RECORDED_COPIES)
    packs = {"tune": (tune, CLEAN), "recorded": (recorded, None), "spoken": (spoken, None)}
    for name, (items, variation) in packs.items():
        if items:
            logging.info("%s: %s", name, pack(items, output / name, variation, workers, max_minutes))


def tune_search(packs: Path, model_dir: Path, language_model: Path, finished: Path) -> None:
    """Find what the trigram counts for in the search; write the model with it to `finished`."""
    network = load_network(model_dir)
    heard = log_probs_packed(network, packs / "tune")
    ngram = load_ngram(language_model)

    def errors(settings: SearchSettings) -> float:
        prior = WordPrior(ngram, settings)
        found = [CtcPosteriors(log_probs).search(settings.beam, prior) for _, log_probs in heard]
        rate = metrics.word_errors([said for said, _ in heard], [texts[0][0] if texts else "" for texts in found]).rate
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
    """Write what the recogniser hears in its training data, as JSON lines of `reference` and `hypotheses`.

    What is nearly all wrong is left out, for it would teach to invent.
    """
    network = load_network(model_dir)
    rows = []
    for name in (name for name in ("spoken", "recorded") if (packs / name).exists()):
        for reference, texts in recognize_packed(network, packs / name, HEARING_PASSES, HEARING_DROPOUT, data.SEED):
            words = reference.split()
            near = [t for t in texts if count_edits(words, t.split()).errors <= MOST_WRONG * len(words)]
            if near:
                rows.append({"reference": reference, "hypotheses": [{"text": text} for text in near]})
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_heard_pairs(path: Path) -> list[dict[str, Any]]:
    """Read what `write_pairs` wrote; nothing where it was not run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(folder: Path, model_dir: Path, limit: int) -> str:
    """Return a table of word error rates on held-out speech, of the network alone and of the search."""
    head = "WER % (95 %), letters alone | WER % (95 %), search | S/D/I | WER %, sounds shuffled"
    lines = [f"| set | utterances | {head} |", "|---" * 6 + "|"]
    recognizer = CtcRecognizer.load(model_dir)
    for name, items in _reported(folder, limit).items():
        references = [item.words for item in items]
        spelled, found = [], []
        for item in items:
            waveform = make_waveform(item, CLEAN)
            spelled.append(recognizer.posteriors(waveform).greedy_text())
            found.append(recognizer.recognize(waveform).best)
        counts = metrics.word_errors(references, found)
        shuffled = metrics.word_errors(references, [*found[1:], found[0]])
        lines.append(
            f"| {name} | {len(items)} | {_rate(references, spelled)} | {_rate(references, found)} | "
            f"{counts.substitutions}/{counts.deletions}/{counts.insertions} | {100 * shuffled.rate:.1f} |"
        )
    return "\n".join(lines)


def recognized(folder: Path, model_dir: Path, limit: int, nbest: int = 5) -> dict[str, list[NBest]]:
    """Return what the recogniser hears in the first utterances of each reported set."""
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
    items = {"flite, held-out novel": _spoken(data.sentences(folder)["book"][:limit])}
    return items | {name: _recorded(sets[name][:limit]) for name in REPORTED}


def _rate(references: Sequence[str], texts: Sequence[str]) -> str:
    interval = metrics.bootstrap_interval(metrics.utterance_errors(references, texts))
    rate = metrics.word_errors(references, texts).rate
    return f"{100 * rate:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def _spoken(sentences: Sequence[data.Sentence]) -> list[SpeechItem]:
    return items_from_texts([(s.id, s.text, s.words) for s in sentences], VOICES, data.SEED)


def _recorded(recordings: Sequence[Recording], copies: int = 1) -> list[SpeechItem]:
    rows = [{"path": r.path, "text": r.text, "id": r.id} for r in recordings]
    return items_from_rows(rows, Path(), copies, data.SEED, DEFAULT_NORMALIZER.name)
