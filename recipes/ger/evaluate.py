"""Tables of systems on sets of lists."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from systems import System

from audio_llm.list_metrics import CorrectionScores, score_corrections
from audio_llm.metrics import RESAMPLES, utterance_errors
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer

HEADER = (
    "| system | WER % (95 %) | letters joined | relative % | p | changed % | keep-correct % | fix-wrong % | "
    "HER % | hallucinated % | RIR | ms a list |\n" + "|---" * 12 + "|\n"
)


def measure(systems: Mapping[str, System], lists: Sequence[NBest], store: Path) -> dict[str, list[str]]:
    """Run systems on one set of lists, write their texts to a JSON file, and return them by system.

    Returns:
        Texts by system, and under the system's name and `/ms` the milliseconds per list.
    """
    results: dict[str, list[str]] = {}
    for name, system in systems.items():
        begin = time.perf_counter()
        results[name] = system(lists)
        results[f"{name}/ms"] = [str(1000 * (time.perf_counter() - begin) / max(1, len(lists)))]
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps({"ids": [nbest.id for nbest in lists], "texts": results}))
    return results


def table(lists: Sequence[NBest], results: Mapping[str, Sequence[str]]) -> str:
    """Return the table of a set of lists."""
    rows = [HEADER]
    for name, texts in results.items():
        if name.endswith("/ms"):
            continue
        scores, joined = (score_corrections(lists, texts, get_normalizer(n)) for n in ("spoken", "letters"))
        rows.append(_row(name, scores, joined, float(results[f"{name}/ms"][0])))
    return "".join(rows)


def difference(lists: Sequence[NBest], before: Sequence[str], after: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two word error rates, after minus before, in points.

    Paired; recordings are resampled, each with all its conditions.
    """
    references = [nbest.reference or "" for nbest in lists]
    one, other = (utterance_errors(references, texts) for texts in (before, after))
    return _interval(lists, 100.0 * (other[:, :3].sum(axis=1) - one[:, :3].sum(axis=1)), one[:, 3])


def mean_interval(lists: Sequence[NBest], values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of (lists,) values; recordings are resampled with all their conditions."""
    return _interval(lists, values, np.ones(len(values)))


def _interval(lists: Sequence[NBest], sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    names = {name: row for row, name in enumerate(dict.fromkeys(_recording(nbest) for nbest in lists))}
    owners = np.array([names[_recording(nbest)] for nbest in lists])
    totals, sizes = (np.bincount(owners, weights=values) for values in (sums, counts))
    draws = np.random.default_rng(1).integers(len(names), size=(RESAMPLES, len(names)))
    low, high = np.quantile(totals[draws].sum(axis=1) / sizes[draws].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _recording(nbest: NBest) -> str:
    return nbest.id.split("@")[0]


def _row(name: str, scores: CorrectionScores, joined: CorrectionScores, ms: float) -> str:
    interval = scores.output.interval
    columns = [
        name,
        f"{100 * scores.output.counts.rate:.2f} ({100 * interval.low:.2f}-{100 * interval.high:.2f})",
        f"{100 * joined.output.counts.rate:.2f}",
        _number(scores.relative_change, 100, "+.1f"),
        f"{scores.p_value:.3f}",
        f"{100 * scores.changed_rate:.1f}",
        _number(scores.keep_correct_rate, 100, ".1f"),
        _number(scores.fix_wrong_rate, 100, ".1f"),
        _number(scores.harmful_edit_rate, 100, ".1f"),
        _number(scores.hallucinated_rate, 100, ".2f"),
        _number(scores.recovered, 1, ".2f"),
        f"{ms:.1f}",
    ]
    return f"| {' | '.join(columns)} |\n"


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(factor * value, form)
