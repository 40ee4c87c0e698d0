"""Recordings to clips: each fault has its reason, every sample is accounted for, runs are resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audio_llm import audio
from audio_llm.asr.base import Capabilities
from audio_llm.asr.engines import load_recognizer
from audio_llm.errors import UsageError
from audio_llm.manifest import read_manifest
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.simulation.mono import add_noise, colored_noise
from audio_llm.touchtts.prepare import JOURNAL, REASONS, PrepareConfig, Prepared, Recording, prepare
from audio_llm.touchtts.prepare_cut import BLOCK_S, Stretch, stretches
from audio_llm.touchtts.prepare_filters import (
    CER,
    MEASURES,
    NATS,
    AsrAgreement,
    TextVerification,
    clip_snr_db,
    is_clipped,
    is_stuck,
)
from audio_llm.touchtts.prepare_report import account

RATE = 16_000
PROJECT = Path(__file__).parents[2]
SAMPLES = PROJECT / "samples" / "speech"
TEXT = "It was the best of times, it was the worst."


def babble(seconds: float) -> np.ndarray:
    """Return something like speech, syllables of changing loudness: (T,) float32."""
    rng = np.random.default_rng(0)
    time_s = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 20 * np.sin(2 * np.pi * 0.7 * time_s)) / RATE
    voice = sum(np.exp(-abs(k * 130 - 600) / 500) * np.sin(k * phase) for k in range(1, 25))
    voice *= 0.55 - 0.45 * np.cos(2 * np.pi * 4 * time_s)
    voice *= rng.uniform(0.4, 1.0, int(4 * seconds) + 1)[(4 * time_s).astype(int)]
    return (0.3 * voice / np.abs(voice).max()).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    return (3e-4 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


class Fakes:
    """A verifier with fixed answers; the texts it was given are in `asked`."""

    def __init__(self, text: str = TEXT, disagreement: float | None = 0.1) -> None:
        self.text, self.disagreement = text, disagreement
        self.asked: list[str | None] = []

    def verify_text(self, waveform: np.ndarray, text: str) -> TextVerification:
        self.asked.append(text)
        return TextVerification(text, "second text", self.disagreement, NATS)

    def transcribe(self, waveform: np.ndarray) -> TextVerification:
        self.asked.append(None)
        return TextVerification(self.text, "second text", self.disagreement, CER)


def record(folder: Path, name: str, *parts: np.ndarray, text: str | None = TEXT, rate: int = RATE) -> Recording:
    """Write a recording of these parts."""
    path = folder / f"{name}.wav"
    soundfile.write(path, np.concatenate(parts), rate, subtype="FLOAT")
    return Recording(path, name, text)


def run(folder: Path, *recordings: Recording, verifier: Any = None, **options: Any) -> list[Prepared]:
    return list(prepare(recordings, verifier or Fakes(), folder / "out", **options))


def rows(folder: Path, name: str = "manifest") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / f"{name}.jsonl").read_text().splitlines()]


def clip_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out" / "clips").glob("*"))


def test_a_recording_with_its_text_becomes_one_clip(tmp_path: Path) -> None:
    recording = record(tmp_path, "talk", quiet(2), babble(2), quiet(3), babble(1.5), quiet(2))
    verifier = Fakes()
    (result,) = run(tmp_path, replace(recording, speaker="ann"), verifier=verifier)
    assert verifier.asked == ["it was the best of times it was the worst"]
    (row,) = rows(tmp_path)
    assert row["audio_filepath"] == "clips/talk-0001.flac"
    assert (row["text"], row["speaker"], row["disagreement"], row["measure"]) == (TEXT, "ann", 0.1, NATS)
    assert row["source"] == str(recording.path)
    assert 1.5 <= row["source_offset"] <= 2.0
    assert 6.5 <= row["duration"] <= 7.5
    start, samples = round(row["source_offset"] * RATE), round(row["duration"] * RATE)
    clip, source = audio.read(tmp_path / "out" / "clips" / "talk-0001.flac"), audio.read(recording.path)
    assert np.abs(clip - source[start : start + samples]).max() < 1e-4
    assert result.samples == result.silence + samples == len(source)
    assert rows(tmp_path, "dropped") == []


def test_what_was_written_is_a_manifest_of_16_khz_clips(tmp_path: Path) -> None:
    sound = audio.resample(np.concatenate([quiet(1), babble(3), quiet(1)]), RATE, 48_000)
    run(tmp_path, record(tmp_path, "talk", np.stack([sound, 0.5 * sound], axis=1), rate=48_000))
    (utterance,) = read_manifest(tmp_path / "out" / "manifest.jsonl")
    info = audio.probe(utterance.audio_filepath)
    assert (info.sample_rate, info.channels, info.duration_s) == (RATE, 1, utterance.duration)


def test_a_recording_without_text_is_cut_at_silence(tmp_path: Path) -> None:
    parts = [quiet(1), babble(4), quiet(2), babble(3), quiet(0.8), babble(1), quiet(2), babble(1), quiet(2)]
    (result,) = run(tmp_path, record(tmp_path, "talk", *parts, text=None))
    lengths = [clip.samples / RATE for clip in result.clips]
    assert [clip.reason for clip in result.clips] == ["", "", "too_short"]
    assert lengths == pytest.approx([4.5, 5.3, 1.5], abs=0.4)  # the short one next to another is joined with it
    assert result.silence / RATE == pytest.approx(16.8 - sum(lengths), abs=0.01)
    assert [row["text"] for row in rows(tmp_path)] == [TEXT, TEXT]


def test_continuous_speech_is_cut_within_the_longest_clip(tmp_path: Path) -> None:
    (result,) = run(tmp_path, record(tmp_path, "talk", babble(45), text=None), verifier=Fakes(TEXT * 5))
    assert len(result.clips) > 1
    assert all(clip.samples <= 30 * RATE and not clip.reason for clip in result.clips)
    assert all(a.offset + a.samples == b.offset for a, b in zip(result.clips, result.clips[1:], strict=False))


def faulty(folder: Path, kind: str) -> Recording:
    """Return a recording with one fault."""
    pause, speech = quiet(1), babble(3)
    loud = np.clip(20 * speech, -1, 1)
    faults: dict[str, tuple[Sequence[np.ndarray], str]] = {
        "silent": ([quiet(4)], TEXT),
        "too_short": ([pause, babble(0.9), pause], TEXT),
        "too_long": ([pause, *[babble(9), pause] * 4], TEXT),
        "clipped": ([pause, loud, pause], TEXT),
        "no_text": ([pause, speech, pause], " \n"),
        "unspeakable": ([pause, speech, pause], "???"),
        "repeated": ([pause, speech, pause], "thank you " * 5),
        "speed": ([pause, speech, pause], TEXT * 4),
    }
    if kind == "unreadable":
        (folder / "talk.wav").write_bytes(b"this is no sound")
        return Recording(folder / "talk.wav", "talk", TEXT)
    parts, text = faults[kind]
    return record(folder, "talk", *parts, text=text)


@pytest.mark.parametrize("kind", [reason for reason in REASONS if reason != "disagree"])
def test_every_fault_is_dropped_for_its_reason_before_any_recognition(tmp_path: Path, kind: str) -> None:
    verifier = Fakes()
    run(tmp_path, faulty(tmp_path, kind), verifier=verifier)
    (row,) = rows(tmp_path, "dropped")
    assert row["reason"] == kind
    assert row["audio_filepath"] == row["source"] == str(tmp_path / "talk.wav")
    assert verifier.asked == []
    assert rows(tmp_path) == []
    assert clip_names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "disagreement", "limit", "reason"),
    [
        (TEXT, 2.0, None, ""),
        (TEXT, 2.01, None, "disagree"),
        (TEXT, 2.01, 2.5, ""),
        (TEXT, 0.0, 0.0, ""),
        (TEXT, None, None, "speed"),  # too long for the sound
        (None, 0.3, None, ""),
        (None, 0.31, None, "disagree"),
        (None, 0.31, 0.4, ""),
    ],
)
def test_the_limit_of_disagreement(
    tmp_path: Path, text: str | None, disagreement: float | None, limit: float | None, reason: str
) -> None:
    recording = record(tmp_path, "talk", quiet(1), babble(3), quiet(1), text=text)
    config = PrepareConfig(max_disagreement=limit)
    (result,) = run(tmp_path, recording, verifier=Fakes(disagreement=disagreement), config=config)
    (clip,) = result.clips
    assert (clip.reason, clip.disagreement, clip.second_text) == (reason, disagreement, "second text")


@pytest.mark.parametrize(("text", "reason"), [("", "no_text"), ("\u266a", "unspeakable"), ("no " * 20, "repeated")])
def test_recognized_texts_can_be_wrong_too(tmp_path: Path, text: str, reason: str) -> None:
    recording = record(tmp_path, "talk", quiet(1), babble(3), quiet(1), text=None)
    (result,) = run(tmp_path, recording, verifier=Fakes(text))
    assert [clip.reason for clip in result.clips] == [reason]


def test_noise_is_no_reason(tmp_path: Path) -> None:
    speech = np.concatenate([quiet(1), babble(3), quiet(1)])
    noisy = add_noise(speech, colored_noise(len(speech), np.random.default_rng(1), 1.0), 5.0)
    (result,) = run(tmp_path, record(tmp_path, "talk", noisy))
    (clip,) = result.clips
    assert clip.reason == ""
    assert clip.snr_db is not None
    assert clip.snr_db < 15


def test_every_sample_is_accounted_for(tmp_path: Path) -> None:
    kinds = [kind for kind in REASONS if kind != "disagree"]
    for kind in kinds:
        (tmp_path / kind).mkdir()
    recordings = [replace(faulty(tmp_path / kind, kind), name=kind) for kind in kinds]
    recordings += [
        record(tmp_path, "good", quiet(1), babble(3), quiet(1)),
        record(tmp_path, "odd", quiet(1.3), babble(4.345), np.zeros(7, np.float32), text=None, rate=22_050),
    ]
    results = run(tmp_path, *recordings)
    total = account(results)
    parts = rows(tmp_path) + rows(tmp_path, "dropped")
    written = sum(round(row["duration"] * RATE) for row in parts)
    read = sum(len(audio.read(r.path)) for r in recordings if r.name != "unreadable")
    assert total.read.samples == read == written + total.silence.samples
    assert all(total.dropped[kind].clips == 1 for kind in kinds)
    assert total.retained.clips == 2


def test_a_failure_in_the_middle_leaves_nothing_and_stops_nothing(tmp_path: Path) -> None:
    broken = np.concatenate([quiet(1), babble(4), quiet(20), babble(4)])
    broken[-1000] = np.nan
    recordings = [
        record(tmp_path, "broken", broken, text=None),
        record(tmp_path, "good", quiet(1), babble(3), quiet(1)),
        Recording(tmp_path / "missing.wav", "missing"),
        Recording(tmp_path / "good.wav", "problem", problem="good.txt: no text"),
    ]
    results = run(tmp_path, *recordings)
    assert [result.status for result in results] == ["failed", "done", "failed", "failed"]
    assert "NaN" in results[0].error
    assert "no such file" in results[2].error
    assert results[3].error == "good.txt: no text"
    assert clip_names(tmp_path) == ["good-0001.flac"]
    assert [row["reason"] for row in rows(tmp_path, "dropped")] == ["unreadable"] * 3


def test_a_cut_off_file_is_used_with_a_warning(tmp_path: Path) -> None:
    recording = record(tmp_path, "talk", quiet(1), babble(5))
    whole = recording.path.read_bytes()
    recording.path.write_bytes(whole[: len(whole) * 3 // 4])
    (result,) = run(tmp_path, recording)
    assert result.status == "done"
    assert "cut off" in result.warnings[0]


class Stop(BaseException):
    """As Ctrl-C."""


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    recordings = [record(tmp_path, name, quiet(1), babble(3), quiet(1)) for name in ("a", "b", "c")]

    class Interrupted(Fakes):
        def verify_text(self, waveform: np.ndarray, text: str) -> TextVerification:
            if len(self.asked) == 2:
                raise Stop
            return super().verify_text(waveform, text)

    with pytest.raises(Stop):
        run(tmp_path, *recordings, verifier=Interrupted())
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    again = Fakes()
    results = run(tmp_path, *recordings, verifier=again)
    assert [result.status for result in results] == ["skipped", "skipped", "done"]
    assert len(again.asked) == 1
    at_once = list(prepare(recordings, Fakes(), tmp_path / "other"))
    assert [result.clips for result in results] == [result.clips for result in at_once]
    for name in ("manifest.jsonl", "dropped.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_what_has_changed_is_done_again(tmp_path: Path) -> None:
    first = record(tmp_path, "a", quiet(1), babble(3), quiet(1))
    other = record(tmp_path, "b", quiet(1), babble(3), quiet(1))

    def statuses(*recordings: Recording, **options: Any) -> list[str]:
        return [result.status for result in run(tmp_path, *recordings, **options)]

    assert statuses(first, other, stamp="x") == ["done", "done"]
    assert statuses(first, other, stamp="x") == ["skipped", "skipped"]
    assert statuses(replace(first, text="Another text for it."), other, stamp="x") == ["done", "skipped"]
    assert statuses(first, other, stamp="y") == ["done", "done"]
    assert statuses(first, other, stamp="y", config=PrepareConfig(min_s=1.5)) == ["done", "done"]
    assert statuses(first, other, stamp="y", config=PrepareConfig(min_s=1.5), overwrite=True) == ["done", "done"]
    (tmp_path / "out" / "clips" / "b-0001.flac").unlink()
    assert statuses(first, other, stamp="y", config=PrepareConfig(min_s=1.5)) == ["skipped", "done"]
    with (tmp_path / "out" / JOURNAL).open("a") as file:
        file.write('{"name": "a", "key"')  # a run that was killed while it wrote
    record(tmp_path, "a", quiet(1), babble(3.5), quiet(1))
    assert statuses(first, other, stamp="y", config=PrepareConfig(min_s=1.5)) == ["done", "skipped"]
    assert clip_names(tmp_path) == ["a-0001.flac", "b-0001.flac"]


def test_clips_of_other_settings_do_not_stay(tmp_path: Path) -> None:
    recording = record(tmp_path, "talk", quiet(1), babble(3), quiet(2), babble(3), quiet(1), text=None)
    run(tmp_path, recording)
    assert clip_names(tmp_path) == ["talk-0001.flac", "talk-0002.flac"]
    run(tmp_path, recording, verifier=Fakes(disagreement=0.5), stamp="another")
    assert clip_names(tmp_path) == []
    run(tmp_path, recording, config=PrepareConfig(max_disagreement=1.0))
    assert clip_names(tmp_path) == ["talk-0001.flac", "talk-0002.flac"]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    recording = record(tmp_path, "talk", quiet(1), babble(3), quiet(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(tmp_path, recording)
    run(tmp_path, recording, overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_two_recordings_of_one_name_are_refused(tmp_path: Path) -> None:
    recording = record(tmp_path, "talk", quiet(1), babble(3), quiet(1))
    with pytest.raises(UsageError, match="two recordings are named 'talk'"):
        run(tmp_path, recording, recording)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_s": 5.0, "max_s": 5.0},
        {"min_s": 0.0},
        {"min_s": 0.5, "max_s": 1.5},
        {"max_s": float("inf")},
        {"min_s": float("nan")},
        {"max_disagreement": -0.1},
        {"max_disagreement": float("nan")},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PrepareConfig(**wrong)


def blocks_of(sound: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (sound[start : start + size] for start in range(0, len(sound), size))


@pytest.mark.parametrize("whole", [False, True])
def test_stretches_do_not_depend_on_blocks_and_are_the_very_samples(whole: bool) -> None:
    parts = [
        quiet(1),
        babble(1),
        quiet(0.8),
        babble(2),
        quiet(9),
        babble(1),
        quiet(0.9),
        babble(7),
        quiet(70),
        babble(4),
    ]
    sound = np.concatenate(parts)
    by_size = [list(stretches(blocks_of(sound, size), 2.0, 30.0, whole)) for size in (4801, int(BLOCK_S * RATE))]
    assert [(s.start, s.stop) for s in by_size[0]] == [(s.start, s.stop) for s in by_size[1]]
    assert len(by_size[0]) == (1 if whole else 3)
    for stretch in by_size[0] + by_size[1]:
        if whole:
            assert stretch.waveform is None  # longer than a clip
        else:
            assert np.array_equal(stretch.waveform, sound[stretch.start : stretch.stop])


def test_the_onset_of_a_hum_is_no_speech() -> None:
    hum = (0.01 * np.sin(2 * np.pi * 50 * np.arange(5 * RATE) / RATE)).astype(np.float32)
    results: list[Stretch] = list(stretches([hum], 2.0, 30.0, True))
    assert results == []


def test_clipped_sound_is_distinguished_from_loud_and_noisy_sound() -> None:
    speech = babble(3)
    limit = float(np.quantile(np.abs(speech), 0.99))
    assert is_clipped(np.clip(speech, -limit, limit))
    assert is_clipped(0.3 * np.clip(speech, -limit, limit))
    noisy = add_noise(speech, colored_noise(len(speech), np.random.default_rng(0), 1.0), 10.0)
    for good in (speech, speech / np.abs(speech).max(), noisy, np.zeros(100, np.float32), speech[:0]):
        assert not is_clipped(good)


@pytest.mark.parametrize(
    ("text", "stuck"),
    [
        ("no no no no", True),
        ("thank you thank you thank you thank you very much", True),
        ("well " + "and so it went on " * 4, True),
        ("row row row your boat gently down the stream", False),
        ("it was very very very very cold that day in the north", False),
        ("the best of times the worst of times", False),
        ("", False),
    ],
)
def test_a_text_that_is_stuck(text: str, stuck: bool) -> None:
    assert is_stuck(text) == stuck


def test_the_ratio_of_speech_to_noise_follows_the_true_one() -> None:
    speech = np.concatenate([quiet(0.3), babble(2), quiet(0.3), babble(2), quiet(0.3)])
    noise = colored_noise(len(speech), np.random.default_rng(0), 1.0)
    estimates_db = [clip_snr_db(add_noise(speech, noise, true_db)) for true_db in (0.0, 10.0, 20.0)]
    assert estimates_db == pytest.approx([3.0, 12.0, 22.0], abs=4.0)
    assert clip_snr_db(speech[:10]) == 0.0


class FakeRecognizer:
    """Recognizes one text in any speech."""

    name, version = "fake", "1"
    capabilities = Capabilities(scores=False, word_times=False, text_scores=False, word_preference=False)

    def __init__(self, text: str) -> None:
        self.text, self.asked = text, 0

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        self.asked += 1
        return NBest(id, (Hypothesis(self.text),) if self.text else ())

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        return [None] * len(texts)

    def prefer(self, words: Sequence[str]) -> list[str]:
        return list(words)


def test_two_recognizers_are_compared_by_characters() -> None:
    first, second, scorer = FakeRecognizer("the cat sat"), FakeRecognizer("The cat sad!"), FakeRecognizer("a cat")
    verifier = AsrAgreement(lambda: first, lambda: second, lambda: scorer)
    assert verifier.transcribe(babble(1)) == TextVerification("the cat sat", "The cat sad!", pytest.approx(1 / 11), CER)
    assert scorer.asked == 0
    assert verifier.verify_text(babble(1), "the cat") == TextVerification("the cat", "a cat", pytest.approx(3 / 7), CER)
    assert (first.asked, second.asked, scorer.asked) == (1, 1, 1)
    first.text = ""
    assert verifier.transcribe(babble(1)).text == ""
    assert second.asked == 1  # an empty first hypothesis needs no second one


def test_recognizers_are_loaded_once_and_when_needed() -> None:
    loaded: list[str] = []

    def load(name: str) -> FakeRecognizer:
        loaded.append(name)
        return FakeRecognizer("x")

    verifier = AsrAgreement(lambda: load("first"), lambda: load("second"), lambda: load("judge"))
    assert loaded == []
    for _ in range(2):
        verifier.verify_text(babble(1), "x")
    assert loaded == ["judge"]


def test_the_network_tells_true_texts_from_those_of_others(tmp_path: Path) -> None:
    utterances = list(read_manifest(SAMPLES / "manifest.jsonl"))
    right = [Recording(u.audio_filepath, f"right{i}", u.text) for i, u in enumerate(utterances)]
    by_length = sorted(utterances, key=lambda u: len(u.text or ""))
    wrong = [
        Recording(u.audio_filepath, f"wrong{i}", by_length[(i + 1) % len(by_length)].text)
        for i, u in enumerate(by_length)
    ]
    scorer = load_recognizer("ctc")
    verifier = AsrAgreement(lambda: scorer, lambda: scorer, lambda: scorer)
    results = run(tmp_path, *right, *wrong, verifier=verifier, config=PrepareConfig(min_s=1.0))
    reasons = [clip.reason for result in results for clip in result.clips]
    assert reasons[: len(right)].count("") >= len(right) - 1
    assert set(reasons[len(right) :]) == {"disagree"}
    assert {clip.measure for result in results for clip in result.clips} == {NATS}


def test_the_network_detects_texts_that_are_too_long_and_silence() -> None:
    scorer = load_recognizer("ctc")
    verifier = AsrAgreement(lambda: scorer, lambda: scorer, lambda: scorer)
    assert verifier.verify_text(babble(1), "a text that nobody says in a second").disagreement is None
    faint = 1e-3 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    verification = verifier.verify_text(faint, "hello there")
    assert verification.disagreement is not None
    assert verification.disagreement > MEASURES[NATS]
