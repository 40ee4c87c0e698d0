"""The shipped model: its speech is intelligible, streams unchanged, and follows the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import audio, hub
from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.metrics import character_error_rate
from audio_llm.touchtts.speech import CHUNK, TouchTTS
from audio_llm.tts import list_voices, synthesize

torch.set_num_threads(1)
SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
TEXTS = ("The captain opened the window and looked at the river.", "We had two cups of tea in the garden.")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def speech() -> TouchTTS:
    return TouchTTS.load("touchtts-small")


@pytest.fixture(scope="module")
def recognizer() -> CtcRecognizer:
    return CtcRecognizer.load("ctc-small")


def transcribed(recognizer: CtcRecognizer, waveform: np.ndarray) -> str:
    return recognizer.recognize(np.pad(waveform, 1600), 1).best


@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_its_speech_is_recognized(speech: TouchTTS, recognizer: CtcRecognizer, chunk: int | None) -> None:
    texts = [transcribed(recognizer, speech.synthesize(text, chunk=chunk).waveform) for text in TEXTS]
    assert character_error_rate(TEXTS, texts) < 0.35
    assert character_error_rate(TEXTS, texts[::-1]) > 0.6


def test_its_stream_is_its_speech(speech: TouchTTS) -> None:
    whole = speech.synthesize(TEXTS[1], chunk=CHUNK)
    pieces = list(speech.stream(TEXTS[1], chunk=CHUNK))
    assert len(pieces) > 3
    np.testing.assert_allclose(np.concatenate([piece.waveform for piece in pieces]), whole.waveform, atol=1e-4)
    assert not whole.truncated


def test_speed_is_heeded(speech: TouchTTS) -> None:
    slow, fast = (speech.synthesize(TEXTS[0], speed=speed).waveform.size for speed in (0.7, 1.4))
    assert 1.95 * fast < slow < 2.05 * fast


def test_a_reference_changes_the_voice(speech: TouchTTS, recognizer: CtcRecognizer) -> None:
    man = SAMPLES / "librispeech-61-70968-0000.flac"
    waveform = speech.synthesize(TEXTS[0], man).waveform
    vectors = [
        speech.reference(sound).embedding[0]
        for sound in (waveform, audio.read(man), speech.synthesize(TEXTS[0]).waveform)
    ]
    near, far = ((vectors[0] - other).norm() for other in vectors[1:])
    assert near < far


def test_it_is_a_voice_of_the_programs() -> None:
    (voice,) = list_voices(["touchtts:kathleen"])
    assert (voice.engine, voice.speaker) == ("touchtts", "kathleen")
    assert 1.0 < synthesize(TEXTS[1], "touchtts:kathleen").size / 16_000 < 6.0


def test_its_files_are_as_recorded_and_a_sample_lies_next_to_them() -> None:
    folder = hub.verify_model("touchtts-small").path
    assert 2.0 < audio.probe(folder / "sample.ogg").duration_s < 15.0
