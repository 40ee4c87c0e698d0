"""Speaker similarity as the recipe measures it, of a synthesizer that clones perfectly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from audio_llm.errors import DataError
from audio_llm.tse.speaker import SpeakerEncoder

PITCHES = (90.0, 140.0, 210.0, 330.0)


def buzz(pitch_hz: float, seed: int, seconds: float = 2.0) -> np.ndarray:
    """Return a buzz of a pitch with a little noise, (T,) float32."""
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    tones = sum(np.sin(2 * np.pi * n * pitch_hz * time_s) / n for n in range(1, 12))
    return (0.1 * tones + 0.003 * np.random.default_rng(seed).standard_normal(len(time_s))).astype(np.float32)


class Cloner:
    """Speaks in exactly the voice of a reference, or in one voice only."""

    sample_rate = 16_000

    def __init__(self, clones: bool) -> None:
        self.clones = clones

    def synthesize(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(waveform=buzz(180.0, len(text)), tokens=((1, 2),))

    def reference(self, waveform: np.ndarray) -> np.ndarray:
        return waveform if self.clones else buzz(180.0, 9)

    def sound(self, tokens: tuple[int, ...], voice: np.ndarray) -> np.ndarray:
        assert tokens == (1, 2)
        return voice


def pack(utterances: int = 4) -> SimpleNamespace:
    sounds = [buzz(pitch, 10 * n + take) for n, pitch in enumerate(PITCHES) for take in range(utterances)]
    sounds += [buzz(90.0, 99, 1.0), buzz(600.0, 98, 5.0)]  # too short to count, and the model's own voice
    pcm = [(32767 * np.clip(sound, -1, 1)).astype(np.int16) for sound in sounds]
    return SimpleNamespace(
        samples=np.array([len(sound) for sound in pcm]),
        voices=["reader"] * (len(sounds) - 1) + ["main"],
        speakers=[f"p{n}" for n in range(len(PITCHES)) for _ in range(utterances)] + ["p0", "main"],
        pcm=lambda row: pcm[row],
    )


@pytest.fixture
def similarity(recipe_module: Callable[[str, str], ModuleType]) -> Callable[..., list[list[str]]]:
    module = recipe_module("touchtts", "similarity")
    torch.manual_seed(0)
    encoder = SpeakerEncoder().eval()

    def rows(speech: Cloner, pack: SimpleNamespace) -> list[list[str]]:
        lines = list(module.similarity(speech, pack, encoder, "main"))[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    return rows


def test_a_perfect_clone_is_identified_as_the_speaker(similarity: Callable[..., list[list[str]]]) -> None:
    itself, again, cloned, mixed, usual = similarity(Cloner(True), pack())
    assert itself[3] == again[3] == cloned[3] == "4 of 4"
    assert cloned[1:] == itself[1:]
    assert mixed[3] == "0 of 4"
    assert usual[0] == "speech of main"
    assert usual[3] == "1 of 4"  # one voice is nearest to one speaker


def test_a_model_with_one_voice_is_identified_as_one_speaker(similarity: Callable[..., list[list[str]]]) -> None:
    itself, _, same, mixed, _ = similarity(Cloner(False), pack())
    assert itself[3] == "4 of 4"
    assert same[3] == mixed[3] == "1 of 4"
    assert float(same[1]) == pytest.approx(float(same[2]), abs=0.011)  # as near to any other speaker, on average


def test_too_few_speakers_are_an_error(similarity: Callable[..., list[list[str]]]) -> None:
    with pytest.raises(DataError, match="speakers with three utterances"):
        similarity(Cloner(True), pack(utterances=2))
