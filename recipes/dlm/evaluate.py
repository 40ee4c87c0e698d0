"""Evaluates every system on every set: tuned on the tuning pairs, reported with intervals and with its changes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm import metrics
from audio_llm.dlm.corrector import DlmCorrector, Proposal
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.rescore import Scored, ScoreWeights, choose, fit_weights
from audio_llm.dlm.settings import Decoding, DecodingSettings
from audio_llm.gate import Gate, tune_gate
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import Hypothesis, NBest

TextScorer = Callable[[Sequence[str]], list[float]]
System = Callable[[Sequence[NBest]], list[str]]

NGRAM, SOUND = "n-gram rescoring, 20 best", "n-gram and sound, 100 best"  # baselines for additional p-values
_HEADER = (
    "| system | WER % (95 %) | relative % | S/D/I | p | p, n-gram | p, sound | changed % | better % | worse % "
    "| right words lost % |"
)
_COLUMNS = _HEADER.count("|") - 1


@dataclass(frozen=True)
class Row:
    """Results of one system on one set.

    Attributes:
        system: Name of the system.
        set_name: Name of the set.
        counts: Word errors.
        interval: 95 % bootstrap interval of the word error rate.
        p_value: One-sided paired bootstrap against the recognizer.
        p_ngram: The same against `NGRAM`; 1 if that system was not run before.
        p_sound: The same against `SOUND`.
        changes: Counts of changed utterances and words.
    """

    system: str
    set_name: str
    counts: metrics.ErrorCounts
    interval: metrics.Interval
    p_value: float
    p_ngram: float
    p_sound: float
    changes: metrics.ChangeCounts


def to_lists(pairs: Sequence[Mapping[str, Any]]) -> list[NBest]:
    """Return pairs as N-best lists; a pair without hypotheses becomes an empty list."""
    return [
        NBest(p["text_id"], tuple(Hypothesis(h["text"], h["score"]) for h in p["hypotheses"]), p["reference"])
        for p in pairs
    ]


def evaluate(systems: Mapping[str, System], sets: Mapping[str, Sequence[NBest]]) -> list[Row]:
    """Run every system on every set."""
    rows = []
    for set_name, lists in sets.items():
        references = [nbest.reference or "" for nbest in lists]
        before = metrics.utterance_errors(references, [nbest.best for nbest in lists])
        rivals: dict[str, np.ndarray] = {}
        for name, system in systems.items():
            outputs = system(lists)
            after = metrics.utterance_errors(references, outputs)
            if name in (NGRAM, SOUND):
                rivals[name] = after
            rows.append(
                Row(
                    name,
                    set_name,
                    metrics.word_errors(references, outputs),
                    metrics.bootstrap_interval(after),
                    metrics.paired_p_value(before, after),
                    *(metrics.paired_p_value(rivals[r], after) if r in rivals else 1.0 for r in (NGRAM, SOUND)),
                    metrics.count_changes(lists, outputs),
                )
            )
    return rows


def rescoring(scorer: TextScorer, tune: Sequence[NBest], tune_name: str) -> tuple[System, ScoreWeights]:
    """Return a system that rescores each list by the recognizer's score and another one, and its tuned weights.

    Args:
        scorer: Returns log-probabilities of texts, the score `lm`.
        tune: Tuning lists.
        tune_name: Names of the tuning sets, joined by `+`.
    """

    def pools(lists: Sequence[NBest]) -> list[list[Scored]]:
        return [
            [
                Scored(h.text, {"asr": h.score or 0.0, "lm": log_prob})
                for h, log_prob in zip(nbest.hypotheses, scorer(nbest.texts), strict=True)
            ]
            for nbest in lists
        ]

    nonempty = [nbest for nbest in tune if nbest.hypotheses]
    references = [nbest.reference or "" for nbest in nonempty]
    score_weights = fit_weights(pools(nonempty), references, ["asr", "lm"], tune_name).score_weights

    def system(lists: Sequence[NBest]) -> list[str]:
        return [pool[choose(pool, score_weights)].text if pool else "" for pool in pools(lists)]

    return system, score_weights


def ngram_scorer(language_model: NgramLm) -> TextScorer:
    """Return log p(text) of an n-gram model."""
    return lambda texts: language_model.log_probs([text.split() for text in texts])


class Proposals:
    """The proposals of a decoding, computed once for all gates.

    Args:
        model: The Denoising LM.
        settings: Its decoding settings.
        decoding: Name of the decoding.
        language_model: The n-gram model that `dlm-sum` combines with the Denoising LM.
    """

    def __init__(
        self,
        model: DenoisingLM,
        settings: DecodingSettings,
        decoding: Decoding,
        language_model: NgramLm | None = None,
    ) -> None:
        self._corrector = DlmCorrector(model, settings, decoding, gate=False, language_model=language_model)
        self._cache: dict[NBest, Proposal] = {}

    def __call__(self, lists: Sequence[NBest]) -> list[Proposal]:
        """Return the proposal for each list."""
        missing = [nbest for nbest in dict.fromkeys(lists) if nbest not in self._cache]
        self._cache.update(zip(missing, self._corrector.propose(missing), strict=True))
        return [self._cache[nbest] for nbest in lists]

    def system(self, gate: Gate) -> System:
        """Return the decoding with a gate as a system."""

        def run(lists: Sequence[NBest]) -> list[str]:
            return gated(self(lists), gate)

        return run


def gated(proposals: Sequence[Proposal], gate: Gate) -> list[str]:
    """Return the texts after the gate."""
    return [p.hypothesis if gate.verdict(p.hypothesis, p.candidate, p.gain) else p.candidate.text for p in proposals]


def tune_temperature(
    model: DenoisingLM, tune: Sequence[NBest], settings: DecodingSettings, language_model: NgramLm
) -> ScoreWeights:
    """Return the list weights times the factor that gives DLM-sum the fewest errors on tuning lists."""
    errors: dict[float, int] = {}
    scaled = {factor: _times(settings.list_scales, factor) for factor in (0.5, 1.0, 2.0, 4.0)}
    for factor, score_weights in scaled.items():
        proposals = Proposals(model, replace(settings, list_scales=score_weights), "dlm-sum", language_model)
        texts = proposals.system(Gate(off=True))(tune)
        errors[factor] = metrics.word_errors([n.reference or "" for n in tune], texts).errors
    logging.info("DLM-sum: word errors by factor on the list weights: %s", errors)
    return scaled[min(errors, key=lambda factor: (errors[factor], factor))]


def _times(score_weights: ScoreWeights, factor: float) -> ScoreWeights:
    return ScoreWeights(
        {name: factor * weight for name, weight in score_weights.weights.items()}, factor * score_weights.word_reward
    )


def tune_gates(
    model: DenoisingLM,
    tune: Sequence[NBest],
    settings: DecodingSettings,
    decodings: Sequence[Decoding],
    language_model: NgramLm,
) -> dict[str, Gate]:
    """Return the gate of each decoding with the fewest errors on the tuning lists and on their references as input.

    The references are included, so that the gate does not corrupt correct input.
    """
    perfect = [NBest(f"{n.id}-reference", (Hypothesis(n.reference or "", 0.0),), n.reference) for n in tune]
    lists = [n for n in (*tune, *perfect) if n.hypotheses]
    gates = dict(settings.gates)
    for name in decodings:
        proposals = Proposals(model, settings, name, language_model)(lists)
        gates[name], _ = tune_gate(
            [p.hypothesis for p in proposals],
            [p.candidate for p in proposals],
            [p.gain for p in proposals],
            [n.reference or "" for n in lists],
        )
    return gates


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown tables, one per set."""
    parts = []
    for set_name in dict.fromkeys(row.set_name for row in rows):
        selected = [row for row in rows if row.set_name == set_name]
        base = selected[0].counts.rate
        parts.append(f"### {set_name}: {selected[0].counts.utterances} utterances, {selected[0].counts.words} words\n")
        parts.append(_HEADER)
        parts.append("|---" * _COLUMNS + "|")
        parts += [_line(row, base) for row in selected]
        parts.append("")
    return "\n".join(parts)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON, for plots."""
    content = [asdict(row) | {"wer": row.counts.rate} for row in rows]
    path.write_text(json.dumps(content, indent=1))


def _line(row: Row, base: float) -> str:
    counts, changes = row.counts, row.changes
    relative = 100.0 * (counts.rate - base) / base if base else 0.0
    of = max(1, changes.utterances)
    return (
        f"| {row.system} | {100 * counts.rate:.2f} ({100 * row.interval.low:.1f}-{100 * row.interval.high:.1f}) "
        f"| {relative:+.1f} | {counts.substitutions}/{counts.deletions}/{counts.insertions} "
        f"| {row.p_value:.3f} | {row.p_ngram:.3f} | {row.p_sound:.3f} "
        f"| {100 * changes.changed / of:.1f} | {100 * changes.better / of:.1f} | {100 * changes.worse / of:.1f} "
        f"| {100 * changes.harmed_words / max(1, changes.right_words):.2f} |"
    )


def unchanged_fraction(system: System, references: Sequence[str]) -> float:
    """Return the fraction of correct inputs that stay unchanged."""
    lists = [NBest(str(i), (Hypothesis(r, 0.0),), r) for i, r in enumerate(references)]
    return float(np.mean([out == r for out, r in zip(system(lists), references, strict=True)]))
