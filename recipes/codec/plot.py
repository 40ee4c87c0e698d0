"""Plots the report of tokenizers: word error rate over signal-to-noise ratio, one panel per noise."""

from __future__ import annotations

import argparse
from pathlib import Path

CLEAN_DB = 30.0  # where clean speech is drawn


def draw(lines: list[str], path: Path) -> None:
    """Draw one line per tokenizer.

    Args:
        lines: Lines of `evaluate.tokenizer_table`.
        path: The picture; its suffix names the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    names = [cell.removesuffix(": WER %") for cell in table[0] if cell.endswith(": WER %")]
    clean, rows = table[1], table[2:]
    noises = list(dict.fromkeys(row[0].split(",")[0] for row in rows))
    figure, panels = pyplot.subplots(1, len(noises), figsize=(3.4 * len(noises), 3.6), squeeze=False, sharey=True)
    for panel, noise in zip(panels[0], noises, strict=True):
        of_noise = [row for row in rows if row[0].startswith(f"{noise},")]
        snrs_db = [float(row[0].split(",")[1].removesuffix("dB")) for row in of_noise]
        for index, name in enumerate(names):
            values = [float(row[1 + 3 * index]) for row in [clean, *of_noise]]
            panel.plot([CLEAN_DB, *snrs_db], values, "o-", label=name)
        panel.set_xticks([*snrs_db, CLEAN_DB], [*(f"{value:g}" for value in snrs_db), "clean"])
        panel.set_title(f"{noise} noise", fontsize=9)
        panel.set_xlabel("signal-to-noise ratio, dB")
    panels[0][0].set_ylabel("word error rate from the tokens, %")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Draw the table named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="output of the stage tokenizer-report")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(arguments.table.read_text(encoding="utf-8").splitlines(), arguments.picture)


if __name__ == "__main__":
    main()
