"""Whisper's real weights on what users of other front ends report: invented text, lost sentences, loops, languages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asr.stretches import assert_times

from audio_llm import audio
from audio_llm.asr.base import Stretch
from audio_llm.asr.whisper import WhisperOptions, WhisperRecognizer

pytestmark = pytest.mark.slow
RATE = 16_000
PROJECT = Path(__file__).parents[2]
SAMPLES = PROJECT / "samples" / "speech"

Talk = Callable[..., np.ndarray]
Hiss = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def real(whisper_tiny_en: Path) -> WhisperRecognizer:
    return WhisperRecognizer.load(whisper_tiny_en)


def words_of(stretches: list[Stretch]) -> list[str]:
    text = " ".join(part.nbest.best for part in stretches if not part.rejected)
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()


def recognized(recognizer: WhisperRecognizer, waveform: np.ndarray, **options: Any) -> list[Stretch]:
    recognizer.configure(WhisperOptions(**options))
    return list(recognizer.recognize_stream([waveform], id="x"))


def hum(seconds: float) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * 50 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("vad", [True, False])
def test_silence_and_noise_give_no_text(real: WhisperRecognizer, hiss: Hiss, vad: bool) -> None:
    rng = np.random.default_rng(1)
    brown = np.cumsum(rng.standard_normal(30 * RATE))
    brown = (0.2 * (brown - brown.mean()) / np.abs(brown).max()).astype(np.float32)
    for sound in (np.zeros(30 * RATE, np.float32), hiss(30, level=0.003), hiss(30, level=0.1), brown, hum(30)):
        stretches = recognized(real, sound, vad=vad)
        assert [part.nbest.best for part in stretches if not part.rejected] == []


def test_nothing_is_recognized_between_two_utterances(real: WhisperRecognizer, talk: Talk, hiss: Hiss) -> None:
    gap = np.concatenate([talk((0,)), hiss(25, level=0.003), np.zeros(10 * RATE, np.float32), talk((1,))])
    stretches = recognized(real, gap)
    assert len(stretches) == 2
    assert words_of(stretches) == words_of(recognized(real, talk((0,)))) + words_of(recognized(real, talk((1,))))


def test_short_utterances_with_pauses_between_all_come_once(real: WhisperRecognizer, talk: Talk) -> None:
    numbers = list(range(6)) * 2
    alone = {number: words_of(recognized(real, talk((number,)))) for number in range(6)}
    for pauses_s in ((2.0, 3.1, 4.0), (2.7,)):
        together = words_of(recognized(real, talk(numbers, pauses_s)))
        for number in range(6):
            probe = alone[number][-3:]
            times = sum(together[at : at + 3] == probe for at in range(len(together)))
            assert times == 2, (number, probe, together)


def test_a_word_list_inserts_no_name(real: WhisperRecognizer, talk: Talk, hiss: Hiss) -> None:
    names = ["Szymborska", "Quetzalcoatl", "Thunberg", "Ngugi", "Kierkegaard", "Popocatepetl", "Wojciech", "Reykjavik"]
    real.configure(WhisperOptions())
    assert real.prefer(names) == []
    sounds = [talk((0, 1, 2)), hiss(20, level=0.05), np.concatenate([talk((3,)), hiss(8, level=0.01)])]
    for vad in (True, False):
        for sound in sounds:
            real.configure(WhisperOptions(hotwords=tuple(names), prompt="A talk on history.", vad=vad))
            found = words_of(list(real.recognize_stream([sound])))
            assert not {name.lower() for name in names} & set(found)
            assert "glossary" not in found


def test_leading_silence_does_not_change_the_text(real: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0, 1, 2))
    late = np.concatenate([np.zeros(40 * RATE, np.float32), waveform])
    assert words_of(recognized(real, late)) == words_of(recognized(real, waveform))


def test_a_file_cut_at_many_places_keeps_its_times_in_order(real: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0,), (0.3,))[: 6 * RATE]
    ends = [*np.random.default_rng(3).integers(1, len(waveform), 50), 160, 320, 640, 960]
    for end in ends:
        assert_times(recognized(real, waveform[:end], vad=bool(end % 3)), end / RATE)


def test_a_last_stretch_of_some_milliseconds_does_not_end_the_process(real: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0,), (0.3,))
    for last_ms in (10, 20, 30, 60):
        long = np.concatenate([waveform, hum(30.0 - len(waveform) / RATE), waveform[: 16 * last_ms]])
        assert_times(recognized(real, long, vad=False), len(long) / RATE)


def test_batched_and_sequential_give_the_same_segments(real: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk(list(range(6)) * 3, (0.8, 1.6))
    one, four = (recognized(real, waveform, batch_size=size) for size in (1, 4))
    assert [part.nbest.best for part in one] == [part.nbest.best for part in four]
    for first, second in zip(one, four, strict=True):
        for word, other in zip(first.nbest.words, second.nbest.words, strict=True):
            assert (other.start_s, other.end_s) == pytest.approx((word.start_s, word.end_s), abs=0.1)


def test_a_denoised_floor_gives_no_text(real: WhisperRecognizer, hiss: Hiss) -> None:
    from audio_llm.gense.enhance import Enhancer

    enhancer = Enhancer.load("mask-small")
    for level_db in (-70, -55, -40):
        floor = hiss(20, seed=level_db + 100, level=10 ** (level_db / 20))
        cleaned = np.concatenate(list(enhancer.stream([floor[:, None]], RATE)))[:, 0]
        loud = cleaned / max(1e-9, float(np.abs(cleaned).max())) * 0.3  # as a recording that is normalized afterwards
        for sound in (floor, cleaned, loud):
            assert words_of(recognized(real, np.asarray(sound, dtype=np.float32))) == []


def test_a_speaker_who_repeats_a_word_is_written_so(real: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0,), (0.3,))
    (stretch,) = recognized(real, waveform)
    word = max(stretch.nbest.words[1:-1], key=lambda word: (word.end_s - word.start_s) * (word.confidence or 0))
    said = waveform[round((word.start_s - 0.05) * RATE) : round((word.end_s + 0.05) * RATE)]
    pause = np.zeros(round(0.25 * RATE), np.float32)
    again = np.concatenate([pause, *[part for _ in range(5) for part in (said, pause)]])
    found = words_of(recognized(real, again))
    assert max(Counter(found).values()) >= 4, found


def test_leading_music_and_silence_do_not_change_the_language(whisper_base: Path) -> None:
    recognizer = WhisperRecognizer.load(whisper_base)
    german = audio.read(SAMPLES / "synthetic-german-espeak-ng.opus")
    time_s = np.arange(40 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * time_s) for hertz in (220.0, 277.2, 329.6)) * np.exp(-(time_s % 1.0))
    for front in (np.zeros(40 * RATE), 0.05 * chord):
        stretches = recognized(recognizer, np.concatenate([front, german]).astype(np.float32))
        assert stretches
        assert {stretch.language for stretch in stretches} == {"de"}
        assert all(0.5 < (stretch.language_probability or 0.0) <= 1.0 for stretch in stretches)


def test_two_languages_are_distinguished_where_several_are_expected(whisper_base: Path, talk: Talk) -> None:
    recognizer = WhisperRecognizer.load(whisper_base)
    german = audio.read(SAMPLES / "synthetic-german-espeak-ng.opus")
    both = np.concatenate([talk(range(6)), np.zeros(5 * RATE, np.float32), german])
    found = recognized(recognizer, both, multilingual=True)
    assert found[0].language == "en"
    assert found[-1].language == "de"


def test_a_killed_process_costs_the_windows_it_was_at(whisper_tiny_en: Path, talk: Talk, tmp_path: Path) -> None:
    audio.write(tmp_path / "long.flac", talk(list(range(6)) * 4, (0.8, 1.6)), RATE)
    command = [sys.executable, "-m", "audio_llm", "transcribe", str(tmp_path / "long.flac")]
    command += ["--recognizer", str(whisper_tiny_en), "--threads", "1", "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, cwd=PROJECT)
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=PROJECT)
    for _ in range(1200):
        kept = list((tmp_path / "killed").glob(".audio-llm-unfinished-*"))
        if (kept and kept[0].read_text().count("\n") > 6) or killed.poll() is not None:
            break
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    again = subprocess.run(
        [*command, str(tmp_path / "killed")], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "resumed at" in again.stderr
    whole, both = ((tmp_path / name / "long.txt").read_text().split() for name in ("whole", "killed"))
    assert len(both) == pytest.approx(len(whole), rel=0.02)
    assert both[:10] == whole[:10]
    assert both[-10:] == whole[-10:]
