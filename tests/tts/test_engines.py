"""Voices of the operating system: plausible, repeatable sound, and errors that name the reason."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from audio_llm.errors import MissingDependencyError, UsageError
from audio_llm.tts import engines, list_voices, speak, synthesize
from audio_llm.tts.engines import PHONES, VOICES, SynthesisError

RATE = 16_000
TEXT = "the door was left slightly open that evening"


def needs(engine: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(engine) is None, reason=f"{engine} is not installed")


each_voice = pytest.mark.parametrize("voice", [pytest.param(v.name, marks=needs(v.engine)) for v in VOICES.values()])
each_engine = pytest.mark.parametrize(
    "voice",
    [pytest.param("flite:rms", marks=needs("flite")), pytest.param("festival:ked", marks=needs("festival"))],
)


@pytest.fixture
def fresh_search() -> Iterator[None]:
    """Forget where the programs are, before and after a test that moves them."""
    engines._program.cache_clear()
    yield
    engines._program.cache_clear()


@each_voice
def test_each_voice_says_the_text(voice: str) -> None:
    waveform = synthesize(TEXT, voice)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert 1.5 < waveform.size / RATE < 6.0
    assert np.abs(waveform).max() <= 1.0
    assert np.sqrt(np.mean(waveform**2)) > 0.01
    assert synthesize(TEXT + " and " + TEXT, voice).size > 1.5 * waveform.size


@each_engine
def test_the_same_call_gives_the_same_samples(voice: str) -> None:
    assert np.array_equal(synthesize(TEXT, voice, 1.1), synthesize(TEXT, voice, 1.1))


@needs("flite")
def test_flite_tells_when_each_phone_was_said() -> None:
    speech = speak("she sees", "flite:slt", 0.8)
    symbols = [phone.symbol for phone in speech.phones]
    assert symbols == ["pau", "sh", "iy", "s", "iy", "z", "pau"]
    assert set(symbols) < set(PHONES)
    ends = [phone.end_s for phone in speech.phones]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(speech.waveform.size / RATE, abs=0.05)
    hiss = speech.waveform[round(ends[0] * RATE) : round(ends[1] * RATE)]
    vowel = speech.waveform[round(ends[1] * RATE) : round(ends[2] * RATE)]
    crossings = [np.mean(np.diff(np.sign(sound)) != 0) for sound in (hiss, vowel)]
    assert crossings[0] > 3 * crossings[1]  # the times are of the sounds: sh hisses, ee does not
    assert speak("", "flite:slt").phones == ()


@needs("festival")
def test_festival_tells_no_phones() -> None:
    assert speak("she sees", "festival:ked").phones == ()


@each_voice
def test_twice_the_speed_halves_the_duration(voice: str) -> None:
    normal, fast, slow = (synthesize(TEXT, voice, speed).size for speed in (1.0, 2.0, 0.5))
    assert fast / normal == pytest.approx(0.5, abs=0.1)
    assert slow / normal == pytest.approx(2.0, abs=0.3)


@each_engine
@pytest.mark.parametrize(
    "text",
    [
        'say "hello" (now)',
        'back\\slash \\" here',
        "))) (exit) (quit",
        "it's 5 o'clock; <b>yes</b> & no",
        "caf\u00e9 na\u00efve",
    ],
)
def test_signs_do_not_break_the_engine(voice: str, text: str) -> None:
    assert synthesize(text, voice).size > 0.3 * RATE


@each_engine
def test_nothing_to_say_gives_no_samples(voice: str) -> None:
    for text in ("", "  \n", "...", "-- ?!"):
        assert synthesize(text, voice).shape == (0,)


@pytest.mark.parametrize("voice", [pytest.param("festival:kal", marks=needs("festival"))])
def test_text_is_never_run_as_festivals_script(voice: str, tmp_path: Path) -> None:
    mark = tmp_path / "written"
    synthesize(f'hello") (system "touch {mark}") (print "', voice)
    synthesize(f'hello\\") (system "touch {mark}") (print "', voice)
    assert not mark.exists()


def test_unknown_voices_are_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown voice 'flite:nobody'.*flite:rms"):
        list_voices(["flite:nobody"])
    with pytest.raises(UsageError, match="unknown voice ''"):
        synthesize(TEXT, "")


@pytest.mark.parametrize("name", ["espeak", "espeak-ng:en-us"])
def test_espeak_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UsageError, match="word error rate is above 75 %"):
        synthesize(TEXT, name)


@pytest.mark.parametrize("speed", [0.0, -1.0, 0.2, 4.0, float("nan")])
def test_odd_speeds_are_refused(speed: float) -> None:
    with pytest.raises(UsageError, match=r"outside 0\.3 to 3"):
        synthesize(TEXT, "flite:rms", speed)


@pytest.mark.parametrize("voice", ["flite:rms", "festival:ked"])
@pytest.mark.usefixtures("fresh_search")
def test_a_missing_program_is_named_with_the_apt_line(voice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="apt-get install flite festival festvox-kallpc16k"):
        synthesize(TEXT, voice)


@pytest.mark.parametrize("voice", ["flite:rms", "festival:ked"])
@pytest.mark.usefixtures("fresh_search")
def test_a_program_that_hangs_is_stopped(voice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(tmp_path, voice.split(":")[0], "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    start = time.monotonic()
    with pytest.raises(SynthesisError, match=f"{voice} did not finish in 0.3 s"):
        synthesize(TEXT, voice, timeout_s=0.3)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("script", "message"), [("echo it broke >&2; exit 3", "failed on .*it broke"), ("exit 0", "produced no sound")]
)
@pytest.mark.usefixtures("fresh_search")
def test_a_program_that_fails_is_reported(
    script: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _program(tmp_path, "flite", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SynthesisError, match=message):
        synthesize(TEXT, "flite:rms")


@pytest.mark.skipif(any(shutil.which(name) is None for name in ("flite", "festival")), reason="not both installed")
def test_all_voices_are_listed_and_one_is_held_by_two_engines() -> None:
    voices = list_voices()
    assert [voice.name for voice in voices] == list(VOICES)
    assert {voice.speaker for voice in voices} == {"rms", "slt", "awb", "kal", "ked"}


def _program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
