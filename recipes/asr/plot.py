"""Word error rates and speed as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

COLORS = {"audio-llm": "C0", "faster-whisper": "C1"}


def draw(rates: Mapping[str, Mapping[str, float]], speed: Path, path: Path) -> None:
    """Draw two panels: word error rates set by set, and time against word errors for 20 minutes of speech.

    Args:
        rates: System and model, such as `audio-llm-whisper-base` -> set -> word error rate, 0 to 1.
        speed: `speed.jsonl`, or a file that does not exist.
        path: The picture; its suffix decides the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), width_ratios=(3, 2))
    names = list(dict.fromkeys(name for by_set in rates.values() for name in by_set))
    height = 0.8 / max(1, len(rates))
    for number, (system, by_set) in enumerate(rates.items()):
        color = next((COLORS[name] for name in COLORS if system.startswith(name)), "C2")
        positions = [index + number * height for index in range(len(names))]
        values = [100 * by_set.get(name, 0.0) for name in names]
        hatch = "//" if "base" in system else None
        left.barh(
            positions,
            values,
            height,
            label=", ".join(system.rsplit("-whisper-", 1)),
            color=color,
            hatch=hatch,
            alpha=0.8,
        )
    left.set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
    left.invert_yaxis()
    left.set(xlabel="word error rate, %", xlim=(0, 36))
    left.legend(fontsize=8, loc="lower right")
    rows = [json.loads(line) for line in speed.read_text().splitlines()] if speed.exists() else []
    for row in {(row["system"], row["model"]): row for row in rows}.values():  # the last round of each
        right.plot(row["wall_s"], 100 * row["wer"], "o", color=COLORS.get(row["system"].split(",")[0], "C2"))
        model = "" if row["system"] == "pocketsphinx" else f", {row['model'].removeprefix('whisper-')}"
        point = (row["wall_s"], 100 * row["wer"])
        right.annotate(row["system"] + model, point, (4, 4), textcoords="offset points", fontsize=7)
    right.set(
        xscale="log",
        yscale="log",
        xlim=(15, 900),
        xlabel="seconds for 20 minutes of speech, two threads",
        ylabel="word error rate, %",
    )
    for axis, ticks in ((right.xaxis, (20, 50, 100, 200, 500)), (right.yaxis, (10, 20, 50))):
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_minor_locator(ticker.NullLocator())
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
