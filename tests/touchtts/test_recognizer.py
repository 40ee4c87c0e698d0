"""TouchTTS's language model as a recognizer, tiny, on synthetic speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audio_llm.asr.base import Recognizer
from audio_llm.touchtts.models import TouchModel
from audio_llm.touchtts.recognizer import TouchRecognizer


@pytest.mark.parametrize("lm_input", ["tokens", "continuous"])
def test_texts_come_with_their_scores(model: TouchModel, sounds: list[np.ndarray], lm_input: str) -> None:
    recognizer: Recognizer = TouchRecognizer(model, "tiny", lm_input)
    result = recognizer.recognize(sounds[0], 3, "one")
    assert result.id == "one"
    texts = [hypothesis.text for hypothesis in result.hypotheses]
    assert 1 <= len(texts) <= 3
    assert len(set(texts)) == len(texts)
    again = recognizer.score(sounds[0], [*texts, "!"])
    assert again[-1] is None
    assert all(score is not None and score < 0.0 for score in again[:-1])
    scores = [hypothesis.score for hypothesis in result.hypotheses]
    assert all(score is not None and score < 0.0 for score in scores)


def test_tokens_and_features_are_two_kinds_of_input(model: TouchModel, sounds: list[np.ndarray]) -> None:
    ways = [
        TouchRecognizer(model, "tiny", lm_input).score(sounds[1], ["a cat"])[0] for lm_input in ("tokens", "continuous")
    ]
    assert ways[0] != pytest.approx(ways[1], abs=1e-3)


@pytest.mark.parametrize("samples", [0, 100, 1_000, 2_000, 5_000, 16_000])
def test_nothing_is_recognized_in_silence(model: TouchModel, samples: int) -> None:
    recognizer = TouchRecognizer(model, "tiny")
    assert recognizer.recognize(np.zeros(samples, np.float32)).hypotheses == ()
    assert recognizer.score(np.zeros(samples, np.float32), ["word"]) == [None]


@pytest.mark.parametrize("samples", [1_700, 3_000, 5_500])
def test_a_very_short_sound_is_no_error(model: TouchModel, samples: int) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    assert len(TouchRecognizer(model, "tiny").recognize(noise, 2).hypotheses) <= 2


def test_long_speech_is_cut_and_joined(model: TouchModel, sounds: list[np.ndarray]) -> None:
    long = np.tile(np.concatenate(sounds[:5]), 3)
    assert len(long) > 12 * 16_000
    result = TouchRecognizer(model, "tiny").recognize(long, 5)
    assert len(result.hypotheses) == 1


def test_a_model_directory_is_a_recognizer(model_folder: Path, sounds: list[np.ndarray]) -> None:
    from audio_llm.asr.engines import load_recognizer

    recognizer = load_recognizer("touchtts", str(model_folder))
    assert recognizer.version.startswith(str(model_folder))
    assert recognizer.prefer(["name"]) == ["name"]
    assert recognizer.recognize(sounds[2], 1).hypotheses
