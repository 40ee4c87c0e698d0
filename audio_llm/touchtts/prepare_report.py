"""Report on prepared recordings, exact to the sample: totals, a table, and an HTML page with embedded figures."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audio_llm import __version__
from audio_llm.audio import SAMPLE_RATE
from audio_llm.touchtts.prepare import REASONS, Clip, PrepareConfig, Prepared
from audio_llm.touchtts.prepare_filters import CER, NATS

CLASSIC_SNR_DB = 20.0  # smallest ratio of a clip in a classic pipeline for speech synthesis
EXAMPLES = 5  # ids that are shown for each reason
_ENDS = (".", "?", "!", "…")
_QUOTES = "\"'”’»)]"  # noqa: RUF001
_STEP = {NATS: 0.5, CER: 0.05}  # bin widths
_STEPS = 20
_CLASSIC = ("kept", "low_snr", "no_punctuation")
_SAMPLES_PER_HOUR = 3600 * SAMPLE_RATE
_GREEN, _RED, _GRAY = "#3a7d44", "#c2543d", "#9aa5b1"


@dataclass(frozen=True)
class Total:
    """Amount of sound.

    Attributes:
        samples: Samples at 16 kHz.
        clips: Number of clips; of whole recordings where nothing was cut.
        examples: Ids of a few clips.
    """

    samples: int
    clips: int
    examples: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        """The samples as hours."""
        return self.samples / _SAMPLES_PER_HOUR


@dataclass(frozen=True)
class Histogram:
    """Distribution of the disagreement, by one measure.

    Attributes:
        limit: Largest disagreement of a clip that is kept.
        step: Width of a bin; the first begins at 0, the last is open.
        retained: Clips of each bin that were kept.
        dropped: Clips of each bin that were dropped.
    """

    limit: float
    step: float
    retained: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class Account:
    """Amounts of sound: those read are those kept, removed as silence, and dropped for each reason.

    Attributes:
        recordings: Number of recordings.
        read: All sound.
        retained: Clips that were kept.
        silence: Sound between stretches of speech.
        dropped: Clips that were dropped, by reason, a key of `REASONS`.
        classic: What a classic pipeline would do with the clips that were kept here: `kept`, or dropped as `low_snr`
            (under `CLASSIC_SNR_DB`) or `no_punctuation` (no sentence-final punctuation).
        disagreement: Histogram of each measure.
    """

    recordings: int
    read: Total
    retained: Total
    silence: Total
    dropped: Mapping[str, Total]
    classic: Mapping[str, Total]
    disagreement: Mapping[str, Histogram]

    def __post_init__(self) -> None:
        gone = sum(part.samples for part in self.dropped.values())
        assert self.read.samples == self.retained.samples + self.silence.samples + gone
        assert self.retained.samples == sum(part.samples for part in self.classic.values())


def account(results: Sequence[Prepared], config: PrepareConfig | None = None) -> Account:
    """Return the totals of prepared recordings.

    Args:
        results: Results of `prepare`.
        config: Configuration of that run.
    """
    config = config or PrepareConfig()
    clips = [clip for result in results for clip in result.clips]
    retained = [clip for clip in clips if not clip.reason]
    return Account(
        len(results),
        Total(sum(result.samples for result in results), len(clips)),
        _total(retained),
        Total(sum(result.silence for result in results), 0),
        {reason: _total([clip for clip in clips if clip.reason == reason]) for reason in REASONS},
        {name: _total([clip for clip in retained if _classic(clip) == name]) for name in _CLASSIC},
        {measure: _histogram(clips, measure, config) for measure in _STEP if any(c.measure == measure for c in clips)},
    )


def to_lines(total: Account) -> list[str]:
    """Return the table for a terminal."""
    rows = [
        f"{row.name:<30} {row.part.clips:>7} {row.part.hours:>9.4f} h {row.percent:>6.1f} %"
        for row in (*_rows(total), *_classic_rows(total))
    ]
    return [f"{'':<30} {'clips':>7} {'sound':>11} {'fraction':>8}", *rows]


def to_json(total: Account, settings: Mapping[str, Any] | None = None) -> str:
    """Return everything as JSON.

    Args:
        total: The totals.
        settings: Settings of the run.
    """

    def described(part: Total) -> dict[str, Any]:
        return {"samples": part.samples, "hours": part.hours, "clips": part.clips, "examples": part.examples}

    document = {
        "version": __version__,
        "settings": dict(settings or {}),
        "sample_rate": SAMPLE_RATE,
        "recordings": total.recordings,
        "in": {"samples": total.read.samples, "hours": total.read.hours, "clips": total.read.clips},
        "kept": described(total.retained),
        "silence": {"samples": total.silence.samples, "hours": total.silence.hours},
        "dropped": {reason: described(part) for reason, part in total.dropped.items()},
        "retention": _fraction(total.retained.samples, total),
        "classic": {
            "snr_db": CLASSIC_SNR_DB,
            "retention": _fraction(total.classic["kept"].samples, total),
            **{name: described(part) for name, part in total.classic.items()},
        },
        "disagreement": {
            measure: {
                "limit": histogram.limit,
                "step": histogram.step,
                "kept": histogram.retained,
                "dropped": histogram.dropped,
            }
            for measure, histogram in total.disagreement.items()
        },
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def to_html(total: Account, settings: Mapping[str, Any] | None = None) -> str:
    """Return a self-contained page: bars of the hours, the table, histograms, and example ids of each reason."""
    rows = _rows(total)
    table_rows = "".join(
        f"<tr><td>{row.name}</td><td>{row.part.clips}</td><td>{row.part.hours:.4f}</td><td>{row.percent:.1f}</td></tr>\n"
        for row in (*rows, *_classic_rows(total))
    )
    meanings = "".join(
        f"<tr><td>{reason}</td><td>{_text(REASONS[reason])}</td><td>{_text(', '.join(part.examples))}</td></tr>\n"
        for reason, part in total.dropped.items()
        if part.clips
    )
    pictures = "".join(
        f"<h2>{_text(measure)}</h2>\n{_columns(histogram)}" for measure, histogram in total.disagreement.items()
    )
    description = ", ".join(f"{name} {value}" for name, value in (settings or {}).items())
    return _PAGE.format(
        bars=_bars(rows[1:]),
        table_rows=table_rows,
        kept=_text(", ".join(total.retained.examples)),
        meanings=meanings,
        pictures=pictures,
        settings=_text(f"audio-llm {__version__}; {description}"),
        snr=f"{CLASSIC_SNR_DB:g}",
    )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>audio-llm prepare</title>
<style>
body {{ font: 15px/1.4 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }}
table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }}
.hours td:not(:first-child), .hours th:not(:first-child) {{ text-align: right }}
svg {{ max-width: 100%; height: auto }}
svg text {{ font: 12px sans-serif; fill: #222 }}
</style></head><body>
<h1>Sound kept and dropped</h1>
{bars}
<table class="hours"><tr><th></th><th>clips</th><th>hours</th><th>%</th></tr>
{table_rows}</table>
<p>Everything that was read is kept, silence, or dropped for one reason. The classic pipeline has two more filters: an
estimated signal-to-noise ratio of {snr} dB, and a text with sentence-final punctuation; with a recognizer that writes
no punctuation it keeps nothing.</p>
<h1>Disagreement on the text</h1>
{pictures}
<h1>Examples</h1>
<table><tr><th>reason</th><th>meaning</th><th>ids</th></tr>
<tr><td>kept</td><td></td><td>{kept}</td></tr>
{meanings}</table>
<p>{settings}</p>
</body></html>
"""


@dataclass(frozen=True)
class _Row:
    name: str
    part: Total
    percent: float  # of everything read


def _rows(total: Account) -> list[_Row]:
    """Return the rows of everything that was read and of all parts of it."""
    rows = [_row("in", total.read, total), _row("kept", total.retained, total)]
    rows.append(_row("silence removed", total.silence, total))
    return rows + [_row(f"dropped: {why}", part, total) for why, part in total.dropped.items() if part.clips]


def _classic_rows(total: Account) -> list[_Row]:
    return [_row(f"classic pipeline: {name}", part, total) for name, part in total.classic.items()]


def _row(name: str, part: Total, total: Account) -> _Row:
    return _Row(name, part, 100 * _fraction(part.samples, total))


def _total(clips: Sequence[Clip]) -> Total:
    return Total(sum(clip.samples for clip in clips), len(clips), tuple(clip.id for clip in clips[:EXAMPLES]))


def _classic(clip: Clip) -> str:
    if clip.snr_db is None or clip.snr_db < CLASSIC_SNR_DB:
        return "low_snr"
    return "kept" if clip.text.rstrip(_QUOTES).endswith(_ENDS) else "no_punctuation"


def _histogram(clips: Sequence[Clip], measure: str, config: PrepareConfig) -> Histogram:
    bins = {True: [0] * _STEPS, False: [0] * _STEPS}
    for clip in clips:
        if clip.measure == measure and clip.disagreement is not None:
            bins[not clip.reason][min(_STEPS - 1, int(clip.disagreement / _STEP[measure]))] += 1
    return Histogram(config.limit(measure), _STEP[measure], tuple(bins[True]), tuple(bins[False]))


def _fraction(samples: int, total: Account) -> float:
    return samples / total.read.samples if total.read.samples else 0.0


def _bars(rows: Sequence[_Row]) -> str:
    height, scale = 22, 430 / max(1e-9, *(row.percent for row in rows))
    drawn = []
    for number, row in enumerate(rows):
        y, width = number * height, scale * row.percent
        color = _GREEN if row.name == "kept" else _GRAY if row.name == "silence removed" else _RED
        drawn.append(f'<text x="150" y="{y + 15}" text-anchor="end">{row.name}</text>')
        drawn.append(f'<rect x="158" y="{y + 3}" width="{width:.1f}" height="{height - 6}" fill="{color}"/>')
        drawn.append(f'<text x="{164 + width:.1f}" y="{y + 15}">{row.part.hours:.4f} h, {row.percent:.1f} %</text>')
    return _svg(760, len(rows) * height, drawn)


def _columns(histogram: Histogram) -> str:
    width, height = 34, 120
    scale = height / max(1, *map(sum, zip(histogram.retained, histogram.dropped, strict=True)))
    drawn = []
    for index, (retained, dropped) in enumerate(zip(histogram.retained, histogram.dropped, strict=True)):
        x, green, red = index * width + 2, scale * retained, scale * dropped
        size = f'width="{width - 4}" height'
        drawn.append(f'<rect x="{x}" y="{height - green:.1f}" {size}="{green:.1f}" fill="{_GREEN}"/>')
        drawn.append(f'<rect x="{x}" y="{height - green - red:.1f}" {size}="{red:.1f}" fill="{_RED}"/>')
        drawn.append(f'<text x="{x}" y="{height + 15}">{index * histogram.step:g}</text>')
    at = min(histogram.limit / histogram.step, _STEPS) * width
    drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}" stroke="#222" stroke-dasharray="4 3"/>')
    caption = f"<p>Kept in green, dropped in red, the limit {histogram.limit:g} dashed; the last bin is open.</p>"
    return _svg(_STEPS * width, height + 20, drawn) + caption


def _svg(width: int, height: int, drawn: list[str]) -> str:
    inner = "\n".join(drawn)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">\n{inner}\n</svg>\n'


def _text(value: str) -> str:
    return html.escape(value)
