"""A corrector in a separate process gives the same corrections, and its errors are passed on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.correction import Correction
from audio_llm.errors import AudioLLMError, ModelNotFoundError, UsageError
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.pipeline.transcribe import Transcriber
from audio_llm.pipeline.worker import CorrectorProcess


class Measurer:
    """Appends the number of samples to each text; cannot stand the word `bad`, and ends its process at `die`."""

    name = "measurer"
    hypotheses = 2

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        made = []
        for nbest, waveform in zip(lists, waveforms or (), strict=True):
            if nbest.best == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if nbest.best == "bad":
                raise UsageError("cannot stand it", remedy="say something else")
            text = f"{nbest.best} {waveform.size}"
            made.append(Correction(nbest.id, text, nbest.best, False, "measured", (), 0.5))
        return made


class Echo(SegmentRecognizer):
    """Recognizes a word in everything."""

    name, version = "echo", "1"

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        return NBest(id, (Hypothesis("word", -1.0),) * nbest)


def no_model() -> Measurer:
    raise ModelNotFoundError("no model is named 'x'", remedy="name another")


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other process find this module, which is no part of the package."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.fixture
def corrector_process() -> Iterator[CorrectorProcess]:
    corrector = CorrectorProcess(Measurer, "measurer", 2)
    yield corrector
    corrector.close()


def make_list(text: str) -> NBest:
    return NBest(text, (Hypothesis(text),))


def test_answers_come_in_order_more_than_fit_at_once_and_errors_with_them(corrector_process: CorrectorProcess) -> None:
    texts = [f"t{number}" for number in range(100)]
    sounds = [np.zeros(number * 300, np.float32) for number in range(100)]
    lists = [make_list(text) for text in texts]
    assert corrector_process.correct(lists, sounds) == Measurer().correct(lists, sounds)
    bad, good = (
        corrector_process.submit(make_list("bad"), sounds[1]),
        corrector_process.submit(make_list("good"), sounds[1]),
    )
    with pytest.raises(UsageError, match=r"cannot stand it \(say something else\)"):
        bad.result()
    assert good.result().text == "good 300"
    assert bad.done()
    assert good.done()
    gone = corrector_process.submit(make_list("die"), sounds[1])
    after = corrector_process.submit(make_list("after"), sounds[1])
    for future in (gone, after, corrector_process.submit(make_list("later"), sounds[1])):
        with pytest.raises(AudioLLMError, match="process ended with status -9"):
            future.result(timeout=20)


def test_what_loading_raises_comes_across() -> None:
    corrector = CorrectorProcess(no_model, "none", 1)
    with pytest.raises(ModelNotFoundError, match=r"no model is named 'x' \(name another\)") as caught:
        corrector.ready()
    assert caught.value.exit_status == 3
    with pytest.raises(AudioLLMError, match="process ended"):
        corrector.submit(make_list("a"), np.zeros(3, np.float32)).result(timeout=20)
    corrector.close()


def test_a_transcriber_gives_the_same_with_it(corrector_process: CorrectorProcess) -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([np.zeros(16_000), 0.2 * rng.standard_normal(20_000), np.zeros(16_000)] * 2)
    blocks = [speech.astype(np.float32)]
    here = Transcriber(Echo(), Measurer())  # type: ignore[arg-type]
    there = Transcriber(Echo(), corrector_process)  # type: ignore[arg-type]
    assert (here.ahead, there.ahead > 0) == (0, True)
    begun = there.begin(iter(blocks), "x")
    there.ready()
    assert begun.finish() == here.transcribe(iter(blocks), "x")
    assert begun.done()
    there.close()
