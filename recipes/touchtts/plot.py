"""The report as a figure: intelligibility of each system, by two recognizers."""

from __future__ import annotations

import argparse
from pathlib import Path


def draw(lines: list[str], path: Path) -> None:
    """Draw two bars for each system: sentences identified, and character error rate.

    Args:
        lines: Output of `evaluate.ladder`.
        path: The figure; its suffix determines the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = [row for row in table if len(row) == 5 and " of " in row[1]]
    names = [row[0] for row in rows]
    picked = [100.0 * float(row[1].split(" of ")[0]) / float(row[1].split(" of ")[1]) for row in rows]
    figure, panels = pyplot.subplots(1, 2, figsize=(10.0, 0.42 * len(rows) + 1.2), sharey=True)
    panels[0].barh(names, picked, color="tab:blue")
    panels[0].set_xlabel("sentence identified out of 20, %")
    panels[0].set_xlim(0.0, 100.0)
    panels[1].barh(names, [float(row[2]) for row in rows], color="tab:orange")
    panels[1].set_xlabel("character error rate, %")
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Draw the table named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="output of the stage report")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(arguments.table.read_text(encoding="utf-8").splitlines(), arguments.picture)


if __name__ == "__main__":
    main()
