"""Evaluates every system on noisy speech of unseen speakers: figures per utterance, saved at once, and tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Pair
from noisy_sets import ONE_VOICE
from sentence_id import SentenceIdentifier
from systems import Report, System

from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.errors import DataError
from audio_llm.gense.measures import snr_db
from audio_llm.metrics import word_errors
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.tse.speaker import SpeakerEncoder, embed

_SEED = 11
_LEAST_S, _MOST_S = 2.0, 12.0  # of a mixture
_NO_SPEECH = {"pesq_wb": 1.0, "si_sdr_db": -30.0}  # figures where no speech is left; the others are 0
_LOW_DB = 10.0  # at or below it the input is bad: few chunks may be bypassed
MIXES = NoisyConfig(
    clean_prob=0.0,
    silent_prob=0.0,
    snr_db=(-3.0, 12.0),
    room_prob=1.0,
    rt60_s=(0.2, 0.7),
    early_s=0.0,
    narrow_prob=0.0,
    clipped_prob=0.0,
    level_db=(-30.0, -20.0),
)


def mixes(test: Path, count: int, config: NoisyConfig = MIXES, seed: int = _SEED) -> list[Pair]:
    """Return utterances of the test part with noise added: speakers and noises of no training."""
    speech = NoisySpeech(SpeechPack(test, labelled=True), config)
    pack, pairs = speech.pack, []
    for number in np.random.default_rng(seed).permutation(len(pack)).tolist():
        long_enough = _LEAST_S <= pack.samples[number] / 16_000 <= _MOST_S
        if long_enough and pack.speakers[number] != ONE_VOICE and len(pairs) < count:
            mixture = speech.utterance(number, seed + number)
            pairs.append(Pair(pack.ids[number], mixture.noisy, mixture.clean, pack.words[number]))
    return pairs


class Evaluator:
    """Computes the figures of outputs.

    Args:
        tokenizer: Semantic tokenizer; None: no token figures.
        teacher: Resemblyzer's speaker encoder; None: no speaker similarity.
        texts: Sentences for the closed-set sentence identification.
    """

    def __init__(self, tokenizer: S3Tokenizer | None, teacher: SpeakerEncoder | None, texts: Sequence[str]) -> None:
        self.tokenizer, self.teacher = tokenizer, teacher
        self.recognizer = CtcRecognizer.load("ctc-small")
        self.sentence_id = SentenceIdentifier(texts)

    def evaluate(self, pair: Pair, enhanced: np.ndarray, seed: int) -> dict[str, Any]:
        """Return all figures of one output."""
        words = DEFAULT_NORMALIZER(pair.words)
        row: dict[str, Any] = {
            **sound_figures(pair, enhanced),
            "heard": self.recognizer.recognize(enhanced, 1).best,
            "words": words,
        }
        if self.sentence_id.usable(words):
            row["picked"] = self.sentence_id.identifies(enhanced, words, seed)
        if self.tokenizer is not None:
            row["token_distance"], row["token_errors"] = token_errors(self.tokenizer, pair.clean, enhanced)
        if self.teacher is not None:
            vectors = embed(self.teacher, torch.from_numpy(np.stack([pair.clean, enhanced])))
            row["voice"] = float(torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0))
        return row


def sound_figures(pair: Pair, enhanced: np.ndarray) -> dict[str, float]:
    """Return the fields of `measure.Figures`; the worst values where no speech is left."""
    try:
        return asdict(measure.measure(pair, enhanced))
    except DataError:  # PESQ finds no speech in it
        logging.warning("%s: no speech is left", pair.id)
        return dict.fromkeys((field.name for field in fields(measure.Figures)), 0.0) | _NO_SPEECH


def token_errors(tokenizer: S3Tokenizer, clean: np.ndarray, enhanced: np.ndarray) -> tuple[float, float]:
    """Return the difference of the tokens of two sounds (T,): mean distance in levels, fraction that differs."""
    both = torch.from_numpy(np.stack([clean, enhanced]))
    tokens = tokenizer.encode(both, torch.tensor([both.shape[1]] * 2)).tokens
    distance = tokenizer.network.quantizer.distance(*tokens)
    return float(distance.mean()), float((tokens[0] != tokens[1]).float().mean())


def run(
    systems: dict[str, System], pairs: Sequence[Pair], evaluator: Evaluator, output: Path, name: str, versions: str
) -> None:
    """Measure what the file does not contain yet, and append one line per utterance and system.

    Args:
        systems: Systems by name.
        pairs: Noisy and clean speech.
        evaluator: Computes the figures.
        output: The file.
        name: Name of the set of pairs.
        versions: Identifies models and measures; rows with other versions are ignored.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["set"], row["system"], row["id"]) for row in rows_of(output, versions)}
    with output.open("a", encoding="utf-8") as file:
        for system, enhance in systems.items():
            for number, pair in enumerate(pairs):
                if (name, system, pair.id) in done:
                    continue
                chunks: list[dict[str, Any]] = []
                enhanced = enhance(pair, _keeper(chunks))
                row = {"set": name, "system": system, "id": pair.id, "chunks": chunks, "made_by": versions}
                row["snr_db"] = snr_db(pair.noisy, pair.clean)
                file.write(json.dumps(row | evaluator.evaluate(pair, enhanced, number)) + "\n")
                file.flush()
            logging.info("%s, %s: %d utterances", name, system, len(pairs))


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the tables: one table per set, one row per system."""
    head = "system | n | PESQ-WB | STOI | ESTOI | SI-SDR | SIG | BAK | OVRL | token distance | token errors % | "
    head += "WER % | closed set % | voice | generated % | bypassed at 10 dB or less %"
    for name in dict.fromkeys(row["set"] for row in rows):
        yield f"\n{name}\n"
        yield f"| {head} |"
        yield "|---" * (head.count("|") + 1) + "|"
        of_set = [row for row in rows if row["set"] == name]
        for system in dict.fromkeys(row["system"] for row in of_set):
            yield _line(system, [row for row in of_set if row["system"] == system])


def _line(system: str, rows: list[dict[str, Any]]) -> str:
    def mean(key: str, scale: float = 1.0, decimals: int = 2) -> str:
        values = [row[key] for row in rows if key in row]
        return f"{scale * float(np.mean(values)):.{decimals}f}" if values else "-"

    with_words = [row for row in rows if row["words"]]
    references, hypotheses = ([row[key] for row in with_words] for key in ("words", "heard"))
    wer = word_errors(references, hypotheses).rate if with_words else float("nan")
    chunks = [chunk for row in rows for chunk in row["chunks"]]
    low = [chunk for row in rows if row["snr_db"] <= _LOW_DB for chunk in row["chunks"]]
    names = ("pesq_wb", "stoi", "estoi", "si_sdr_db", "sig", "bak", "ovrl", "token_distance")
    columns = [system, str(len(rows)), *(mean(key, 1.0, 3 if key in ("stoi", "estoi") else 2) for key in names)]
    columns += [mean("token_errors", 100.0, 1), f"{100 * wer:.1f}", mean("picked", 100.0, 0), mean("voice")]
    columns += [_percentage(chunks, "generated"), _percentage(low, "bypass")]
    return "| " + " | ".join(columns) + " |"


def _percentage(chunks: list[dict[str, Any]], action: str) -> str:
    total = sum(chunk["end_s"] - chunk["start_s"] for chunk in chunks)
    selected = sum(chunk["end_s"] - chunk["start_s"] for chunk in chunks if chunk["action"] == action)
    return f"{100 * selected / total:.0f}" if total else "-"


def _keeper(chunks: list[dict[str, Any]]) -> Report:
    return lambda chunk: chunks.append(asdict(chunk))


def rows_of(path: Path, versions: str) -> list[dict[str, Any]]:
    """Return the rows of a file, if it exists, with these versions of models and measures."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row.get("made_by") == versions]
