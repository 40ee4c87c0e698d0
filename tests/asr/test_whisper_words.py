"""Word times of Whisper: in order, within the sound, never of no length, and texts of packed windows divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from asr.fake_whisper import always, fake_recognizer
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.asr.base import SAMPLE_RATE, Stretch
from audio_llm.asr.whisper_decode import Candidate
from audio_llm.asr.whisper_tokens import WhisperTokens
from audio_llm.asr.whisper_words import align_texts, by_piece, in_order
from audio_llm.asr.windows import Piece, Window
from audio_llm.nbest import Word

TIMES = st.floats(-5, 40, allow_nan=False)
SAMPLES = st.integers(160, 64_000)


def make_window(*pieces: tuple[float, float, float]) -> Window:
    """Offset in the window, start in the recording, duration -> a window of silence."""
    made = tuple(Piece(offset_s=offset, start_s=start, duration_s=duration) for offset, start, duration in pieces)
    return Window(np.zeros(round((made[-1].offset_s + made[-1].duration_s) * SAMPLE_RATE), np.float32), made)


def divide(window: Window, text: str, *words: tuple[str, float, float]) -> list[Stretch]:
    timed = [Word(word, start_s, end_s, 0.5) for word, start_s, end_s in words]
    return list(by_piece(window, [Candidate((1, 2), text, -3.0)], timed, {}))


def assert_in_order(words: tuple[Word, ...], start_s: float, end_s: float) -> None:
    before_s = start_s
    for word in words:
        assert before_s <= word.start_s + 1e-9
        assert word.start_s < word.end_s
        before_s = word.end_s
    assert before_s <= end_s + 1e-9


@given(st.lists(st.tuples(TIMES, TIMES), max_size=30), st.floats(0.01, 30))
def test_words_stay_in_order_within_the_sound_and_have_a_length(
    times: list[tuple[float, float]], duration_s: float
) -> None:
    words = in_order([Word("a", start_s, end_s) for start_s, end_s in times], duration_s)
    assert len(words) == len(times)
    assert_in_order(words, 0.0, duration_s)


def test_words_that_fit_keep_their_times() -> None:
    words = (Word("a", 0.1, 0.4, 0.9), Word("b", 0.4, 0.6, 0.8), Word("c", 2.0, 2.5, 0.7))
    assert in_order(words, 2.5) == words


def test_crowded_words_share_the_end_of_the_sound() -> None:
    words = in_order([Word("a", 0.0, 1.0), Word("b", 1.0, 1.0), Word("c", 1.0, 1.0)], 1.0)
    assert [word.end_s for word in words] == pytest.approx([0.96, 0.98, 1.0])
    assert [word.start_s for word in words] == pytest.approx([0.0, 0.96, 0.98])


def test_a_window_of_one_piece_keeps_scores_and_all_hypotheses() -> None:
    candidates = [Candidate((1,), "one two", -1.0), Candidate((2,), "one too", -2.0)]
    words = [Word("one", 0.0, 0.5), Word("two", 0.5, 1.0)]
    (stretch,) = by_piece(make_window((0.0, 7.0, 1.0)), candidates, words, {"language": "de"})
    assert [(each.text, each.score) for each in stretch.nbest.hypotheses] == [("one two", -1.0), ("one too", -2.0)]
    assert (stretch.start_s, stretch.end_s, stretch.language) == (7.0, 8.0, "de")
    assert [(word.start_s, word.end_s) for word in stretch.nbest.words] == [(7.0, 7.5), (7.5, 8.0)]


def test_the_text_of_a_packed_window_is_divided_by_the_times_of_its_words() -> None:
    window = make_window((0.0, 10.0, 2.0), (2.2, 50.0, 3.0))
    first, second = divide(window, "One two. Three?", ("One", 0.1, 0.5), ("two.", 0.5, 1.9), ("Three?", 2.9, 3.2))
    assert (first.nbest.best, second.nbest.best) == ("One two.", "Three?")
    assert (first.start_s, first.end_s, second.start_s, second.end_s) == (10.0, 12.0, 50.0, 53.0)
    assert [word.start_s for word in first.nbest.words] == pytest.approx([10.1, 10.5])
    assert [(word.start_s, word.end_s) for word in second.nbest.words] == [pytest.approx((50.7, 51.0))]
    assert [stretch.waveform.size for stretch in (first, second)] == [2 * SAMPLE_RATE, 3 * SAMPLE_RATE]


def test_text_without_spaces_gets_none_where_it_is_divided() -> None:
    window = make_window((0.0, 0.0, 2.0), (2.2, 50.0, 3.0))
    words = [("今", 0.1, 0.3), ("天，", 0.3, 0.5), ("好", 2.5, 2.7), ("OK", 2.7, 2.8), ("吗？", 2.9, 3.2)]
    first, second = divide(window, "今天，好 OK 吗？", *words)
    assert (first.nbest.best, second.nbest.best) == ("今天，", "好 OK 吗？")


def test_a_piece_without_words_has_no_stretch() -> None:
    window = make_window((0.0, 0.0, 2.0), (2.2, 50.0, 3.0), (5.4, 60.0, 1.0))
    found = divide(window, "a b", ("a", 0.1, 0.3), ("b", 5.5, 6.0))
    assert [(stretch.start_s, stretch.nbest.best) for stretch in found] == [(0.0, "a"), (60.0, "b")]


def test_a_word_between_two_pieces_keeps_a_length() -> None:
    window = make_window((0.0, 10.0, 2.0), (2.2, 50.0, 3.0))
    first, second = divide(window, "a b", ("a", 2.01, 2.08), ("b", 2.12, 2.19))
    assert_in_order(first.nbest.words, 10.0, 12.0)
    assert_in_order(second.nbest.words, 50.0, 53.0)


@given(
    st.lists(st.tuples(SAMPLES, SAMPLES), min_size=1, max_size=6),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.02, 2)), min_size=1, max_size=20),
)
def test_every_word_of_a_window_comes_once_and_within_its_stretch(
    lengths: list[tuple[int, int]], times: list[tuple[float, float]]
) -> None:
    pieces, offset_s, start_s = [], 0.0, 0.0
    for duration_s, pause_s in ((samples / SAMPLE_RATE, pause / SAMPLE_RATE) for samples, pause in lengths):
        pieces.append((offset_s, start_s, duration_s))
        offset_s += duration_s + min(pause_s, 0.2)
        start_s += duration_s + pause_s
    window = make_window(*pieces)
    duration_s = pieces[-1][0] + pieces[-1][2]
    words = in_order([Word(f"w{at}", start, start + length) for at, (start, length) in enumerate(times)], duration_s)
    text = " ".join(word.text for word in words)
    found = list(by_piece(window, [Candidate((1,), text, -1.0)], words, {}))
    assert " ".join(stretch.nbest.best for stretch in found) == text
    assert [word.text for stretch in found for word in stretch.nbest.words] == text.split()
    before_s = 0.0
    for stretch in found:
        assert before_s <= stretch.start_s + 1e-9
        assert_in_order(stretch.nbest.words, stretch.start_s, stretch.end_s)
        before_s = stretch.end_s


def test_the_aligner_never_gets_less_than_two_encoder_frames(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("ba be"), vad=False)
    for milliseconds in (20, 21, 30, 39, 60, 1000, 30_000):
        sound = np.full(16 * milliseconds, 0.1, np.float32)
        list(recognizer.recognize_stream([sound]))
        recognizer.recognize(sound)
        recognizer.score(sound, ["ba be"])
    assert min(model.frames) == 4
    assert max(model.frames) == 3000


def test_the_confidence_of_a_word_is_the_geometric_mean_of_its_tokens(tiny_whisper: Path) -> None:
    from types import SimpleNamespace

    tokens = WhisperTokens.load(tiny_whisper, multilingual=True)
    ids = tokens.encode("ba be")
    ids = [*ids, *tokens.encode("go")]
    result = SimpleNamespace(alignments=[(0, 0), (1, 10), (2, 30), (3, 50)], text_token_probs=[0.5, 0.25, 1.0])
    model = SimpleNamespace(align=lambda *arguments: [result])
    (aligned,) = align_texts(model, tokens, np.zeros((1, 1500, 2), np.float32), [1], [ids], [2.0], "en")
    assert [word.confidence for word in aligned.words] == pytest.approx([0.5, 0.25, 1.0])
    assert aligned.log_probs == pytest.approx(np.log([0.5, 0.25, 1.0]))
    times = [(round(word.start_s, 2), round(word.end_s, 2)) for word in aligned.words]
    assert times == [(0.0, 0.2), (0.2, 0.6), (0.6, 1.0)]


def test_a_word_before_a_pause_ends_after_two_seconds_at_most(tiny_whisper: Path) -> None:
    from types import SimpleNamespace

    tokens = WhisperTokens.load(tiny_whisper, multilingual=True)
    result = SimpleNamespace(alignments=[(0, 5), (1, 500), (2, 510)], text_token_probs=[0.5, 0.5])
    model = SimpleNamespace(align=lambda *arguments: [result])
    encoded = np.zeros((1, 1500, 2), np.float32)
    (aligned,) = align_texts(model, tokens, encoded, [1], [tokens.encode("ba be")], [20.0], "en")
    assert [(word.start_s, word.end_s) for word in aligned.words] == [
        pytest.approx((0.1, 2.1)),
        pytest.approx((10.0, 10.2)),
    ]
