"""Subtitles of every script, width and style: exact texts, and times that are always within the recording."""

from __future__ import annotations

import io

import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.errors import UsageError
from audio_llm.nbest import NBest, Word
from audio_llm.pipeline.formats import Transcript, TranscriptSegment, cues, render
from audio_llm.pipeline.subtitles import SubtitleOptions, columns

CHINESE = "今天天气很好我们决定去公园散步然后在湖边吃午饭"
JAPANESE = "「今日はちょっと寒いですね。」と彼女は言った。"
THAI = "วันนี้อากาศดีมากเราจึงไปเดินเล่นที่สวนสาธารณะ"


def segment(text: str, start_s: float, end_s: float, words: tuple[Word, ...] = ()) -> TranscriptSegment:
    return TranscriptSegment(start_s, end_s, text, words, NBest("x", ()))


def transcript(*segments: TranscriptSegment, duration_s: float = 60.0) -> Transcript:
    text = " ".join(part.text for part in segments)
    return Transcript("talk.wav", duration_s, text, text, segments)


def timed(text: str, start_s: float = 0.0, each_s: float = 0.5) -> tuple[Word, ...]:
    return tuple(
        Word(word, start_s + each_s * n, start_s + each_s * (n + 1), 0.9) for n, word in enumerate(text.split())
    )


def lines(text: str, width: int, most: int = 2) -> list[tuple[str, ...]]:
    """Return the lines of the cues of a text said in two seconds."""
    options = SubtitleOptions(line_width=width, max_lines=most)
    return [cue.lines for cue in cues(transcript(segment(text, 0.0, 2.0)), options)]


def test_lines_are_as_wide_and_as_many_as_asked_for() -> None:
    text = "the cat sat on the mat and looked at the dog"
    assert lines(text, 14) == [("the cat sat on", "the mat and"), ("looked at the", "dog")]
    assert lines(text, 14, 4) == [("the cat sat on", "the mat and", "looked at the", "dog")]
    assert lines(text, 20, 1) == [("the cat sat on the",), ("mat and looked at",), ("the dog",)]


def test_chinese_is_cut_by_columns_and_covers_its_whole_time() -> None:
    found = cues(transcript(segment(CHINESE * 6, 0.0, 28.0), duration_s=28.0))
    assert found[0].lines == ("今天天气很好我们决定去公园散步然后在湖边吃", "午饭今天天气很好我们决定去")
    assert "".join(line for cue in found for line in cue.lines) == CHINESE * 6
    assert (found[0].start_ms, found[-1].end_ms) == (0, 28_000)
    assert [cue.start_ms for cue in found[1:]] == [cue.end_ms for cue in found[:-1]]
    assert max(columns(line) for cue in found for line in cue.lines) == 42


def test_no_japanese_line_begins_with_closing_or_ends_with_opening_marks() -> None:
    assert lines(JAPANESE, 10, 9) == [("「今日は", "ちょっと寒", "いです", "ね。」と彼", "女は言っ", "た。")]
    assert lines("あ「い」うえおっかー", 10, 9) == [("あ「い」う", "えおっかー")]
    assert lines("今日は10月です。iPhoneを見た。", 12, 9) == [("今日は10月で", "す。iPhoneを", "見た。")]


def test_no_thai_vowel_is_parted_from_its_consonant() -> None:
    (found,) = lines(THAI, 12, 9)
    assert found == ("วันนี้อากาศดีมาก", "เราจึงไปเดินเล่", "นที่สวนสาธารณะ")
    assert all(columns(line) <= 12 for line in found)
    (narrow,) = lines("เก่าน้ำไทย", 10, 9)
    assert narrow == ("เก่าน้ำไทย",)


def test_korean_is_cut_between_words_and_its_columns_are_counted() -> None:
    assert lines("안녕하세요 여러분 반갑습니다", 18) == [("안녕하세요 여러분", "반갑습니다")]


def test_right_to_left_text_is_left_as_it_is() -> None:
    assert lines("שלום לכולם, מה שלומכם היום?", 14) == [("שלום לכולם, מה", "שלומכם היום?")]


def test_emoji_and_decomposed_letters_stay_whole() -> None:
    assert columns("👨‍👩‍👧") == columns("🇩🇪") == columns("❤️") == columns("が") == 2
    assert columns("e\u0301") == 1
    assert lines("好👨‍👩‍👧好e\u0301" * 2, 10, 3) == [("好👨‍👩‍👧好e\u0301好", "👨‍👩‍👧好e\u0301")]


def test_a_word_wider_than_a_line_is_divided_after_a_slash_where_it_has_one() -> None:
    assert lines("see https://example.org/a/long/path now", 18, 9) == [
        ("see", "https://example.", "org/a/long/path", "now")
    ]
    assert lines("x" * 25, 10, 3) == [("x" * 10, "x" * 10, "x" * 5)]


def test_one_cue_per_word() -> None:
    said = transcript(segment("So it goes", 1.0, 2.5, timed("So it goes", 1.0)))
    assert render(said, "srt", SubtitleOptions("words")) == (
        "1\n00:00:01,000 --> 00:00:01,500\nSo\n\n"
        "2\n00:00:01,500 --> 00:00:02,000\nit\n\n"
        "3\n00:00:02,000 --> 00:00:02,500\ngoes\n"
    )


def test_words_of_scripts_without_spaces_are_those_of_the_recognizer_with_their_punctuation() -> None:
    words = (
        Word("今天", 0.0, 0.4),
        Word("天气", 0.4, 0.9),
        Word("很", 0.9, 1.1),
        Word("好", 1.1, 1.5),
        Word("。", 1.5, 1.6),
    )
    said = transcript(segment("今天天气很好。", 0.0, 1.6, words))
    found = cues(said, SubtitleOptions("words"))
    assert [(cue.start_ms, cue.end_ms, cue.lines) for cue in found] == [
        (0, 400, ("今天",)),
        (400, 900, ("天气",)),
        (900, 1100, ("很",)),
        (1100, 1600, ("好。",)),
    ]
    (whole,) = cues(said)
    assert (whole.start_ms, whole.end_ms, whole.lines) == (0, 1600, ("今天天气很好。",))


def test_karaoke_marks_the_words_within_vtt_and_not_within_srt() -> None:
    said = transcript(segment("R&B is <it>", 1.0, 2.5, timed("R&B is <it>", 1.0)))
    options = SubtitleOptions("karaoke", line_width=10)
    assert render(said, "vtt", options) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.500\nR&amp;B<00:00:01.500> is\n<00:00:02.000>&lt;it&gt;\n"
    )
    assert render(said, "srt", options) == "1\n00:00:01,000 --> 00:00:02,500\nR&B is\n<it>\n"
    (caption,) = webvtt.from_buffer(io.StringIO(render(said, "vtt", options)))
    assert caption.start == "00:00:01.000"


def test_other_formats_do_not_depend_on_it() -> None:
    said = transcript(segment("So it goes", 1.0, 2.5, timed("So it goes", 1.0)))
    for format in ("txt", "tsv", "json", "nbest"):
        assert render(said, format, SubtitleOptions("words", 10, 1)) == render(said, format)


def test_a_cue_too_short_to_read_lasts_longer_where_there_is_time() -> None:
    found = cues(transcript(segment("Yes.", 1.0, 1.1), segment("No.", 3.0, 3.1), duration_s=3.2))
    assert [(cue.start_ms, cue.end_ms) for cue in found] == [(1000, 1300), (3000, 3200)]


def test_a_cue_too_short_to_read_is_joined_to_its_neighbor() -> None:
    found = cues(transcript(segment("Yes.", 1.0, 1.1), segment("I do.", 1.1, 2.0), segment("No.", 2.9, 3.0)))
    assert [(cue.start_ms, cue.end_ms, cue.lines) for cue in found] == [
        (1000, 2000, ("Yes. I do.",)),
        (2900, 3200, ("No.",)),
    ]


def test_words_beyond_the_end_of_the_recording_are_moved_back() -> None:
    words = (Word("so", 9.0, 9.95), Word("it", 9.95, 10.3), Word("goes", 10.3, 10.9))
    said = transcript(segment("so it goes", 9.0, 10.0, words), duration_s=10.0)
    assert [(cue.start_ms, cue.end_ms) for cue in cues(said)] == [(9000, 10_000)]
    assert [(cue.start_ms, cue.end_ms) for cue in cues(said, SubtitleOptions("words"))] == [
        (9000, 9950),
        (9950, 9980),
        (9980, 10_000),
    ]


LETTERS = st.text(alphabet="ab<é -今天ุไ。「」っ👨‍\u0301", max_size=40)


@given(
    texts=st.lists(LETTERS, max_size=5),
    gaps=st.lists(st.floats(0, 3), min_size=10, max_size=10),
    options=st.builds(
        SubtitleOptions, st.sampled_from(["lines", "words", "karaoke"]), st.integers(10, 50), st.integers(1, 3)
    ),
)
@settings(max_examples=150)
def test_cues_are_ordered_within_the_recording_and_hold_the_whole_text(
    texts: list[str], gaps: list[float], options: SubtitleOptions
) -> None:
    now_s, segments = 0.0, []
    for text, before_s, length_s in zip(texts, gaps[::2], gaps[1::2], strict=False):
        segments.append(segment(text, now_s + before_s, now_s + before_s + length_s))
        now_s += before_s + length_s
    said = transcript(*segments, duration_s=now_s)
    found = cues(said, options)
    shown = "".join(line for cue in found for line in cue.lines)
    assert "".join(shown.split()) == "".join(said.text.split())
    now_ms = 0
    for cue in found:
        assert now_ms <= cue.start_ms < cue.end_ms <= max(round(1000 * now_s), len(found))
        now_ms = cue.end_ms
        assert all(line.strip() for line in cue.lines)
        assert len(cue.lines) <= options.max_lines
        assert max(map(columns, cue.lines)) <= options.line_width
        assert [word.text for line in cue.words for word in line] != []
    for format in ("srt", "vtt"):
        assert render(said, format, options).count(" --> ") == len(found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"style": "letters"}, "'letters'"), ({"line_width": 3}, "3 columns"), ({"max_lines": 0}, "0 lines")],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        SubtitleOptions(**wrong)  # type: ignore[arg-type]
    assert caught.value.remedy.startswith("use")
