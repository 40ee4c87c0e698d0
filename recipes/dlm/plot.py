"""Plots the report's rows: word error rate of every system on every set, with intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel per set: a dot per system with its 95 % interval, and a line at the recognizer's rate.

    Args:
        rows: The rows from `evaluate.write_json`.
        path: The image file; its extension selects the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["set_name"] for row in rows))
    figure, panels = pyplot.subplots(1, len(names), figsize=(3.2 * len(names) + 2, 4), squeeze=False, sharey=True)
    for panel, name in zip(panels[0], names, strict=True):
        selected = [row for row in rows if row["set_name"] == name]
        rates = [100 * row["wer"] for row in selected]
        spread = [
            [100 * (row["wer"] - row["interval"]["low"]) for row in selected],
            [100 * (row["interval"]["high"] - row["wer"]) for row in selected],
        ]
        panel.errorbar(rates, range(len(selected)), xerr=spread, fmt="o", capsize=3)
        panel.axvline(rates[0], linewidth=0.8, color="gray")
        panel.set_yticks(range(len(selected)), [row["system"] for row in selected])
        panel.set_title(f"{name} ({selected[0]['counts']['utterances']})", fontsize=9)
        panel.set_xlabel("word error rate, %")
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Plot the results file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results.json of the report stage")
    parser.add_argument("picture", type=Path, help="image file to write")
    arguments = parser.parse_args()
    draw(json.loads(arguments.results.read_text()), arguments.picture)


if __name__ == "__main__":
    main()
