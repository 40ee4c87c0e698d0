"""Plots the rows of the report: the distribution of every measure for every system."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = {
    "pesq_wb": "PESQ-WB",
    "estoi": "ESTOI",
    "si_sdr_db": "SI-SDR, dB",
    "ovrl": "DNSMOS OVRL",
    "token_distance": "token distance",
    "voice": "speaker similarity",
}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a row of panels per set and a panel per measure: quartiles, median and mean over the utterances.

    Args:
        rows: Rows that `evaluate.run` wrote.
        path: The picture; its suffix names the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets, systems = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "system"))
    size = (2.3 * len(MEASURES) + 1.5, (0.3 * len(systems) + 1.1) * len(sets))
    figure, panels = pyplot.subplots(len(sets), len(MEASURES), figsize=size, squeeze=False, sharey=True)
    for line, name in zip(panels, sets, strict=True):
        for panel, (measure, title) in zip(line, MEASURES.items(), strict=True):
            values = [
                [row[measure] for row in rows if (row["set"], row["system"]) == (name, system) and measure in row]
                for system in systems
            ]
            panel.boxplot(
                [column or [np.nan] for column in values], orientation="horizontal", showmeans=True, showfliers=False
            )
            panel.set_yticks(range(1, len(systems) + 1), systems)
            panel.set_title(title, fontsize=9)
        line[0].set_ylabel(name)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Draw the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measures", type=Path, help="measures.jsonl of the report stage")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.measures.read_text(encoding="utf-8").splitlines()]
    draw([row for row in rows if row["made_by"] == rows[-1]["made_by"]], arguments.picture)  # of the last report


if __name__ == "__main__":
    main()
