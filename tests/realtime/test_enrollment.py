"""Enrollment: unusable recordings are rejected; a speaker is enrolled while the loop runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime.clock import MeasuredClock
from audio_llm_realtime.contract import load_contract
from audio_llm_realtime.counters import Count
from audio_llm_realtime.enrollment import Enroller
from audio_llm_realtime.errors import ContractError, EnrollmentError, UsageError
from audio_llm_realtime.live_enrollment import LiveEnrollment
from audio_llm_realtime.loop import FileLoop
from audio_llm_realtime.worker import Worker

RATE = 16_000


@pytest.fixture
def enroller(contract: Any) -> Enroller:
    pytest.importorskip("onnxruntime")
    return Enroller(contract)


def test_a_recording_becomes_a_vector(enroller: Enroller, sound: np.ndarray) -> None:
    enrollment = enroller.enroll(sound + np.float32(0.25), RATE)
    np.testing.assert_allclose(enrollment.vector, [[1.0, 0.0, np.mean(sound) + 0.25, 0.0]], rtol=1e-5)
    assert (enrollment.used_s, enrollment.warnings) == (1.0, ())


def test_a_recording_without_a_frontal_speaker_gives_a_warning(enroller: Enroller, sound: np.ndarray) -> None:
    assert not enroller.enroll(sound, 16_000).warnings
    (warning,) = enroller.enroll(sound - 0.3, 16_000).warnings  # the mean is the frontal level in the tiny model
    assert "no frontal speaker" in warning


def test_only_the_beginning_of_a_long_recording_is_used_with_a_warning(enroller: Enroller, sound: np.ndarray) -> None:
    enrollment = enroller.enroll(np.concatenate([sound, 0 * sound, sound + np.float32(0.4)], axis=1), RATE)
    np.testing.assert_allclose(enrollment.vector[0, 2], np.mean(sound) / 2, atol=1e-5)
    assert enrollment.used_s == 2.0
    assert enrollment.warnings == ("the enrollment lasts 3.0 s; the first 2.0 s are used",)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: (x, 48_000), "at 48000 Hz, not 16000 Hz"),
        (lambda x: (x[:1], RATE), "1 channel, not 2"),
        (lambda x: (x[0], RATE), "1 channel, not 2"),
        (lambda x: (x[:, :15_000], RATE), "0.94 s, less than 1.00 s"),
        (lambda x: (x * 1e-4, RATE), "left channel of the enrollment is silent"),
        (lambda x: (x * np.array([[1], [0]]), RATE), "right channel of the enrollment is silent"),
        (lambda x: (np.clip(20 * x, -1, 1), RATE), "of the enrollment is clipped"),
        (lambda x: (np.where(x == x[0, 9], np.nan, x), RATE), "not finite"),
    ],
)
def test_unusable_recordings_are_rejected(
    enroller: Enroller, sound: np.ndarray, change: Callable[[np.ndarray], tuple[np.ndarray, int]], message: str
) -> None:
    recording, rate = change(sound)
    with pytest.raises(EnrollmentError) as caught:
        enroller.enroll(recording, rate)
    assert message in str(caught.value)
    assert caught.value.remedy


def test_model_without_enrollment_network_is_rejected(make_model: Callable[..., Path]) -> None:
    with pytest.raises(ContractError, match="cannot enroll"):
        Enroller(load_contract(make_model(enrolment=None)))


def test_a_speaker_is_enrolled_while_the_loop_runs(
    make_engine: Callable[..., Any], enroller: Enroller, sound: np.ndarray
) -> None:
    worker, messages = Worker(make_engine(0.25)), []
    live = LiveEnrollment(worker, enroller, 1.0, messages.append)
    loop = FileLoop(worker, MeasuredClock(instant=True), live.poll)
    loop.run(sound)
    live.request()
    live.request()
    again = loop.run(np.concatenate([sound, sound], axis=1))
    assert worker.counters[Count.ENROLMENTS] == 1
    assert messages == ["face the speaker for 1 s", "an enrollment is in progress", "enrolled from 1.0 s"]
    late = np.concatenate([sound, sound, sound], axis=1)[:, RATE - 192 : -192]
    np.testing.assert_array_equal(again[:, 192:15_000], np.float32(0.25) * late[:, 192:15_000])
    np.testing.assert_array_equal(again[:, 17_000:], late[:, 17_000:])  # the vector's gain is 1


def test_failed_enrollment_changes_nothing(
    make_engine: Callable[..., Any], enroller: Enroller, sound: np.ndarray
) -> None:
    worker, messages = Worker(make_engine(0.25)), []
    live = LiveEnrollment(worker, enroller, 1.0, messages.append)
    loop = FileLoop(worker, MeasuredClock(instant=True), live.poll)
    live.request()
    loop.run(0 * sound)
    assert "silent" in str(live.failure)
    assert "not enrolled" in messages[-1]
    np.testing.assert_array_equal(loop.run(sound)[:, 384:], np.float32(0.25) * sound[:, 192:-192])


def test_too_short_enrollment_is_rejected_before_it_is_recorded(make_engine: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="give 1 s or more"):
        Worker(make_engine()).recorder.start(0.5)


@pytest.mark.parametrize("seconds, message", [(1.5, "1.5 s"), (15.0, "2 s, the most"), (float("inf"), "2 s, the most")])
def test_announced_duration_is_the_recorded_one(
    make_engine: Callable[..., Any], enroller: Enroller, sound: np.ndarray, seconds: float, message: str
) -> None:
    worker, lines = Worker(make_engine()), []
    live = LiveEnrollment(worker, enroller, seconds, lines.append)
    live.request()
    FileLoop(worker, MeasuredClock(instant=True), live.poll).run(np.concatenate([sound, sound, sound], axis=1))
    assert lines[0].startswith(f"face the speaker for {message}")
    assert lines[1] == f"enrolled from {live.seconds:.1f} s"


def test_too_short_live_enrollment_is_rejected_before_anything_runs(
    make_engine: Callable[..., Any], enroller: Enroller
) -> None:
    with pytest.raises(UsageError, match=r"0\.5 s is too short \(give 1 s or more\)"):
        LiveEnrollment(Worker(make_engine()), enroller, 0.5, print)


def test_concurrent_enrollment_does_not_block_the_loop(
    make_engine: Callable[..., Any], enroller: Enroller, sound: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, messages, go_on, enroll = Worker(make_engine(0.25)), [], threading.Event(), enroller.enroll

    def slow(recording: np.ndarray, sample_rate: int) -> Any:
        assert go_on.wait(30)
        return enroll(recording, sample_rate)

    monkeypatch.setattr(enroller, "enroll", slow)
    with ThreadPoolExecutor(1) as executor:
        live = LiveEnrollment(worker, enroller, 1.0, messages.append, executor)
        loop = FileLoop(worker, MeasuredClock(instant=True), live.poll)
        live.request()
        loop.run(sound)
        while_it_runs = loop.run(sound)
        live.request()
        go_on.set()
        live.poll(wait=True)
    assert messages == ["face the speaker for 1 s", "an enrollment is in progress", "enrolled from 1.0 s"]
    np.testing.assert_array_equal(while_it_runs[:, 192:], np.float32(0.25) * sound[:, :-192])
    np.testing.assert_array_equal(loop.run(sound)[:, 384:], sound[:, 192:-192])


@pytest.mark.parametrize("extra_chunks", [0, 6])
def test_first_speaker_is_played_without_a_gap(
    make_engine: Callable[..., Any], enroller: Enroller, sound: np.ndarray, extra_chunks: int
) -> None:
    worker = Worker(make_engine(0.0), extra_chunks=extra_chunks)  # as without a target speaker: silence
    worker.buffer.mixer.enrolled = False
    live = LiveEnrollment(worker, enroller, 1.0, print)
    live.request()
    loop, long = FileLoop(worker, MeasuredClock(instant=True), live.poll), np.concatenate([sound, sound], axis=1)
    out, delay = loop.run(long), worker.buffer.delay
    assert worker.buffer.mixer.enrolled
    np.testing.assert_allclose(out[:, delay:], long[:, :-delay], atol=1e-6)
