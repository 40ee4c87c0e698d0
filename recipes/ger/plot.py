"""Plots the results of the stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from audio_llm.list_metrics import CorrectionScores


def draw(curve: Mapping[str, float], log: Path, rows: Mapping[str, CorrectionScores], path: Path) -> None:
    """Draw three panels: rates by number of lists, the base model's loss by steps, rates before and after by set.

    Args:
        curve: Number of lists -> word error rate of the phrase corrector.
        log: train.jsonl of the base model.
        rows: Set -> scores of the correction on it.
        path: The picture; its suffix selects the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (lists, loss, sets) = pyplot.subplots(1, 3, figsize=(13, 3.8))
    lists.plot([int(count) for count in curve], [100 * rate for rate in curve.values()], "o-")
    lists.set_xscale("log")
    lists.set_xticks([int(count) for count in curve], list(curve))
    lists.minorticks_off()
    lists.set(xlabel="training lists", ylabel="word error rate, %", title="ATIS, phrase corrector")
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    seen = [(row["step"], row["validation"]["loss"]) for row in logged if "validation" in row]
    loss.plot(*zip(*seen, strict=True), "o-")
    loss.set(ylim=0, xlabel="steps", ylabel="loss, nats a token", title="base model, synthetic lists")
    for position, scores in enumerate(rows.values()):
        before, after = 100 * scores.lists.first.counts.rate, 100 * scores.output.counts.rate
        interval = scores.output.interval
        sets.plot([before, after], [position, position], color="gray", linewidth=1)
        sets.plot(before, position, "o", color="gray")
        sets.errorbar(
            after, position, xerr=[[after - 100 * interval.low], [100 * interval.high - after]], fmt="o", color="C0"
        )
        sets.annotate(f"{scores.relative_change or 0:+.1%}", (before, position), (8, -3), textcoords="offset points")
    sets.set_yticks(range(len(rows)), [name.removeprefix("test_") for name in rows])
    sets.invert_yaxis()
    sets.set(xscale="log", xlim=(0.8, 200), xlabel="word error rate, %", title="before (gray) and after, 95 %")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
