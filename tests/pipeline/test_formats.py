"""Output formats, read back by other libraries, and word times that survive correction."""

from __future__ import annotations

import dataclasses
import io
import json
from datetime import timedelta

import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.correction import Correction, Edit
from audio_llm.errors import UsageError
from audio_llm.nbest import Hypothesis, NBest, Word, read_nbest
from audio_llm.pipeline.formats import (
    FORMATS,
    RejectedText,
    Transcript,
    TranscriptSegment,
    align_words,
    cues,
    labeled_text,
    render,
)

LETTERS = st.text(alphabet="abc<&>é'-", min_size=1, max_size=12)
TEXTS = st.lists(LETTERS, max_size=60).map(" ".join)


def make_words(text: str, start_s: float = 0.0, each_s: float = 0.3, pause_s: float = 0.1) -> tuple[Word, ...]:
    return tuple(
        Word(w, start_s + i * (each_s + pause_s), start_s + i * (each_s + pause_s) + each_s, 0.5)
        for i, w in enumerate(text.split())
    )


def make_segment(text: str, start_s: float = 0.0, words: tuple[Word, ...] | None = None) -> TranscriptSegment:
    words = make_words(text, start_s) if words is None else words
    end_s = words[-1].end_s if words else start_s + 2
    return TranscriptSegment(start_s, end_s, text, words, NBest(f"x#{start_s}", (Hypothesis(text, -1.0),), words=words))


def make_transcript(*segments: TranscriptSegment) -> Transcript:
    text = " ".join(segment.text for segment in segments)
    return Transcript("talk.wav", 60.0, text, text, segments)


@st.composite
def timed_words(draw: st.DrawFn) -> tuple[Word, ...]:
    texts = draw(st.lists(LETTERS, max_size=30))
    steps = st.floats(0, 3, allow_nan=False)
    words, now_s = [], draw(steps)
    for text in texts:
        start_s = now_s + draw(steps)
        now_s = start_s + draw(steps)
        words.append(Word(text, start_s, now_s, 0.9))
    return tuple(words)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    segments = []
    now_s = 0.0
    for _ in range(draw(st.integers(0, 4))):
        words = tuple(Word(w.text, w.start_s + now_s, w.end_s + now_s) for w in draw(timed_words()))
        text = draw(st.one_of(TEXTS, st.just(" ".join(word.text for word in words))))
        end_s = (words[-1].end_s if words else now_s) + draw(st.floats(0, 10, allow_nan=False))
        segments.append(TranscriptSegment(now_s, end_s, text, words, NBest("x", ())))
        now_s = end_s
    return make_transcript(*segments)


def test_unchanged_words_keep_their_time_and_confidence() -> None:
    words = make_words("the cat sat on the mat")
    assert align_words(words, "the cat sat on the mat") == words
    punctuated = align_words(words, "The cat sat, on the mat.")
    assert [(w.start_s, w.end_s, w.confidence) for w in punctuated] == [
        (w.start_s, w.end_s, w.confidence) for w in words
    ]
    assert [w.text for w in punctuated] == ["The", "cat", "sat,", "on", "the", "mat."]


def test_corrected_words_share_the_time_of_those_they_replace() -> None:
    words = make_words("we wreck a nice beach today")
    found = align_words(words, "we recognize speech today")
    assert [w.text for w in found] == ["we", "recognize", "speech", "today"]
    assert (found[0], found[3]) == (words[0], words[5])
    assert (found[1].start_s, found[2].end_s) == (words[1].start_s, words[4].end_s)
    assert found[1].end_s == found[2].start_s
    share = (found[1].end_s - found[1].start_s) / (found[2].end_s - found[1].start_s)
    assert share == pytest.approx(9 / 15)
    assert found[1].confidence is None


def test_inserted_words_take_the_gap() -> None:
    words = make_words("sat mat")
    found = align_words(words, "cat sat on the mat now")
    assert [w.text for w in found] == ["cat", "sat", "on", "the", "mat", "now"]
    assert (found[1], found[4]) == words
    assert (found[2].start_s, found[3].end_s) == pytest.approx((words[0].end_s, words[1].start_s))
    assert 0 < found[5].end_s - words[1].end_s <= 0.2
    assert found[0].start_s == 0.0  # no time before the recording


def test_deleted_words_and_empty_texts() -> None:
    words = make_words("the the cat")
    assert align_words(words, "the cat") in ((words[0], words[2]), (words[1], words[2]))
    assert align_words(words, "  ") == ()
    assert align_words((), "the cat") == ()


@given(words=timed_words(), text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_times_never_go_backwards(words: tuple[Word, ...], text: str) -> None:
    found = align_words(words, text)
    assert [w.text for w in found] == (text.split() if words else [])
    now_s = 0.0
    for word in found:
        assert word.start_s >= now_s - 1e-9
        assert word.end_s >= word.start_s
        now_s = word.end_s
    if found:
        assert found[0].start_s >= words[0].start_s - 0.2 - 1e-9
        assert found[-1].end_s <= words[-1].end_s + 0.2 + 1e-9


@given(transcript=transcripts())
@settings(max_examples=150, deadline=None)
def test_cues_are_short_ordered_and_complete(transcript: Transcript) -> None:
    found = cues(transcript)
    assert " ".join(line for cue in found for line in cue.lines).split() == transcript.text.split()
    now_ms = 0
    for cue in found:
        assert now_ms <= cue.start_ms < cue.end_ms <= cue.start_ms + 7_000
        now_ms = cue.end_ms
        assert 1 <= len(cue.lines) <= 2
        assert all(len(line) <= 42 for line in cue.lines)


@given(transcript=transcripts())
@settings(max_examples=60, deadline=None)
def test_srt_and_vtt_are_what_other_libraries_read(transcript: Transcript) -> None:
    expected = cues(transcript)
    subtitles = list(srt.parse(render(transcript, "srt")))
    assert [subtitle.index for subtitle in subtitles] == list(range(1, len(expected) + 1))
    captions = list(webvtt.from_buffer(io.StringIO(render(transcript, "vtt"))))
    assert len(subtitles) == len(captions) == len(expected)
    for cue, subtitle, caption in zip(expected, subtitles, captions, strict=True):
        assert subtitle.content == "\n".join(cue.lines)
        assert subtitle.start == timedelta(milliseconds=cue.start_ms)
        assert subtitle.end == timedelta(milliseconds=cue.end_ms)
        raw = caption.raw_text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert raw == "\n".join(cue.lines)
        assert caption.start_in_seconds * 1000 + caption.start_time.milliseconds == cue.start_ms


def test_long_segment_without_word_times_uses_its_own() -> None:
    text = " ".join(f"word{i}" for i in range(60))
    segment = TranscriptSegment(100.0, 130.0, text, (), NBest("x", ()))
    found = cues(make_transcript(segment))
    assert len(found) >= 5
    assert (found[0].start_ms, found[-1].end_ms) == (100_000, 130_000)


def test_a_pause_and_a_segment_end_a_cue() -> None:
    words = (Word("one", 0.0, 0.4), Word("two", 3.0, 3.4))
    transcript = make_transcript(make_segment("one two", 0.0, words), make_segment("three", 3.5))
    assert [cue.lines for cue in cues(transcript)] == [("one",), ("two",), ("three",)]


def test_hours_in_the_clock() -> None:
    transcript = make_transcript(make_segment("late", 36_000.25))
    assert "10:00:00,250 --> 10:00:00,550" in render(transcript, "srt")
    assert "10:00:00.250 --> 10:00:00.550" in render(transcript, "vtt")


def test_txt_is_the_text_alone() -> None:
    assert render(make_transcript(make_segment("hello there"), make_segment("you", 5.0)), "txt") == "hello there you\n"


def test_tsv_rows() -> None:
    transcript = make_transcript(make_segment("hello there", 1.0), make_segment("you", 5.0))
    assert render(transcript, "tsv") == "start_ms\tend_ms\ttext\n1000\t1700\thello there\n5000\t5300\tyou\n"


def test_json_holds_everything() -> None:
    edit = Edit(0, 1, "hallo", "hello", "hypothesis 2")
    correction = Correction("x#0", "hello", "hallo", False, "gain 2.0", (edit,), 0.9)
    nbest = NBest("x#0", (Hypothesis("hallo", float("-inf")), Hypothesis("hello", None)))
    segment = TranscriptSegment(0.5, 1.5, "hello", make_words("hello", 0.6), nbest, correction)
    transcript = Transcript("ü.wav", 2.0, "hello", "hallo", (segment,), (correction,), ("0.50 s lost",))
    text = render(transcript, "json")
    document = json.loads(text)
    assert text.count("\n") == 1
    keys = ["schema_version", "name", "duration_s", "text", "recognized", "segments", "corrections", "warnings"]
    assert list(document) == [*keys, "rejected", "about"]
    assert (document["rejected"], document["about"]) == ([], {})
    (part,) = document["segments"]
    assert list(part) == ["start_s", "end_s", "text", "words", "nbest", "correction", "channel"]
    assert part["words"] == [{"text": "hello", "start_s": 0.6, "end_s": pytest.approx(0.9), "confidence": 0.5}]
    assert part["nbest"]["hypotheses"] == [{"text": "hallo", "score": None}, {"text": "hello", "score": None}]
    assert part["correction"] == document["corrections"][0]
    assert part["correction"]["edits"][0]["source"] == "hypothesis 2"
    assert part["correction"]["kept"] is False
    assert document["name"] == "ü.wav"


def test_json_holds_languages_notes_and_rejected_text() -> None:
    notes = ("decoded again: a phrase repeats", "temperature 0.2")
    parts = [
        dataclasses.replace(make_segment(text, start_s), language=code, language_probability=probability, notes=noted)
        for text, start_s, code, probability, noted in (
            ("hello", 0.0, "en", 0.5, ()),
            ("hallo", 2.0, "de", None, notes),
            ("there", 4.0, "en", 0.75, ()),
        )
    ]
    rejected = RejectedText(9.0, 9.5, "Thank you.", "no speech (probability 0.90), text unlikely")
    transcript = dataclasses.replace(
        make_transcript(*parts), rejected=(rejected,), about={"recognizer": "whisper-base@0123", "language": "auto"}
    )
    document = json.loads(render(transcript, "json"))
    assert document["languages"] == {"en": 0.75, "de": None}
    assert document["about"] == {"recognizer": "whisper-base@0123", "language": "auto"}
    assert document["rejected"] == [dataclasses.asdict(rejected)]
    assert [part["language"] for part in document["segments"]] == ["en", "de", "en"]
    assert [part.get("notes") for part in document["segments"]] == [None, list(notes), None]
    assert "Thank you" not in document["text"]


def test_channels_are_labeled_in_order_of_time() -> None:
    parts = [("left", "good morning", 0.0), ("left", "how are you", 2.0), ("right", "fine", 2.4), ("left", "good", 4.0)]
    segments = [dataclasses.replace(make_segment(text, start_s), channel=name) for name, text, start_s in parts]
    transcript = make_transcript(*segments)
    assert render(transcript, "txt") == "LEFT: good morning how are you\nRIGHT: fine\nLEFT: good\n"
    assert labeled_text(transcript) == "LEFT: good morning how are you\nRIGHT: fine\nLEFT: good"
    times = [(cue.start_ms, cue.lines) for cue in cues(transcript)]
    assert times[1:3] == [(2000, ("LEFT: how are you",)), (2400, ("RIGHT: fine",))]  # they overlap, as the voices did
    assert [block.content for block in srt.parse(render(transcript, "srt"))][2] == "RIGHT: fine"
    assert webvtt.from_buffer(io.StringIO(render(transcript, "vtt")))[3].text == "LEFT: good"
    assert render(transcript, "tsv").splitlines()[::3] == [
        "start_ms\tend_ms\ttext\tchannel",
        "2400\t2700\tfine\tright",
    ]
    assert [part["channel"] for part in json.loads(render(transcript, "json"))["segments"]] == [p[0] for p in parts]


def test_label_counts_among_the_letters_of_a_line() -> None:
    segment = dataclasses.replace(make_segment("quite long words " * 8), channel="channel 12")
    assert all(cue.lines[0].startswith("CHANNEL 12: ") for cue in cues(make_transcript(segment)))
    assert all(len(line) <= 42 for cue in cues(make_transcript(segment)) for line in cue.lines)


def test_nbest_is_read_back(tmp_path: object) -> None:
    transcript = make_transcript(make_segment("hello there"), make_segment("you", 5.0))
    path = tmp_path / "a.jsonl"  # type: ignore[operator]
    path.write_text(render(transcript, "nbest"))
    assert list(read_nbest(path)) == [segment.nbest for segment in transcript.segments]


@pytest.mark.parametrize("kind", FORMATS)
def test_empty_transcript_is_valid(kind: str) -> None:
    text = render(Transcript("silence.wav", 3.0, "", "", ()), kind)
    if kind in ("txt", "srt", "nbest"):
        assert text == ""
    elif kind == "vtt":
        assert list(webvtt.from_buffer(io.StringIO(text))) == []
    elif kind == "tsv":
        assert text == "start_ms\tend_ms\ttext\n"
    else:
        assert json.loads(text)["segments"] == []


def test_unknown_format() -> None:
    with pytest.raises(UsageError, match="'doc'"):
        render(make_transcript(), "doc")
