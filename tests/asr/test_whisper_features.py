"""Whisper's log-mel features, against those of the transformers package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from audio_llm.asr.whisper_features import WINDOW_SAMPLES, log_mel, mel_filters
from audio_llm.audio import SAMPLE_RATE, read
from audio_llm.errors import UsageError

SAMPLES = Path(__file__).parents[2] / "samples/speech"


def noise(samples: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


def reference(waveform: np.ndarray, bands: int) -> np.ndarray:
    extractor = WhisperFeatureExtractor(feature_size=bands)
    return extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]


@pytest.mark.parametrize("bands", [80, 128])
def test_filters_are_those_of_transformers(bands):
    expected = WhisperFeatureExtractor(feature_size=bands).mel_filters.T
    assert mel_filters(bands) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("samples", [1, 199, 400, 16_000, 100_003, 479_700, 479_999, 480_000])
def test_features_are_those_of_transformers(samples, bands):
    features = log_mel(noise(samples), bands)
    assert features.shape == (bands, 3000)
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    assert np.abs(features - reference(noise(samples), bands)).max() < 1e-4


def test_features_of_speech_are_those_of_transformers():
    paths = sorted(SAMPLES.glob("*.flac")) + sorted(SAMPLES.glob("*.ogg"))
    assert len(paths) > 5
    for path in paths:
        waveform = read(path)[:WINDOW_SAMPLES]
        assert np.abs(log_mel(waveform) - reference(waveform, 80)).max() < 1e-4


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.zeros(9000, np.float32), np.zeros(480_000)])
def test_silence_has_the_lowest_value_everywhere(waveform):
    assert np.abs(log_mel(waveform) + 1.5).max() < 1e-6


def test_sound_at_the_end_of_the_window_is_in_the_last_frames():
    waveform = np.zeros(WINDOW_SAMPLES, np.float32)
    waveform[-400:] = noise(400)
    quiet, loud = log_mel(waveform)[:, :2996], log_mel(waveform)[:, 2997:]
    assert quiet.max() < loud.min()


def test_double_precision_gives_the_same_features():
    waveform = noise(16_000)
    assert np.array_equal(log_mel(waveform.astype(np.float64)), log_mel(waveform))


def test_the_waveform_is_left_unchanged():
    waveform = noise(16_000)
    log_mel(waveform)
    assert np.array_equal(waveform, noise(16_000))


def test_more_than_a_window_is_refused():
    with pytest.raises(UsageError, match=r"30\.00 s .* window of 30 s"):
        log_mel(np.zeros(WINDOW_SAMPLES + 1, np.float32))


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros((2, 100), np.float32), "2x100 of float32"),
        (np.zeros(100, np.int16), "100 of int16"),
        (np.array([0.0, np.nan], np.float32), "not finite"),
        (np.array([0.0, np.inf], np.float32), "not finite"),
    ],
)
def test_waveforms_of_another_kind_are_refused(waveform, message):
    with pytest.raises(UsageError, match=message):
        log_mel(waveform)


def test_another_number_of_bands_is_refused():
    with pytest.raises(UsageError, match="64 mel bands"):
        log_mel(np.zeros(100, np.float32), bands=64)


def test_features_need_neither_torch_nor_transformers():
    program = (
        "import sys, numpy; from audio_llm.asr.whisper_features import log_mel; log_mel(numpy.zeros(160, 'f'));"
        "print(sorted({'torch', 'transformers', 'scipy', 'librosa'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
