"""The shipped language models with their quality checks, on real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import audio
from audio_llm.codec.codec import to_level
from audio_llm.gense.chunks import ChunkReport, Policy
from audio_llm.gense.enhance import Enhancer
from audio_llm.gense.generate import Generated, Resynthesizer
from audio_llm.gense.models import GenseModel, load_gense, load_mask

torch.set_num_threads(1)
SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
RATE = 16_000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> GenseModel:
    return load_gense("gense-small")


def speech(name: str) -> np.ndarray:
    return audio.read(SAMPLES / name)[: 5 * RATE]


def noisy(clean: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    return clean + noise * np.float32(np.sqrt(np.mean(clean**2)) * 10.0 ** (-snr_db / 20.0))


def enhanced(generator: Resynthesizer, noisy_speech: np.ndarray) -> tuple[np.ndarray, list[ChunkReport]]:
    model, chunks = generator.model, list[ChunkReport]()
    enhancer = Enhancer(load_mask(model.mask), generator, Policy("generative", limits=model.limits))
    blocks = list(enhancer.stream([noisy_speech[:, None]], RATE, report=chunks.append))
    return np.concatenate(blocks)[:, 0], chunks


class ForcedWords(Resynthesizer):
    """Generates the words of another recording."""

    words = np.zeros(0, np.int64)

    def generate(self, noisy_speech: np.ndarray, *args: object, **more: object) -> Generated:
        more["force"] = np.resize(self.words, -(-len(noisy_speech) // 640))
        return super().generate(noisy_speech, *args, **more)  # type: ignore[arg-type]


def test_the_words_of_another_recording_are_rejected(model: GenseModel) -> None:
    generator = ForcedWords(model)
    other = speech("librispeech-61-70968-0000.flac")
    waveform = torch.from_numpy(other * np.float32(to_level(other)))[None]
    generator.words = model.parts.tokenizer.encode(waveform, torch.tensor([len(other)])).tokens[0].numpy()
    for name in ("librispeech-1580-141084-0001.flac", "kathleen-arctic-a0014-1592748281.ogg"):
        _, chunks = enhanced(generator, noisy(speech(name), 5.0))
        assert {chunk.action for chunk in chunks} == {"mask"}
        assert all(chunk.reasons for chunk in chunks)


def test_silence_stays_silent_and_noise_is_not_resynthesized(model: GenseModel) -> None:
    generator = Resynthesizer(model)
    sound, chunks = enhanced(generator, np.zeros(3 * RATE, np.float32))
    assert not sound.any()
    assert [chunk.action for chunk in chunks] == ["silent"]
    _, chunks = enhanced(generator, 0.05 * np.random.default_rng(1).standard_normal(3 * RATE).astype(np.float32))
    assert "generated" not in {chunk.action for chunk in chunks}


def test_good_speech_is_left_as_it_is(model: GenseModel) -> None:
    clean = speech("librispeech-1580-141084-0001.flac")
    sound, chunks = enhanced(Resynthesizer(model), clean)
    assert {chunk.action for chunk in chunks} == {"bypass"}
    np.testing.assert_allclose(sound, clean, atol=1e-6)
