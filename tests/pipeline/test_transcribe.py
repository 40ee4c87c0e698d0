"""One recording to a transcript: times, corrections, protected words, and memory that does not grow."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import audio_llm
from audio_llm import audio, hub
from audio_llm.align import edits
from audio_llm.asr import engines
from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.correction import Correction, Edit, protect
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.nbest import Hypothesis, NBest, Word
from audio_llm.pipeline.correct import load_corrector
from audio_llm.pipeline.transcribe import Transcriber


class FakeRecognizer(SegmentRecognizer):
    """Recognizes the same words in every stretch of speech, spread evenly over it."""

    name = "fake"
    version = "1"
    capabilities = Capabilities(scores=True, word_times=True, text_scores=False, word_preference=False)

    def __init__(self, text: str = "the cat sad on the mat") -> None:
        self.text = text
        self.asked: list[int] = []
        self.lengths: list[int] = []

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        self.asked.append(nbest)
        self.lengths.append(len(waveform))
        if not self.text:
            return NBest(id, ())
        words = self.text.split()
        step_s = len(waveform) / SAMPLE_RATE / len(words)
        times = tuple(Word(word, i * step_s, (i + 1) * step_s) for i, word in enumerate(words))
        return NBest(id, (Hypothesis(self.text, -1.0), Hypothesis("the cat sat on a mat", -2.0)), words=times)

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        return [None] * len(texts)

    def prefer(self, words: Sequence[str]) -> list[str]:
        return list(words)


class FakeCorrector:
    """Replaces words by a table."""

    name = "fake"
    hypotheses = 3

    def __init__(self, **table: str) -> None:
        self.table = table
        self.waveforms: list[np.ndarray] = []

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        self.waveforms.extend(waveforms or ())
        return [self._one(nbest) for nbest in lists]

    def _one(self, nbest: NBest) -> Correction:
        text = " ".join(self.table.get(word, word) for word in nbest.best.split())
        return correction(nbest.best, text)


def correction(before: str, after: str) -> Correction:
    old, new = before.split(), after.split()
    found = tuple(
        Edit(
            op.source_start,
            op.source_end,
            " ".join(old[op.source_start : op.source_end]),
            " ".join(new[op.target_start : op.target_end]),
            "fake",
        )
        for op in edits(old, new)
    )
    return Correction("", after, before, not found, "a reason", found, 0.9)


def speech(seconds: float) -> np.ndarray:
    """Return a vowel-like sound with four syllables a second: (T,) float32 at 16 kHz."""
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buzz = sum(np.exp(-abs(k * 140 - 600) / 500) * np.sin(2 * np.pi * 140 * k * time_s) for k in range(1, 25))
    buzz *= 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time_s)
    return (0.3 * buzz / np.abs(buzz).max()).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def talk(*seconds: float) -> np.ndarray:
    """Return stretches of speech with a second of silence before, between and after them."""
    return np.concatenate([silence(1), *(part for s in seconds for part in (speech(s), silence(1)))])


def test_word_times_are_those_of_the_recording() -> None:
    transcript = Transcriber(FakeRecognizer()).transcribe([talk(2, 3)], "talk")
    assert transcript.duration_s == pytest.approx(8.0)
    assert transcript.text == transcript.recognized == "the cat sad on the mat the cat sad on the mat"
    first, second = transcript.segments
    assert 0.5 < first.start_s < 1.1
    assert 3.0 < first.end_s < 3.6
    assert 3.5 < second.start_s < 4.1
    words = [word for segment in transcript.segments for word in segment.words]
    assert words[0].start_s == pytest.approx(first.start_s)
    assert words[-1].end_s == pytest.approx(second.end_s)
    times = [time for word in words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert transcript.corrections == ()
    assert transcript.segments[1].nbest.id == "talk#1"


def test_blocks_may_be_of_any_length() -> None:
    waveform = talk(2, 1)
    whole = Transcriber(FakeRecognizer()).transcribe([waveform], "x")
    pieces = [waveform[start : start + 1_234] for start in range(0, len(waveform), 1_234)]
    assert Transcriber(FakeRecognizer()).transcribe(pieces, "x") == whole


def test_corrected_words_keep_monotone_times() -> None:
    corrector = FakeCorrector(sad="sat", mat="old mat")
    transcript = Transcriber(FakeRecognizer(), corrector).transcribe([talk(2)])
    (segment,) = transcript.segments
    assert transcript.recognized == "the cat sad on the mat"
    assert transcript.text == segment.text == "the cat sat on the old mat"
    assert [word.text for word in segment.words] == segment.text.split()
    times = [time for word in segment.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    step_s = (segment.end_s - segment.start_s) / 6
    assert segment.words[2].start_s == pytest.approx(segment.start_s + 2 * step_s)
    assert segment.words[2].end_s == pytest.approx(segment.start_s + 3 * step_s)
    assert [c.text for c in transcript.corrections] == [segment.text]
    assert len(corrector.waveforms[0]) / SAMPLE_RATE == pytest.approx(segment.end_s - segment.start_s)


def test_silence_and_unrecognized_speech_give_an_empty_transcript() -> None:
    for recognizer, sound in ((FakeRecognizer(), silence(3)), (FakeRecognizer(""), talk(2))):
        transcript = Transcriber(recognizer, FakeCorrector()).transcribe([sound])
        assert (transcript.text, transcript.segments, transcript.corrections) == ("", (), ())
        assert transcript.duration_s == pytest.approx(len(sound) / SAMPLE_RATE)
    assert Transcriber(FakeRecognizer()).transcribe([]).duration_s == 0


def test_nbest_size_reaches_the_recognizer() -> None:
    recognizer = FakeRecognizer()
    Transcriber(recognizer, nbest=17).transcribe([talk(2)])
    assert recognizer.asked == [17]


def test_a_corrector_sees_as_many_hypotheses_as_it_wants_and_the_transcript_those_asked_for() -> None:
    recognizer, corrector = FakeRecognizer(), FakeCorrector(sad="sat")
    (segment,) = Transcriber(recognizer, corrector, nbest=1).transcribe([talk(2)]).segments
    assert recognizer.asked == [corrector.hypotheses]
    assert len(segment.nbest.hypotheses) == 1


def test_file_gives_name_and_warnings(tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    audio.write(path, talk(2), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: 2 * 2 * SAMPLE_RATE])
    transcript = Transcriber(FakeRecognizer()).transcribe(path)
    assert transcript.name == str(path)
    assert transcript.text == "the cat sad on the mat"
    assert any("2.00 s lost" in warning for warning in transcript.warnings)


def test_progress_adds_up_to_the_duration() -> None:
    seen: list[float] = []
    transcript = Transcriber(FakeRecognizer()).transcribe([talk(2, 2)], progress=seen.append)
    assert len(seen) >= 2
    assert sum(seen) == pytest.approx(transcript.duration_s)
    assert min(seen) > 0


def test_memory_does_not_grow_with_length() -> None:
    def blocks(minutes: int) -> Iterator[np.ndarray]:
        block = talk(9)
        for _ in range(minutes * 60 * SAMPLE_RATE // len(block)):
            yield block.copy()

    def peak(minutes: int) -> int:
        tracemalloc.start()
        Transcriber(FakeRecognizer()).transcribe(blocks(minutes))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(4) - peak(1) < 500_000  # three more minutes of sound are 11 MB


def test_protected_word_stays() -> None:
    transcriber = Transcriber(FakeRecognizer(), FakeCorrector(sad="sat", mat="map"), protected=["Mat"])
    transcript = transcriber.transcribe([talk(2)])
    assert transcript.text == "the cat sat on the mat"
    (made,) = transcript.corrections
    assert [(edit.before, edit.after) for edit in made.edits] == [("sad", "sat")]
    assert "kept for mat" in made.reason


@pytest.mark.parametrize(
    ("before", "after", "terms", "expected"),
    [
        ("a b c", "a x c", ["c"], "a x c"),
        ("a b c", "a x c", ["b"], "a b c"),
        ("a b c d", "a x c", ["C D"], "a x c d"),
        ("new york is", "new work is", ["New York"], "new york is"),
        ("a b a", "a b", ["a"], "a b a"),
        ("a b", "b a", ["a"], "b a"),
        ("a b c", "a x c", ["", "  ", "..."], "a x c"),
        ("a b c", "a x c", [], "a x c"),
    ],
)
def test_protect(before: str, after: str, terms: list[str], expected: str) -> None:
    made = correction(before, after)
    result = protect(made, terms)
    assert result.text == expected
    if expected == after:
        assert result == made
    if expected == before:
        assert (result.unchanged, result.edits) == (True, ())


def test_protect_takes_all_back_where_edits_do_not_explain_the_text() -> None:
    made = dataclasses.replace(correction("a b c", "x y c"), edits=())
    assert protect(made, ["b"]).text == "a b c"


def test_names_that_do_not_exist_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"unknown recognizer 'sfinx' \(did you mean sphinx\?\)"):
        engines.load_recognizer("sfinx")
    with pytest.raises(UsageError, match="no corrector"):
        load_corrector("llm")
    with pytest.raises(UsageError, match="no decoding"):
        load_corrector("dlm", decode="magic")
    with pytest.raises(UsageError, match="model inside"):
        engines.load_recognizer("sphinx", "some-model")
    with pytest.raises(UsageError, match="needs a model"):
        engines.load_recognizer("whisper-torch")
    with pytest.raises(ModelNotFoundError, match="whisper-base"):
        engines.load_recognizer("whisper")
    with pytest.raises(ModelNotFoundError):
        engines.load_recognizer("ctc", "no-such-model")
    with pytest.raises(ModelNotFoundError):
        engines.load_recognizer("whisper", "./no/such/folder")
    with pytest.raises(ModelNotFoundError):
        load_corrector("dlm", "no-such-model")


def test_load_refuses_kinds_without_an_object(tmp_path: Path) -> None:
    folder = hub.save_model(tmp_path / "lm", {}, {"w": torch.zeros(1)}, "lm", "")
    with pytest.raises(ModelFormatError, match="no object can be loaded for the kind 'lm'"):
        audio_llm.load(folder)


def test_engines_are_described() -> None:
    reports = {report.name: report for report in engines.describe_engines()}
    assert list(reports) == ["sphinx", "ctc", "touchtts", "whisper", "whisper-torch", "espnet"]
    assert reports["sphinx"].problem is None
    assert reports["sphinx"].capabilities is not None
    assert reports["sphinx"].capabilities.word_times


def test_one_call_transcribes_with_the_default_recognizer(tmp_path: Path) -> None:
    audio.write(tmp_path / "silence.wav", silence(2), SAMPLE_RATE)
    transcript = audio_llm.transcribe(tmp_path / "silence.wav")
    assert (transcript.text, transcript.duration_s) == ("", 2.0)


def two_speakers(path: Path) -> Path:
    """Write 10 s in which the left channel speaks from 1 s and from 7 s on, the right one from 4 s on."""
    left, right = np.zeros(10 * SAMPLE_RATE, np.float32), np.zeros(10 * SAMPLE_RATE, np.float32)
    for channel, start_s in ((left, 1), (left, 7), (right, 4)):
        sound = speech(1.5)
        channel[start_s * SAMPLE_RATE : start_s * SAMPLE_RATE + len(sound)] = sound
    audio.write(path, np.stack([left, right], axis=1), SAMPLE_RATE)
    return path


def test_each_channel_is_transcribed_for_itself_and_merged_in_order_of_time(tmp_path: Path) -> None:
    path = two_speakers(tmp_path / "call.wav")
    seconds: list[float] = []
    found = Transcriber(FakeRecognizer("yes")).transcribe(path, "call", seconds.append, audio.Excerpt("each"))
    assert [(part.channel, round(part.start_s)) for part in found.segments] == [("left", 1), ("right", 4), ("left", 7)]
    assert [part.nbest.id for part in found.segments] == ["call#left#0", "call#right#0", "call#left#1"]
    assert found.text == "yes yes yes"
    assert found.duration_s == 10
    assert sum(seconds) == pytest.approx(10)


def test_one_channel_is_transcribed_without_a_label(tmp_path: Path) -> None:
    path = two_speakers(tmp_path / "call.wav")
    transcriber = Transcriber(FakeRecognizer("yes"))
    for channel, count in (("left", 2), (2, 1), ("mix", 3)):
        found = transcriber.transcribe(path, excerpt=audio.Excerpt(channel))
        assert [part.channel for part in found.segments] == [None] * count


@pytest.mark.parametrize("channel", ["mix", "each"])
def test_times_of_an_excerpt_are_those_of_the_file(tmp_path: Path, channel: str) -> None:
    path = two_speakers(tmp_path / "call.flac")
    transcriber = Transcriber(FakeRecognizer("yes"), FakeCorrector(yes="oh yes"))
    whole = transcriber.transcribe(path, excerpt=audio.Excerpt(channel)).segments[1:]
    part = transcriber.transcribe(path, excerpt=audio.Excerpt(channel, 3.0, 9.5)).segments
    assert [segment.text for segment in part] == ["oh yes"] * 2
    for one, other in zip(whole, part, strict=True):
        assert other.start_s == pytest.approx(one.start_s, abs=0.1)
        assert [word.start_s for word in other.words] == pytest.approx([word.start_s for word in one.words], abs=0.1)
        assert other.nbest.words[0].start_s == pytest.approx(one.nbest.words[0].start_s, abs=0.1)


def test_an_excerpt_is_taken_of_files_only() -> None:
    with pytest.raises(UsageError, match="of files only"):
        Transcriber(FakeRecognizer()).transcribe([speech(1)], excerpt=audio.Excerpt("left"))
