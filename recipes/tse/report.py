"""Tables and figures from the measures of all scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

Row = dict[str, Any]

_SYSTEMS = {  # key of the measure: row of the table
    "noisy_db": "**noisy enrollment**",
    "clean_db": "clean enrollment (the same, without noise and interferers)",
    "teacher_db": "clean speech of the enrollment, encoded by the teacher",
    "right_stream_db": "oracle selection: the stream nearest to the target",
    "zeroed_db": "enrollment vector set to zero",
    "other_db": "another talker enrolled, against the target",
    "other_to_other_db": "another talker enrolled, against that talker",
    "oracle_mask_db": "oracle: ideal ratio mask on the same frames",
    "beamformer_db": "left + right",
}
_GROUPS: dict[str, Callable[[Row], str]] = {
    "talkers": lambda row: str(row["talkers"]),
    "target among": lambda row: f"{row['gender'] or '?'} among {row['other_genders'] or '?'}",
    "same corpus": lambda row: "yes" if row["same_corpus"] else "no",
    "nearest talker": lambda row: _band(row["nearest_deg"], (15, 45, 90, 181), " deg"),
    "speech over noise": lambda row: _band(row["snr_db"], (5, 10, 15.1), " dB"),
    "overlap": lambda row: _band(row["overlap_s"], (2.5, 4.0, 5.1), " s"),
    "moving talkers": lambda row: "some" if row["moving"] else "none",
    "speed of the target": lambda row: _band(row["speed_deg_s"], (0.1, 20, 40, 91), " deg/s"),
    "speed of the fastest": lambda row: _band(row["fastest_deg_s"], (0.1, 20, 40, 91), " deg/s"),
    "target azimuth in the enrollment": lambda row: _band(abs(row["enrollment_error_deg"]), (5, 10, 18.1), " deg"),
    "interferer behind the head in the enrollment": lambda row: "yes" if row["look_behind"] else "no",
    "enrollment and mixture from one recording": lambda row: "yes" if row["one_recording"] else "no",
}
_DRAWS = 2000  # bootstrap samples


def write_report(rows: Sequence[Row], path: Path) -> None:
    """Write the tables in Markdown.

    Args:
        rows: Rows written by `evaluate.evaluate`.
        path: The file.
    """
    present = [row for row in rows if "noisy_db" in row]
    absent = [row["absent_db"] for row in rows if "absent_db" in row]
    lines = [
        f"{len(rows)} scenes; in {len(present)} the target is active. Intervals are 95 %, bootstrap over scenes.",
        "",
        "| SI-SDRi, dB | mean | 10th percentile | wrong speaker (below 0) |",
        "|---|---|---|---|",
    ]
    for key, name in _SYSTEMS.items():
        values = np.array([row[key] for row in present])
        lines.append(
            f"| {name} | {_mean(values)} | {np.percentile(values, 10):.2f} | {100 * np.mean(values < 0):.1f} % |"
        )
    gap = np.array([row["clean_db"] - row["noisy_db"] for row in present])
    separation = np.array([row["separation_db"] for row in present if row["separation_db"] is not None])
    lines += [
        "",
        "| measure | value |",
        "|---|---|",
        f"| SI-SDR of the mixture | {_mean(np.array([row['input_db'] for row in present]))} dB |",
        f"| separator alone, all talkers, best order of streams | {_mean(separation)} dB |",
        f"| clean minus noisy enrollment | {_mean(gap)} dB |",
        f"| speaker identification accuracy, noisy enrollment | {_percentage(rows, 'told')} |",
        f"| the same, clean enrollment | {_percentage(rows, 'told_clean')} |",
        f"| the same, teacher on the output of the frontal head | {_percentage(rows, 'told_front')} |",
        f"| the same, teacher on the two-ear mean of the enrollment | {_percentage(rows, 'told_two_ear_mean')} |",
        f"| frontal speaker detected in the enrollment | {_percentage(rows, 'seen')} |",
        f"| the same, after removing the frontal speaker | {_percentage(rows, 'seen_in_empty')} |",
        f"| target absent: output over input, mean of {len(absent)} | {np.mean(absent):.1f} dB |",
        f"| ILD error | {_mean(_column(present, 'ild_error_db'))} dB, median {_median(present, 'ild_error_db')} |",
        f"| ITD error | {_mean(_column(present, 'itd_error_us'))} us, median {_median(present, 'itd_error_us')} |",
        "",
        "| group | | scenes | SI-SDRi, dB | wrong speaker | identification accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name, group in _GROUPS.items():
        for value in sorted({group(row) for row in present}):
            members = [row for row in present if group(row) == value]
            gains = np.array([row["noisy_db"] for row in members])
            columns = [
                str(len(members)),
                _mean(gains),
                f"{100 * np.mean(gains < 0):.1f} %",
                _percentage(members, "told"),
            ]
            lines.append(f"| {name} | {value} | {' | '.join(columns)} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_devices(devices: dict[str, Sequence[Row]], path: Path) -> None:
    """Write the SI-SDR improvement of exported models.

    Args:
        devices: Rows of each model by its name.
        path: The file.
    """
    lines = ["| exported model | scenes | SI-SDRi, noisy enrollment, dB |", "|---|---|---|"]
    for name, rows in devices.items():
        gains = _column(rows, "noisy_db")
        lines.append(f"| {name} | {len(gains)} | {_mean(gains)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot the improvement over the mixture's SI-SDR, the target's azimuth and the nearest talker, and a histogram."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    present = [row for row in rows if "noisy_db" in row]
    gains = np.array([row["noisy_db"] for row in present])
    figure, panels = pyplot.subplots(1, 4, figsize=(15, 3.6), sharey=False)
    axes = {"input_db": "SI-SDR of the mixture, dB", "azimuth": "azimuth of the target, deg"}
    axes["nearest_deg"] = "nearest other talker, deg"
    for panel, (key, label) in zip(panels, axes.items(), strict=False):
        values = np.array([row[key] for row in present])
        panel.scatter(values, gains, s=3, alpha=0.4)
        edges = np.quantile(values, np.linspace(0, 1, 9))
        middles = 0.5 * (edges[1:] + edges[:-1])
        bin_of = np.clip(np.searchsorted(edges, values) - 1, 0, len(middles) - 1)
        filled = [n for n in range(len(middles)) if (bin_of == n).any()]
        panel.plot(middles[filled], [gains[bin_of == n].mean() for n in filled], color="black")
        panel.axhline(0.0, linewidth=0.8, color="grey")
        panel.set_xlabel(label)
    panels[0].set_ylabel("SI-SDRi, dB")
    panels[3].hist(gains, bins=50)
    panels[3].set_xlabel("SI-SDRi, dB")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_curves(logs: dict[str, Path], path: Path, measure: str = "si_sdri_db") -> None:
    """Plot a validation measure over steps.

    Args:
        logs: `train.jsonl` of each training by its name.
        path: The image file.
        measure: Name of the measure.
    """
    import json

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.6))
    for name, log in logs.items():
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        points = [(row["step"], row["validation"][measure]) for row in rows if measure in row.get("validation", {})]
        panel.plot(*zip(*points, strict=True), marker="o", label=name)
    panel.set_xlabel("step")
    panel.set_ylabel("SI-SDRi, dB")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_latency(runs: dict[str, Path], path: Path) -> None:
    """Plot the distribution of the time per chunk: the fraction of chunks that took longer.

    Args:
        runs: JSON report of the realtime benchmark, by the name of the run.
        path: The image file.
    """
    import json

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 3.8))
    for name, file in runs.items():
        report = json.loads(file.read_text(encoding="utf-8"))
        for label, part in ((name, report), (f"{name}, reference", report["compare"])):
            if part is None:
                continue
            spread = part["compute_histogram"]
            chunks = np.array(spread["chunks"])
            longer = 1.0 - (np.cumsum(chunks) - chunks) / chunks.sum()
            panel.step(spread["edges_ms"], longer, where="post", label=label)
    panel.axvline(8.0, linewidth=0.8, color="grey")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(0.3, 100.0)
    panel.set_xlabel("time of a chunk, ms")
    panel.set_ylabel("fraction of chunks that took longer")
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_spectrograms(sounds: dict[str, Path], path: Path) -> None:
    """Plot the left ear's spectrograms of several sound files, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(sounds), 1, figsize=(9, 2.2 * len(sounds)), sharex=True)
    for panel, (name, file) in zip(panels, sounds.items(), strict=True):
        sound, _ = soundfile.read(file, always_2d=True)
        panel.specgram(sound[:, 0] + 1e-9, NFFT=512, Fs=16_000, noverlap=384, vmin=-140, vmax=-40)
        panel.set_title(name, fontsize=9)
        panel.set_ylabel("Hz")
    panels[-1].set_xlabel("s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _column(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows if key in row])


def _median(rows: Sequence[Row], key: str) -> str:
    return f"{np.median(_column(rows, key)):.2f}"


def _mean(values: np.ndarray) -> str:
    """Return a mean and its confidence interval."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (_DRAWS, len(values))).mean(axis=1)
    return f"{values.mean():.2f} ({np.percentile(means, 2.5):.2f} to {np.percentile(means, 97.5):.2f})"


def _percentage(rows: Sequence[Row], key: str) -> str:
    return f"{100 * np.mean([row[key] for row in rows]):.1f} %"


def _band(value: float, edges: Sequence[float], unit: str) -> str:
    """Return the interval that contains a number."""
    below = 0.0
    for edge in edges:
        if value < edge:
            return f"{below:g} to {edge:g}{unit}"
        below = edge
    return f"over {below:g}{unit}"
