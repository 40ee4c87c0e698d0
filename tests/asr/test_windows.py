"""Windows: stretches of speech packed without loss, and times that lead back to the recording."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.asr.segment import Segment
from audio_llm.asr.windows import GAP_S, Piece, Window, pack_windows
from audio_llm.errors import UsageError

RATE = 16_000
RECORDING = np.random.default_rng(0).standard_normal(400 * RATE // 10).astype(np.float32)


def cut(*bounds: tuple[float, float]) -> list[Segment]:
    return [
        Segment(round(start_s * RATE) / RATE, RECORDING[round(start_s * RATE) : round(end_s * RATE)])
        for start_s, end_s in bounds
    ]


@st.composite
def stretches(draw: st.DrawFn) -> list[Segment]:
    """Draw stretches of one recording: gaps of nothing to a second, lengths of a sample to three seconds."""
    drawn = draw(st.lists(st.tuples(st.integers(0, RATE), st.integers(1, 3 * RATE)), max_size=10))
    found, position = [], 0
    for gap, length in drawn:
        position += gap
        found.append(Segment(position / RATE, RECORDING[position : position + length]))
        position += length
    return found


@given(stretches(), st.sampled_from([1.0, 2.5, 5.0, 30.0]))
@settings(max_examples=40)
def test_every_sample_is_in_one_piece_at_its_place(segments: list[Segment], max_s: float) -> None:
    windows = list(pack_windows(segments, max_s))
    covered = np.zeros(len(RECORDING), int)
    for window in windows:
        assert 0 < len(window.waveform) <= max_s * RATE
        assert window.waveform.dtype == np.float32
        speech = np.zeros(len(window.waveform), bool)
        for piece in window.pieces:
            offset, start, length = (round(x * RATE) for x in (piece.offset_s, piece.start_s, piece.duration_s))
            np.testing.assert_array_equal(window.waveform[offset : offset + length], RECORDING[start : start + length])
            covered[start : start + length] += 1
            speech[offset : offset + length] = True
        assert not window.waveform[~speech].any()
        assert speech[0]
        assert speech[-1]
    expected = np.zeros(len(RECORDING), int)
    for segment in segments:
        start = round(segment.start_s * RATE)
        expected[start : start + len(segment.waveform)] = 1
    np.testing.assert_array_equal(covered, expected)


@given(stretches(), st.sampled_from([2.5, 30.0]), st.lists(st.floats(-1, 35), min_size=2, max_size=30))
def test_times_in_the_recording_never_go_back(segments: list[Segment], max_s: float, times_s: list[float]) -> None:
    last_s = 0.0
    for window in pack_windows(segments, max_s):
        mapped_s = [window.recording_time(time_s) for time_s in sorted(times_s)]
        assert all(a <= b for a, b in itertools.pairwise(mapped_s))
        assert last_s <= window.start_s <= mapped_s[0]
        assert mapped_s[-1] <= window.end_s
        last_s = window.end_s


@given(stretches(), st.floats(0.001, 0.999))
def test_times_in_a_piece_lead_back_exactly(segments: list[Segment], fraction: float) -> None:
    for window in pack_windows(segments):
        for index, piece in enumerate(window.pieces):
            time_s = piece.offset_s + fraction * piece.duration_s
            assert window.piece_at(time_s) == index
            assert window.recording_time(time_s) == pytest.approx(piece.start_s + fraction * piece.duration_s, abs=1e-9)


def test_neighbors_are_packed_until_one_does_not_fit() -> None:
    windows = list(pack_windows(cut((0, 2), (3, 5), (6, 8), (9, 9.5)), max_s=6.5))
    assert [[piece.start_s for piece in window.pieces] for window in windows] == [[0, 3, 6], [9]]
    assert [len(window.waveform) / RATE for window in windows] == [6 + 2 * GAP_S, 0.5]


def test_gaps_are_kept_up_to_the_longest_and_none_is_added() -> None:
    (window,) = pack_windows(cut((0, 2), (2, 4), (4.1, 5), (7, 8)))
    assert [piece.offset_s for piece in window.pieces] == pytest.approx([0, 2, 4.1, 5 + GAP_S])


def test_a_window_comes_as_soon_as_the_next_segment_does_not_fit() -> None:
    taken = []

    def segments():
        for segment in cut((0, 20), (21, 29), (30, 39)):
            taken.append(segment.start_s)
            yield segment

    windows = pack_windows(segments())
    assert next(windows).end_s == 29
    assert taken == [0, 21, 30]


def test_segments_longer_than_a_window_are_divided_there() -> None:
    windows = list(pack_windows(cut((1, 8.5)), max_s=3.0))
    assert [(window.start_s, window.end_s) for window in windows] == [(1, 4), (4, 7), (7, 8.5)]
    joined = np.concatenate([window.waveform for window in windows])
    np.testing.assert_array_equal(joined, RECORDING[RATE : round(8.5 * RATE)])


def test_times_between_pieces_go_to_the_nearest_boundary() -> None:
    pieces = (
        Piece(offset_s=0.0, start_s=10.0, duration_s=2.0),
        Piece(offset_s=2.2, start_s=60.0, duration_s=1.0),
    )
    window = Window(np.zeros(round(3.2 * RATE), np.float32), pieces)
    found_s = [window.recording_time(time_s) for time_s in (-1.0, 0.5, 2.0, 2.05, 2.15, 2.2, 3.0, 3.2, 99.0)]
    assert found_s == pytest.approx([10.0, 10.5, 12.0, 12.0, 60.0, 60.0, 60.8, 61.0, 61.0])
    assert [window.piece_at(time_s) for time_s in (-1.0, 1.9, 2.05, 2.15, 99.0)] == [0, 0, 0, 1, 1]
    assert (window.start_s, window.end_s) == (10.0, 61.0)


def test_nothing_gives_no_window_and_no_window_is_refused() -> None:
    assert list(pack_windows([])) == []
    assert list(pack_windows([Segment(1.0, np.zeros(0, np.float32))])) == []
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="window"):
            list(pack_windows([], wrong))


def test_a_window_is_as_sure_of_speech_as_its_surest_piece() -> None:
    parts = [
        replace(part, speech_probability=sure)
        for part, sure in zip(cut((0, 1), (2, 3), (4, 5)), (0.3, 0.9, None), strict=True)
    ]
    (window,) = pack_windows(parts)
    assert window.speech_probability == 0.9
    assert window.part(0.0, 1.0).speech_probability == 0.3
    (unknown,) = pack_windows(cut((0, 1)))
    assert unknown.speech_probability is None
