"""Decoding of Whisper windows: checks that act on invented text, and what a speaker really says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asr.fake_whisper import FakeWhisper, always, fake_recognizer
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.asr.base import Stretch
from audio_llm.asr.whisper import WhisperRecognizer
from audio_llm.asr.whisper_decode import DecodeOptions, _loop

Written = Sequence[tuple[str, float, float]]
WINDOW = np.full(16_000, 0.1, np.float32)
REPETITIVE = (
    "ba be bi bo bu da de di do du fa fe fi fo fu ga ge gi go gu " * 3
)  # shrinks by more than 2.4, and is no loop


def stretches(recognizer: WhisperRecognizer, nbest: int = 1) -> list[Stretch]:
    return list(recognizer.recognize_stream([WINDOW], nbest, "x"))


def by_size(beam: str, **texts: str) -> Callable[[list[int], dict[str, Any]], Written]:
    """Return what writes `beam` at first, and `n6` or `n3` where phrases of so many tokens may come only once."""

    def write(prompt: list[int], options: dict[str, Any]) -> Written:
        size = options.get("no_repeat_ngram_size")
        return [(texts.get(f"n{size}", beam), -0.2, 0.1)]

    return write


def sizes(model: FakeWhisper) -> list[int | None]:
    return [options.get("no_repeat_ngram_size") for options in model.asked]


def test_a_likely_text_is_decoded_once(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("ba be bi"), vad=False)
    (stretch,) = stretches(recognizer)
    assert (stretch.nbest.best, stretch.notes, stretch.rejected) == ("ba be bi", (), "")
    assert sizes(model) == [None]
    assert model.asked[0]["beam_size"] == 5


def test_a_score_is_summed_over_the_tokens(tiny_whisper: Path) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always("ba be bi", -0.5), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.hypotheses[0].score == pytest.approx(-1.5)


def test_hypotheses_are_distinct_texts_ranked_by_score_per_token(tiny_whisper: Path) -> None:
    def write(prompt: list[int], options: dict[str, Any]) -> Written:
        assert (options["beam_size"], options["num_hypotheses"]) == (6, 6)
        return [
            ("ba be", -0.9, 0.0),
            ("ba  be", -0.8, 0.0),
            ("", -0.1, 0.0),
            ("ba bi bo", -0.2, 0.0),
            ("bu", -3.0, 0.0),
        ]

    recognizer, _ = fake_recognizer(tiny_whisper, write, vad=False)
    (stretch,) = stretches(recognizer, nbest=3)
    assert stretch.nbest.texts == ("ba bi bo", "ba be", "bu")


def test_a_text_that_shrinks_too_much_is_decoded_again_with_repetition_forbidden(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, by_size(REPETITIVE, n3="ba be"), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.best == "ba be"
    assert stretch.notes[0].startswith("decoded again: compression ratio ")
    assert stretch.notes[1:] == ("phrases of 3 tokens only once",)
    assert sizes(model) == [None, 6, 3]


def test_the_first_text_without_repetition_is_taken(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, by_size("ba be " * 30, n6="ba bu", n3="go"), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.best == "ba bu"
    assert stretch.notes == ("decoded again: a phrase repeats", "phrases of 6 tokens only once")
    assert sizes(model) == [None, 6]


@pytest.mark.parametrize("phrase", ["ba be bi bo bu da", "ba", "go ba"])
def test_a_phrase_over_and_over_is_cut_to_one_and_noted(tiny_whisper: Path, phrase: str) -> None:
    times = 60 // len(phrase.split())
    text = f"fa fe {' '.join([phrase] * times)}"
    recognizer, _ = fake_recognizer(tiny_whisper, always(text), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.best == f"fa fe {phrase}"
    assert stretch.notes[-1] == f"a phrase repeated {times} times was cut to one"
    assert [word.text for word in stretch.nbest.words] == ["fa", "fe", *phrase.split()]


def test_a_loop_that_the_end_of_the_window_cuts_leaves_nothing_of_it(tiny_whisper: Path) -> None:
    text = f"fa {'ba be bi bo bu da ' * 9}ba be bi"
    recognizer, _ = fake_recognizer(tiny_whisper, always(text), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.best == "fa ba be bi bo bu da"


def test_text_after_a_loop_is_kept(tiny_whisper: Path) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always("ba be " * 20 + "fo fu"), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.best == "ba be fo fu"


@pytest.mark.parametrize("text", ["ba ba ba ba", "ba ba ba ba ba ba", "be ba ba ba ba bi", "ba be ba be ba be ba be"])
def test_a_speaker_who_repeats_a_word_keeps_it(tiny_whisper: Path, text: str) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always(text), vad=False)
    (stretch,) = stretches(recognizer)
    assert (stretch.nbest.best, stretch.notes) == (text, ())
    assert len(model.asked) == 1


@given(
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.integers(4, 9), min_size=1, max_size=7),
    st.integers(4, 30),
    st.lists(st.integers(0, 3), max_size=8),
)
def test_a_loop_is_found_between_other_words(
    before: list[int], phrase: list[int], times: int, after: list[int]
) -> None:
    found = _loop([*before, *phrase * times, *after])
    if len(phrase) * times < 24:
        return
    assert found is not None
    start, length, count = found
    assert (start, count * length <= times * len(phrase)) == (len(before), True)
    assert len(phrase) % length == 0


def test_a_window_that_holds_no_speech_is_rejected_with_the_reason(tiny_whisper: Path) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always("ba be", -3.0, 0.9), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.rejected == "no speech (probability 0.90) and an unlikely text"
    assert (stretch.nbest.best, stretch.nbest.words) == ("ba be", ())
    assert recognizer.recognize(WINDOW).hypotheses == ()


def test_a_likely_text_counts_whatever_the_mark_for_no_speech_says(tiny_whisper: Path) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always("ba be", -0.2, 0.95), vad=False)
    (stretch,) = stretches(recognizer)
    assert (stretch.nbest.best, stretch.rejected) == ("ba be", "")


@pytest.mark.parametrize(("text", "no_speech"), [("ba be bi bo bu", 0.4), ("ba be", 0.04)])
def test_an_unlikely_text_counts_where_speech_is_likely(tiny_whisper: Path, text: str, no_speech: float) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always(text, -3.0, no_speech), vad=False)
    (stretch,) = stretches(recognizer)
    assert (stretch.nbest.best, stretch.rejected, len(model.asked)) == (text, "", 1)


def test_few_unlikely_words_are_rejected_where_speech_is_in_doubt(tiny_whisper: Path) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always("ba be", -1.0, 0.3), vad=False)
    (stretch,) = stretches(recognizer)
    assert stretch.rejected == "no speech (probability 0.30) and an unlikely text"
    likely, _ = fake_recognizer(tiny_whisper, always("ba be", -0.2, 0.3), vad=False)
    assert [each.rejected for each in stretches(likely)] == [""]


@pytest.mark.parametrize(("speech", "rejected"), [(None, True), (0.5, True), (0.8, False)])
def test_few_unlikely_words_count_where_the_detector_of_speech_was_sure(
    tiny_whisper: Path, speech: float | None, rejected: bool
) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("ba be", -1.0, 0.3), vad=False)
    decoder = recognizer._windows._decoder
    (result,) = decoder.decode(
        np.zeros((1, 1500, 2), np.float32), [model.tokens.prompt("en", "transcribe")], 1, (), [speech]
    )
    assert bool(result.rejected) == rejected
    assert recognizer.recognize(WINDOW).best == "ba be"  # who asks for one utterance knows that it is one


def test_without_checks_every_text_is_taken_as_it_is(tiny_whisper: Path) -> None:
    options = DecodeOptions(beam_size=2, checks=False)
    recognizer, model = fake_recognizer(tiny_whisper, always("ba " * 60, -9.0, 1.0), vad=False, decode=options)
    (stretch,) = stretches(recognizer)
    assert len(stretch.nbest.best.split()) == 60
    assert (stretch.notes, stretch.rejected, len(model.asked)) == ((), "", 1)


def test_no_text_is_no_stretch(tiny_whisper: Path) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always(""), vad=False)
    assert stretches(recognizer) == []


def echoing(tokens: Any, prompt: list[int], text: str) -> Written:
    """Write the context of a prompt where there is one, else a text."""
    context = prompt[1 : prompt.index(tokens.start)] if prompt[0] != tokens.start else []
    return [(tokens.decode(context) or text, -0.05, 0.1)]


def test_a_text_that_repeats_the_prompt_is_decoded_again_without_it(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always(""), vad=False, prompt="ba be bi bo", hotwords=("gogo",))
    model.write = lambda prompt, options: echoing(model.tokens, prompt, "du da")
    (stretch,) = stretches(recognizer)
    assert stretch.nbest.best == "du da"
    assert stretch.notes == ("decoded again: the text repeated the prompt",)
    with_context, without = model.prompts
    assert without == with_context[with_context.index(model.tokens.start) :]


def test_nothing_is_left_of_a_prompt_on_a_window_without_speech(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always(""), vad=False, prompt="ba be bi bo")
    model.write = lambda prompt, options: echoing(model.tokens, prompt, "")
    assert stretches(recognizer) == []


def test_spoken_words_that_are_also_in_the_prompt_are_kept(tiny_whisper: Path) -> None:
    text = "du ba be fo bi bo fa"
    recognizer, model = fake_recognizer(tiny_whisper, always(text), vad=False, prompt="ba be bi bo")
    (stretch,) = stretches(recognizer)
    assert (stretch.nbest.best, stretch.notes) == (text, ())
    assert len(model.prompts) == 1


def test_language_and_task_are_forced_whenever_a_window_is_decoded_again(tiny_whisper: Path) -> None:
    recognizer, model = fake_recognizer(
        tiny_whisper, always("ba " * 40), vad=False, language="de", task="translate", prompt="go"
    )
    stretches(recognizer)
    assert len(model.prompts) == 3
    plain = model.tokens.prompt("de", "translate")
    assert all(prompt[-4:] == plain for prompt in model.prompts)
