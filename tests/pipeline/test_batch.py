"""Many files: what is finished is safe, what failed is named, what was stopped goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from audio_llm.correction import Correction
from audio_llm.errors import AudioFileError, DataError, ModelNotFoundError, UsageError
from audio_llm.nbest import Hypothesis, NBest, read_nbest
from audio_llm.pipeline.batch import JOURNAL_NAME, FileResult, one_line, output_stems, run_batch, write_whole
from audio_llm.pipeline.correct import correct_lists, correction_to_dict
from audio_llm.pipeline.files import AudioInput
from audio_llm.pipeline.formats import Transcript

PROJECT = Path(__file__).parents[2]


@dataclass
class Fake:
    """A transcript that is finished when `ready` says so."""

    transcript: Transcript
    ready: bool = True

    def done(self) -> bool:
        return self.ready

    def finish(self) -> Transcript:
        if "late" in self.transcript.name:
            raise AudioFileError("no words", path=self.transcript.name)
        return self.transcript


class FakeTranscriber:
    """Says the name of the file; fails for those named `bad`."""

    def __init__(self, ahead: int = 0, slow: Sequence[str] = ()) -> None:
        self.done: list[str] = []
        self.ahead = ahead
        self.slow = slow
        self.asked_ready = 0

    def ready(self) -> None:
        self.asked_ready += 1

    def begin(self, source: str | Path, name: str = "", progress: Callable[[float], None] | None = None) -> Fake:
        self.done.append(Path(source).name)
        if "bad" in Path(source).name:
            raise AudioFileError("no sound", path=source, remedy="mend it")
        if "bug" in Path(source).name:
            raise ZeroDivisionError("division\nby zero")
        if "stop" in Path(source).name:
            raise KeyboardInterrupt
        if progress:
            progress(1.5)
        text = f"this is {Path(source).stem}"
        return Fake(Transcript(str(source), 1.5, text, text, (), (), ()), Path(source).stem not in self.slow)


def make_inputs(folder: Path, *names: str) -> list[AudioInput]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")
    return [AudioInput(folder / name, Path(name)) for name in names]


def run(inputs: Sequence[AudioInput], out: Path | None, **options: object) -> tuple[list[FileResult], FakeTranscriber]:
    transcriber = FakeTranscriber()
    return list(run_batch(inputs, lambda: transcriber, out, **options)), transcriber  # type: ignore[arg-type]


def test_outputs_mirror_the_inputs(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "deep/er/b.flac", "dots.in.name.ogg")
    results, _ = run(inputs, tmp_path / "out", formats=["txt", "json"])
    assert [result.status for result in results] == ["done"] * 3
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert found == sorted(
        [JOURNAL_NAME, "a.txt", "a.json", "deep/er/b.txt", "deep/er/b.json", "dots.in.name.txt", "dots.in.name.json"]
    )
    assert (tmp_path / "out/deep/er/b.txt").read_text().strip() == "this is b"
    assert json.loads((tmp_path / "out/a.json").read_text())["text"] == "this is a"


def test_nothing_is_written_without_a_folder(tmp_path: Path) -> None:
    results, _ = run(make_inputs(tmp_path / "in", "a.wav"), None)
    assert results[0].outputs == ()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.wav", "in"]


def test_second_run_skips_what_is_done(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "b.wav")
    run(inputs, tmp_path / "out")
    results, transcriber = run(inputs, tmp_path / "out")
    assert [result.status for result in results] == ["skipped", "skipped"]
    assert transcriber.done == []
    results = list(run_batch(inputs, lambda: pytest.fail("a model was loaded for nothing"), tmp_path / "out"))
    assert len(results) == 2


def test_what_changed_is_done_again(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "b.wav", "c.wav")
    out = tmp_path / "out"
    run(inputs, out, options={"asr": "x"})
    (tmp_path / "in/b.wav").write_bytes(b"other sound")
    (out / "c.txt").unlink()
    assert run(inputs, out, options={"asr": "x"})[1].done == ["b.wav", "c.wav"]
    assert run(inputs, out, options={"asr": "y"})[1].done == ["a.wav", "b.wav", "c.wav"]
    assert run(inputs, out, options={"asr": "y"}, formats=["txt", "srt"])[1].done == ["a.wav", "b.wav", "c.wav"]
    assert run(inputs, out, options={"asr": "y"}, formats=["txt", "srt"])[1].done == []
    assert len(run(inputs, out, options={"asr": "y"}, formats=["txt", "srt"], overwrite=True)[1].done) == 3


def test_failed_file_does_not_stop_the_others(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "bad.wav", "bug.wav", "z.wav")
    results, _ = run(inputs, tmp_path / "out")
    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert results[1].reason == f"{inputs[1].path}: no sound (mend it)"
    assert results[2].reason == "ZeroDivisionError: division by zero"
    assert not (tmp_path / "out/bad.txt").exists()
    assert run(inputs, tmp_path / "out")[1].done == ["bad.wav", "bug.wav"]


def test_interrupt_keeps_finished_work(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "stop.wav", "z.wav")
    batch = run_batch(inputs, FakeTranscriber, tmp_path / "out")
    assert next(batch).status == "done"
    with pytest.raises(KeyboardInterrupt):
        next(batch)
    assert (tmp_path / "out/a.txt").is_file()
    assert run(inputs[:1], tmp_path / "out")[1].done == []
    ahead = run_batch(inputs, lambda: FakeTranscriber(ahead=2, slow=["a"]), tmp_path / "ahead")
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
    assert not (tmp_path / "ahead/a.txt").exists()  # its correction was still under way


def test_files_are_begun_ahead_and_come_in_order(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "b.wav", "bad.wav", "c.wav", "late.wav", "d.wav")
    transcriber = FakeTranscriber(ahead=2, slow=["a", "b", "late"])
    batch = run_batch(inputs, lambda: transcriber, tmp_path / "out")
    begun = []
    statuses = []
    for result in batch:
        statuses.append(f"{result.path.stem} {result.status}")
        begun.append(len(transcriber.done))
    assert statuses == ["a done", "b done", "bad failed", "c done", "late failed", "d done"]
    assert begun == [3, 4, 4, 4, 6, 6]  # a slow one waits until two more are begun, others are handed on at once
    assert (tmp_path / "out/a.txt").is_file()
    assert not (tmp_path / "out/late.txt").exists()


def test_a_model_that_is_missing_ends_the_batch(tmp_path: Path) -> None:
    transcriber = FakeTranscriber()
    error = ModelNotFoundError("no model is named 'x'")

    def fail() -> None:
        raise error

    transcriber.ready = fail  # type: ignore[method-assign]
    with pytest.raises(ModelNotFoundError):
        list(run_batch(make_inputs(tmp_path / "in", "a.wav", "b.wav"), lambda: transcriber, tmp_path / "out"))
    assert not (tmp_path / "out/a.txt").exists()


def test_files_of_no_earlier_run_are_not_replaced(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "b.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("my notes")
    results, _ = run(inputs, tmp_path / "out")
    assert [result.status for result in results] == ["failed", "done"]
    assert "was not written by an earlier run (give --overwrite" in results[0].reason
    assert (tmp_path / "out/a.txt").read_text() == "my notes"
    results, _ = run(inputs, tmp_path / "out", overwrite=True)
    assert [result.status for result in results] == ["done", "done"]
    assert (tmp_path / "out/a.txt").read_text().strip() == "this is a"


def test_same_stem_gives_different_outputs(tmp_path: Path) -> None:
    names = ["a.wav", "a.flac", "b.wav", "x/a.wav", "a.wav"]
    inputs = [AudioInput(tmp_path / str(i) / name, Path(name)) for i, name in enumerate(names)]
    assert output_stems(inputs) == ["a.wav", "a.flac", "b", "x/a", "a.wav-2"]


def test_damaged_journal_line_counts_as_not_done(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", "a.wav", "b.wav")
    run(inputs, tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:-20])  # a kill while the last line was written
    assert run(inputs, tmp_path / "out")[1].done == ["b.wav"]
    assert run(inputs, tmp_path / "out")[1].done == []


def test_file_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    inputs = make_inputs(tmp_path / "in", name)
    assert [r.status for r in run(inputs, tmp_path / "out", formats=["txt", "json"])[0]] == ["done"]
    assert run(inputs, tmp_path / "out", formats=["txt", "json"])[1].done == []


def test_output_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot be written to"):
            run(make_inputs(tmp_path / "in", "a.wav"), out)


def test_write_whole_leaves_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.txt", "old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.txt", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_reasons_are_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(MemoryError()) == "MemoryError"
    assert one_line(OSError(13, "Permission denied", "f.txt")) == "f.txt: Permission denied"


_SLOW_RUN = """
import sys, time
from pathlib import Path
from audio_llm.pipeline.batch import run_batch
from audio_llm.pipeline.files import AudioInput
from audio_llm.pipeline.formats import Transcript

class Slow:
    ahead = 0
    def ready(self):
        pass
    def begin(self, source, name="", progress=None):
        time.sleep(float(sys.argv[3]))
        self.stem, self.name = Path(source).stem, Path(source).name
        return self
    def done(self):
        return True
    def finish(self):
        text = "this is " + self.stem
        return Transcript(self.name, 1.0, text, text, (), (), ())

inputs = [AudioInput(p, Path(p.name)) for p in sorted(Path(sys.argv[1]).iterdir())]
for result in run_batch(inputs, Slow, sys.argv[2], ["txt", "json"]):
    print(result.status, result.path.name, flush=True)
"""


def test_kill_and_resume_give_what_an_undisturbed_run_gives(tmp_path: Path) -> None:
    make_inputs(tmp_path / "in", *(f"{index:02}.wav" for index in range(12)))

    def start(out: str, seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _SLOW_RUN, str(tmp_path / "in"), str(tmp_path / out), str(seconds)]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)

    finished = set()
    for _ in range(2):
        process = start("killed", 0.1)
        assert process.stdout is not None
        new = 0
        for line in process.stdout:
            status, name = line.split()
            new += status == "done"
            finished.add(name)
            if new == 3:
                time.sleep(0.05)
                os.kill(process.pid, signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert 6 <= len(finished) < 12
    out, _ = start("killed", 0).communicate()
    assert [line.split()[0] for line in out.splitlines()].count("skipped") >= 6
    assert [line.split()[0] for line in out.splitlines()].count("failed") == 0
    start("whole", 0).communicate()

    def texts(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.name != JOURNAL_NAME}

    assert len(texts("whole")) == 24
    assert texts("killed") == texts("whole")


class Shout:
    """Corrects by shouting, and remembers the batches."""

    name = "shout"
    hypotheses = 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def correct(self, lists: Sequence[NBest], waveforms: object = None) -> list[Correction]:
        self.batches.append(len(lists))
        return [Correction(n.id, n.best.upper(), n.best, False, "shouted", (), 0.5) for n in lists]


def test_lists_are_corrected_in_order_and_in_batches() -> None:
    lists = [NBest(str(i), (Hypothesis(f"text {i}"),)) for i in range(70)]
    corrector = Shout()
    made = list(correct_lists(iter(lists), corrector))
    assert corrector.batches == [32, 32, 6]
    assert [c.id for c in made] == [str(i) for i in range(70)]
    assert correction_to_dict(made[3]) == {
        "id": "3",
        "text": "TEXT 3",
        "input": "text 3",
        "kept": False,
        "reason": "shouted",
        "edits": [],
        "confidence": 0.5,
    }
    assert list(correct_lists([], corrector)) == []


def test_lists_before_a_bad_line_are_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"input": ["a"]}\n\n{"input": ["b"]}\nnonsense\n'))
    made = correct_lists(read_nbest("-"), Shout())
    assert [next(made).text, next(made).text] == ["A", "B"]
    with pytest.raises(DataError, match="standard input: line 4"):
        next(made)
