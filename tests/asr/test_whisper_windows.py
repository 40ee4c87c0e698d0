"""Speech that a text leaves out is found by the times of its words, and recognized once more."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from asr.fake_whisper import FakeWhisper, fake_recognizer

from audio_llm.asr.whisper_windows import left_out
from audio_llm.asr.windows import Piece, Window
from audio_llm.nbest import Word


def make_window(*pieces: tuple[float, float, float]) -> Window:
    """Offset in the window, start in the recording, duration -> a window of silence."""
    made = tuple(Piece(offset_s=offset, start_s=start, duration_s=duration) for offset, start, duration in pieces)
    return Window(np.zeros(round((made[-1].offset_s + made[-1].duration_s) * 16_000), np.float32), made)


WINDOW = make_window((0.0, 10.0, 4.0), (4.2, 20.0, 5.0), (9.4, 30.0, 1.0), (10.6, 40.0, 3.0))


def test_a_text_that_covers_all_pieces_leaves_nothing_out() -> None:
    words = [Word("a", 0.5, 2.0), Word("b", 5.0, 8.0), Word("c", 11.0, 13.0)]
    assert left_out(WINDOW, words) == []  # the third piece is too short to matter


def test_pieces_after_the_end_of_a_text_are_left_out_together() -> None:
    assert left_out(WINDOW, [Word("a", 0.5, 3.5)]) == [(4.2, 9.2), (10.6, 13.6)]
    assert left_out(WINDOW, []) == [(0.0, 9.2), (10.6, 13.6)]


def test_a_long_rest_of_a_piece_is_left_out() -> None:
    words = [Word("a", 0.5, 3.5), Word("b", 4.5, 5.5), Word("c", 11.0, 13.0)]
    assert left_out(WINDOW, words) == [(5.5, 9.2)]


def test_no_words_in_a_window_of_one_piece_is_an_answer() -> None:
    assert left_out(make_window((0.0, 5.0, 20.0)), []) == []


def test_a_part_of_a_window_has_its_times_in_the_recording() -> None:
    part = WINDOW.part(5.5, 9.9)
    assert len(part.waveform) == round(4.4 * 16_000)
    (first, second) = part.pieces
    assert (first.offset_s, first.start_s, first.duration_s) == pytest.approx((0.0, 21.3, 3.7))
    assert (second.offset_s, second.start_s, second.duration_s) == pytest.approx((3.9, 30.0, 0.5))


def test_speech_after_the_end_of_a_text_is_recognized_once_more(tiny_whisper: Path) -> None:
    texts = iter(["ba", "be bi"])
    recognizer, model = fake_recognizer(tiny_whisper, lambda prompt, options: [(next(texts), -0.2, 0.1)], vad=True)
    assert isinstance(model, FakeWhisper)
    windows = recognizer._windows
    stretches = windows.recognize([make_window((0.0, 10.0, 2.0), (2.2, 20.0, 6.0))], ("en", None), 1)
    assert [stretch.nbest.best for stretch in stretches] == ["ba", "be bi"]
    assert [stretch.start_s for stretch in stretches] == [10.0, 20.0]
    assert all(one.end_s <= two.start_s for one, two in pairwise(stretches))
