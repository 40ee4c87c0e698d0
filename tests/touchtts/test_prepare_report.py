"""The report on recordings: sums exact to the sample, and a self-contained page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from audio_llm.touchtts.prepare import REASONS, Clip, Prepared, Recording
from audio_llm.touchtts.prepare_filters import NATS
from audio_llm.touchtts.prepare_report import account, to_html, to_json, to_lines

RATE = 16_000
TEXT = "It was the best of times, it was the worst."


def result_of(*clips: Clip, silence: int = 0) -> Prepared:
    samples = silence + sum(clip.samples for clip in clips)
    return Prepared(Recording(Path("talk.wav"), "talk"), samples, silence, clips)


def retained_clip(
    id: str, samples: int = RATE, text: str = TEXT, snr_db: float = 30.0, disagreement: float = 0.2
) -> Clip:
    return Clip(id, 0, samples, "", text, "", disagreement, NATS, snr_db)


def some_results() -> list[Prepared]:
    first = result_of(
        retained_clip("a", 3 * RATE),
        retained_clip("b", text='He said "no."'),
        retained_clip("c", text="no end"),
        retained_clip("<d>", snr_db=19.0),
        silence=1000,
    )
    second = result_of(
        Clip("e", 0, 5 * RATE, "disagree", TEXT, "", 99.0, NATS, 30.0), Clip("f & g", 0, 7, "too_short"), silence=3
    )
    return [first, second, result_of(Clip("talk", 0, 0, "unreadable"))]


def test_sums_are_right_to_the_sample() -> None:
    total = account(some_results())
    assert (total.recordings, total.read.samples, total.read.clips) == (3, 11 * RATE + 1010, 7)
    assert (total.retained.samples, total.retained.clips, total.silence.samples) == (6 * RATE, 4, 1003)
    dropped = {name: (part.samples, part.clips) for name, part in total.dropped.items() if part.clips}
    assert dropped == {"disagree": (5 * RATE, 1), "too_short": (7, 1), "unreadable": (0, 1)}
    usual = {name: part.examples for name, part in total.classic.items()}
    assert usual == {"kept": ("a", "b"), "low_snr": ("<d>",), "no_punctuation": ("c",)}
    histogram = total.disagreement[NATS]
    assert (
        histogram.limit,
        histogram.retained[0],
        sum(histogram.retained),
        histogram.dropped[-1],
        sum(histogram.dropped),
    ) == (2.0, 4, 4, 1, 1)


def test_a_sample_that_is_missing_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Prepared(Recording(Path("talk.wav"), "talk"), 100, 10, (Clip("a", 0, 89),))


def test_the_report_as_json_says_it_all() -> None:
    document = json.loads(to_json(account(some_results()), {"judge": "ctc"}))
    parts = [document["kept"], document["silence"], *document["dropped"].values()]
    assert document["in"]["samples"] == sum(part["samples"] for part in parts)
    assert set(document["dropped"]) == set(REASONS)
    assert document["settings"] == {"judge": "ctc"}
    assert document["retention"] == pytest.approx(6 * RATE / (11 * RATE + 1010))
    assert document["classic"]["retention"] == pytest.approx(4 * RATE / (11 * RATE + 1010))
    assert list(document["disagreement"][NATS]) == ["limit", "step", "kept", "dropped"]
    assert document["disagreement"][NATS]["kept"][0] == 4


def test_the_page_needs_nothing_else_and_is_well_formed() -> None:
    page = to_html(account(some_results()), {"judge": "<ctc>"})
    assert not re.search(r"(src|href)=|@import|url\(|https?:|<script", page)
    assert "&lt;d&gt;" in page
    assert "<d>" not in page
    assert "f &amp; g" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 2  # bars, and one measure
    names = [text.text for text in ElementTree.fromstring(pictures[0]).iter("text")]
    assert "dropped: disagree" in names
    assert "dropped: clipped" not in names


def test_nothing_at_all_can_be_reported() -> None:
    total = account([])
    assert "in" in to_lines(total)[1]
    assert json.loads(to_json(total))["retention"] == 0.0
    assert "<svg" in to_html(total)
