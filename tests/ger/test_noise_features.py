"""Tests of the noise features of distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from audio_llm.errors import DataError, ModelFormatError, ModelNotFoundError
from audio_llm.features import LOG_FLOOR, N_MELS, SAMPLE_RATE
from audio_llm.ger.noise_features import NoiseStatistics, WhisperEncoderFeatures


def speech(duration_s: float = 2.0) -> np.ndarray:
    """Return bursts of a buzz with pauses between them, (T,) float32 at 16 kHz."""
    time = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 12))
    return (0.1 * tones * (np.sin(2 * np.pi * 2 * time) > 0)).astype(np.float32)


def hiss(size: int, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def floor(vector: np.ndarray) -> float:
    return float(vector[-1])


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 401, 16_000, 100_001])
def test_statistics_have_one_size_and_are_finite(samples):
    vector = NoiseStatistics().encode(hiss(samples, 0.1))
    assert vector.shape == (NoiseStatistics.width,) == (401,)
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()


def test_statistics_of_silence_are_the_lowest_energies_without_spread():
    vector = NoiseStatistics().encode(np.zeros(SAMPLE_RATE, np.float32))
    deviation = vector[N_MELS : 2 * N_MELS]
    assert np.allclose(deviation, 0.0, atol=1e-6)
    assert np.allclose(np.delete(vector, np.s_[N_MELS : 2 * N_MELS]), LOG_FLOOR, atol=1e-4)


def test_more_noise_raises_the_floor_and_hardly_the_peaks():
    clean = speech()
    vectors = [NoiseStatistics().encode(clean + hiss(len(clean), level)) for level in (0.001, 0.01, 0.1)]
    floors = [floor(vector) for vector in vectors]
    assert np.allclose(np.diff(floors), np.log(100), atol=0.5)  # ten times the noise, a hundred times its power
    loudest = [vector[4 * N_MELS : 5 * N_MELS].max() for vector in vectors]
    assert loudest[1] - loudest[0] < 0.5


def test_gain_moves_every_level_and_no_deviation():
    noise = hiss(2 * SAMPLE_RATE, 0.05)
    quiet, loud = NoiseStatistics().encode(noise), NoiseStatistics().encode(2 * noise)
    change = loud - quiet
    assert np.allclose(change[N_MELS : 2 * N_MELS], 0.0, atol=1e-3)
    assert np.allclose(np.delete(change, np.s_[N_MELS : 2 * N_MELS]), np.log(4), atol=1e-3)


def test_statistics_of_steady_noise_do_not_depend_on_length():
    short, long = (NoiseStatistics().encode(hiss(seconds * SAMPLE_RATE, 0.05)) for seconds in (3, 12))
    assert np.abs(short - long).mean() < 0.1


def test_the_layout_is_mean_deviation_quantiles():
    mean, deviation, low, middle, high = NoiseStatistics().encode(hiss(SAMPLE_RATE, 0.05))[:-1].reshape(5, N_MELS)
    assert (deviation > 0).all()
    assert (low < middle).all()
    assert (middle < high).all()
    assert ((low < mean) & (mean < high)).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=200,
        max_target_positions=8,
        init_std=0.4,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
        decoder_start_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whisper") / "tiny"
    WhisperForConditionalGeneration(config).save_pretrained(path)
    WhisperFeatureExtractor(feature_size=8, chunk_length=4).save_pretrained(path)  # a window of 4 s: 200 frames
    return path


@torch.inference_mode()
def by_hand(folder, waveform: np.ndarray) -> torch.Tensor:
    """Return the encoder's output for one padded window, (200, 16)."""
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    return model.model.encoder(features).last_hidden_state[0]


def test_whisper_features_are_the_mean_over_the_sound_without_the_padding(folder):
    waveform = speech(1.0)
    encoder = WhisperEncoderFeatures(folder)
    vector = encoder.encode(waveform)
    output = by_hand(folder, waveform)
    assert vector.shape == (encoder.width,) == (16,)
    assert vector.dtype == np.float32
    assert output.shape == (200, 16)
    assert np.allclose(vector, output[:50].mean(dim=0).numpy(), atol=1e-5)
    assert np.abs(vector - output.mean(dim=0).numpy()).max() > 0.01


def test_whisper_features_of_a_long_recording_weigh_its_windows_by_their_sound(folder):
    waveform = speech(5.0)
    first, second = (by_hand(folder, part) for part in (waveform[: 4 * SAMPLE_RATE], waveform[4 * SAMPLE_RATE :]))
    wanted = (first.sum(dim=0) + second[:50].sum(dim=0)) / 250
    assert np.allclose(WhisperEncoderFeatures(folder).encode(waveform), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 320])
def test_whisper_features_of_next_to_nothing_are_those_of_one_frame(folder, samples):
    waveform = hiss(samples, 0.1)
    wanted = by_hand(folder, waveform if samples else np.zeros(1, np.float32))[0]
    assert np.allclose(WhisperEncoderFeatures(folder).encode(waveform), wanted.numpy(), atol=1e-5)


def test_whisper_folders_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        WhisperEncoderFeatures(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ModelFormatError, match="not whisper"):
        WhisperEncoderFeatures(tmp_path)


@pytest.mark.parametrize("waveform", [np.zeros((2, 100), np.float32), np.array([0.0, np.nan], np.float32)])
def test_what_is_no_waveform_is_refused(waveform):
    with pytest.raises(DataError):
        NoiseStatistics().encode(waveform)
