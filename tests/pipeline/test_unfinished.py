"""An interrupted transcription of a recording is resumed with the same result."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline.test_transcribe import FakeCorrector, FakeRecognizer, silence, speech

from audio_llm import audio
from audio_llm.asr.base import SAMPLE_RATE, Stretch
from audio_llm.audio_channels import Excerpt
from audio_llm.errors import AudioFileError
from audio_llm.pipeline.formats import Transcript
from audio_llm.pipeline.transcribe import Transcriber
from audio_llm.pipeline.unfinished import UnfinishedFolder

SETTINGS = {"asr": "fake"}


class Killed(BaseException):
    """What ends a run at once."""


class Counting(FakeRecognizer):
    """Names every stretch by its length, and is killed after some of them."""

    def __init__(self, stop_after: float = float("inf"), rejected: int = -1) -> None:
        super().__init__()
        self.stop_after, self.rejected, self.made = stop_after, rejected, 0

    def recognize_stream(
        self, blocks: Iterable[np.ndarray], nbest: int = 1, id: str = "", sound: bool = False
    ) -> Iterator[Stretch]:
        for stretch in super().recognize_stream(blocks, nbest, id, sound):
            if self.made >= self.stop_after:
                raise Killed
            self.made += 1
            length = round(2 * (stretch.end_s - stretch.start_s)) / 2
            text = f"{length} seconds"
            renamed = dataclasses.replace(
                stretch.nbest, hypotheses=(dataclasses.replace(stretch.nbest.hypotheses[0], text=text),)
            )
            rejected = "no speech" if length == self.rejected else ""
            yield dataclasses.replace(stretch, nbest=renamed, rejected=rejected, notes=("a note",), language="de")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Return a file of six stretches of speech of different length."""
    parts = [silence(1), *(part for index in range(6) for part in (speech(1.5 + 0.5 * index), silence(1.2)))]
    audio.write(tmp_path / "talk.wav", np.concatenate(parts), SAMPLE_RATE)
    return tmp_path / "talk.wav"


Run = Callable[..., tuple[Transcript | None, Counting]]


@pytest.fixture
def run(tmp_path: Path, recording: Path) -> Run:
    """Return a function that transcribes the file as a batch into a folder does."""

    def transcribe(
        stop_after: float = float("inf"),
        settings: dict[str, str] = SETTINGS,
        excerpt: Excerpt | None = None,
        path: Path | None = None,
        rejected: float = -1,
    ) -> tuple[Transcript | None, Counting]:
        recognizer = Counting(stop_after, rejected)
        transcriber = Transcriber(recognizer)
        transcriber.unfinished = UnfinishedFolder(tmp_path / "out", settings)
        try:
            return transcriber.transcribe(path or recording, "talk", excerpt=excerpt), recognizer
        except Killed:
            return None, recognizer

    return transcribe


def assert_same(found: Transcript | None, expected: Transcript | None) -> None:
    """Compare transcripts; where the second run begins, the detector's frames lie a little differently."""
    assert found is not None
    assert expected is not None
    assert found.text == expected.text
    assert found.duration_s == pytest.approx(expected.duration_s)
    for part, other in zip(found.segments, expected.segments, strict=True):
        assert (part.start_s, part.end_s) == pytest.approx((other.start_s, other.end_s), abs=0.1)
        times = [(word.start_s, word.end_s) for word in part.words]
        assert times == [pytest.approx((word.start_s, word.end_s), abs=0.1) for word in other.words]
        assert part.nbest.id == other.nbest.id
        assert (part.language, part.notes, part.channel) == (other.language, other.notes, other.channel)
    assert [(text.text, text.reason) for text in found.rejected] == [(t.text, t.reason) for t in expected.rejected]


@pytest.mark.parametrize("killed_after", [0, 1, 2, 5])
def test_a_killed_run_costs_the_stretch_it_was_at_and_the_one_before(run: Run, killed_after: int) -> None:
    whole, _ = run()
    run(settings={"other": "settings"})  # nothing is kept under these
    assert run(killed_after)[0] is None
    again, recognizer = run()
    assert_same(again, whole)
    assert recognizer.made == min(6, 7 - killed_after)
    assert again is not None
    expected = ["an earlier run was interrupted"] if killed_after > 1 else []
    assert [warning.split(":")[0] for warning in again.warnings] == expected


def test_a_run_may_be_killed_again_and_again(run: Run) -> None:
    whole, _ = run()
    run(settings={"other": "settings"})
    results = [run(2)[0] for _ in range(5)]
    assert results[:4] == [None] * 4
    final = results[4] or run()[0]
    assert_same(final, whole)


def test_rejected_text_stays_rejected(run: Run) -> None:
    whole, _ = run(rejected=2.5)
    assert whole is not None
    assert len(whole.rejected) == 1
    run(settings={"other": "settings"})
    run(4, rejected=2.5)
    again, _ = run(rejected=2.5)
    assert_same(again, whole)


@pytest.mark.parametrize("changed", ["settings", "file", "excerpt"])
def test_another_recording_or_other_settings_begin_again(run: Run, recording: Path, changed: str) -> None:
    run(4)
    if changed == "file":
        os.utime(recording, ns=(1, 1))
    settings = {"asr": "other"} if changed == "settings" else SETTINGS
    excerpt = Excerpt(start_s=0.1) if changed == "excerpt" else None
    _, recognizer = run(settings=settings, excerpt=excerpt)
    assert recognizer.made == 6


def test_an_excerpt_goes_on_within_it(run: Run) -> None:
    excerpt = Excerpt(start_s=3.3, end_s=18.0)
    whole, _ = run(excerpt=excerpt)
    run(settings={"other": "settings"}, excerpt=excerpt)
    run(3, excerpt=excerpt)
    again, _ = run(excerpt=excerpt)
    assert_same(again, whole)


def test_every_channel_goes_on_by_itself(run: Run, recording: Path, tmp_path: Path) -> None:
    mono = audio.read(recording)
    audio.write(tmp_path / "two.wav", np.stack([mono, mono[::-1]], axis=1), SAMPLE_RATE)
    each = Excerpt(channel="each")
    whole, _ = run(excerpt=each, path=tmp_path / "two.wav")
    run(settings={"other": "settings"}, excerpt=each, path=tmp_path / "two.wav")
    run(9, excerpt=each, path=tmp_path / "two.wav")
    again, recognizer = run(excerpt=each, path=tmp_path / "two.wav")
    assert recognizer.made < 12 - 9 + 3
    assert_same(again, whole)


@pytest.mark.parametrize("damage", ["cut", "not json", "not text", "another form"])
def test_a_damaged_file_gives_what_comes_before_the_damage(run: Run, tmp_path: Path, damage: str) -> None:
    whole, _ = run()
    run(settings={"other": "settings"})
    run(5)
    (kept,) = (tmp_path / "out").glob(".audio-llm-unfinished-*")
    content = kept.read_bytes()
    if damage == "cut":
        content = content[:-20]
    elif damage == "not json":
        content += b"garbage\n"
    elif damage == "not text":
        content += b"\xff\xfe"
    else:
        content += json.dumps({"start_s": "x"}).encode() + b"\n"
    kept.write_bytes(content)
    again, _ = run()
    assert_same(again, whole)


def test_partial_results_are_removed_after_the_transcript_is_written(run: Run, recording: Path, tmp_path: Path) -> None:
    run(4)
    folder = UnfinishedFolder(tmp_path / "out", SETTINGS)
    folder.remove(tmp_path / "other.wav")
    assert len(list((tmp_path / "out").iterdir())) == 1
    folder.remove(recording)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_file_is_an_error_as_before(run: Run, tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"none\.wav"):
        run(path=tmp_path / "none.wav")


@pytest.mark.parametrize("when", ["w", "a"])
def test_a_full_disk_costs_partial_results_and_not_the_transcript(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if mode == when:
            raise OSError(28, "No space left on device")
        return real(self, mode, *arguments, **more)

    whole, _ = run()
    monkeypatch.setattr(Path, "open", full)
    again, _ = run()
    assert_same(again, whole)
    assert "No space left on device" in caplog.text


def test_a_run_that_is_killed_as_it_resumes_loses_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(5)
    (partial,) = (tmp_path / "out").glob(".audio-llm-unfinished-*")
    before = partial.read_text()

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("audio_llm.pipeline.unfinished.write_text", killed)
        assert run()[0] is None
    assert partial.read_text() == before
    _, recognizer = run()
    assert recognizer.made == 2


def test_with_a_corrector_no_partial_results_are_stored(recording: Path, tmp_path: Path) -> None:
    transcriber = Transcriber(FakeRecognizer(), FakeCorrector())
    transcriber.unfinished = UnfinishedFolder(tmp_path / "out", SETTINGS)
    transcriber.transcribe(recording)
    assert not (tmp_path / "out").exists()
