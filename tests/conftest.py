"""Every run of the tests draws the same examples; and a pack of made-up speech for whatever learns from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

FORMANTS_HZ = {"a": (750, 1250), "e": (450, 1900), "i": (300, 2300), "o": (480, 850), "u": (320, 700)}


def say(words: str, pitch_hz: float) -> np.ndarray:
    """Return vowels of 0.2 s with pauses between them, as a voice of that pitch would say them: (T,) float32."""
    time_s = np.arange(3200) / 16_000
    ramp = np.minimum(1.0, np.minimum(time_s, time_s[::-1]) / 0.02)
    pieces = [np.zeros(1600)]
    for letter in words:
        if letter == " ":
            pieces.append(np.zeros(1600))
            continue
        hertz = pitch_hz * np.arange(1, int(7000 / pitch_hz))[:, None]
        peaks = sum(1.0 / (1.0 + ((hertz - formant) / 120.0) ** 2) for formant in FORMANTS_HZ[letter])
        buzz = ((peaks + 1e-3) * np.sin(2 * np.pi * hertz * time_s + hertz)).sum(0)
        pieces += [0.3 * ramp * buzz / np.abs(buzz).max(), np.zeros(640)]
    return np.concatenate([*pieces, np.zeros(1600)]).astype(np.float32)


@pytest.fixture(scope="session")
def speech_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pack of ten utterances with words, of two people, and one noise."""
    from audio_llm.simulation.speech_pack import Utterance, write_speech_pack

    folder = tmp_path_factory.mktemp("speech-pack")
    texts = ("a e i", "o u", "i a", "ae o", "u i e")
    utterances = [
        Utterance(f"{speaker}-{number}", speaker, "made", words, 8000, 40.0, say(words, pitch_hz))
        for speaker, pitch_hz in (("low", 110.0), ("high", 210.0))
        for number, words in enumerate(texts)
    ]
    hiss = 0.1 * np.random.default_rng(0).standard_normal(40_000)
    write_speech_pack(folder, utterances, [np.cumsum(hiss - hiss.mean()).astype(np.float32) * 0.05])
    return folder
