"""Changing rates: the delay is exact, tones stay what they are, nothing folds back."""

from __future__ import annotations

import numpy as np
import pytest
from audio_llm_realtime.resample import HALF_SAMPLES, Decimator, Interpolator, delay_frames, resample


def tone(rate: int, seconds: float, frequency: float = 1000.0) -> np.ndarray:
    time_s = np.arange(round(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * frequency * time_s), np.cos(2 * np.pi * frequency * time_s)]).astype(np.float32)


def down(ratio: int, wave: np.ndarray, block: int = 128) -> np.ndarray:
    filter_ = Decimator(ratio, 2, block)
    outs = []
    for start in range(0, wave.shape[1] - block * ratio + 1, block * ratio):
        outs.append(np.zeros((2, block), np.float32))
        filter_.process(wave[:, start : start + block * ratio], outs[-1])
    return np.concatenate(outs, axis=1)


def up(ratio: int, wave: np.ndarray, block: int = 128) -> np.ndarray:
    filter_ = Interpolator(ratio, 2, block)
    outs = []
    for start in range(0, wave.shape[1] - block + 1, block):
        outs.append(np.zeros((2, block * ratio), np.float32))
        filter_.process(wave[:, start : start + block], outs[-1])
    return np.concatenate(outs, axis=1)


@pytest.mark.parametrize("ratio", [2, 3, 6])
def test_impulse_comes_out_exactly_as_late_as_stated(ratio: int) -> None:
    wave = np.zeros((2, 512 * ratio), np.float32)
    wave[0, 100 * ratio] = wave[1, 101 * ratio] = 1.0
    both = up(ratio, down(ratio, wave))
    delay = delay_frames(ratio)
    assert delay == 2 * HALF_SAMPLES * ratio
    for ear, at in ((0, 100 * ratio), (1, 101 * ratio)):
        middle = at + delay
        assert np.argmax(np.abs(both[ear])) == middle
        around = both[ear, middle - 50 : middle + 51]
        np.testing.assert_allclose(around, around[::-1], atol=1e-6)  # linear phase about that very sample


@pytest.mark.parametrize("ratio", [2, 3, 6])
def test_tone_keeps_level_and_phase(ratio: int) -> None:
    wave = tone(16_000 * ratio, 0.128)
    low = down(ratio, wave)
    np.testing.assert_allclose(
        low[:, 100:1900], tone(16_000, 0.128)[:, 100 - HALF_SAMPLES : 1900 - HALF_SAMPLES], atol=2e-3
    )
    high, late = up(ratio, low), delay_frames(ratio)
    np.testing.assert_allclose(high[:, 2000 : 1900 * ratio], wave[:, 2000 - late : 1900 * ratio - late], atol=2e-3)


def test_tone_above_the_lower_band_does_not_fold_back() -> None:
    assert np.abs(down(3, tone(48_000, 0.128, 11_000.0))[:, 100:]).max() < 2e-3


@pytest.mark.parametrize(
    "rates", [(48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (16_000, 44_100), (8_000, 16_000)]
)
def test_whole_files_change_rate_without_delay(rates: tuple[int, int]) -> None:
    source, target = rates
    out = resample(tone(source, 0.3), source, target)
    expected = tone(target, 0.3)
    assert out.shape == expected.shape
    edge = target // 100
    np.testing.assert_allclose(out[:, edge:-edge], expected[:, edge:-edge], atol=3e-3)


def test_same_rate_is_left_alone() -> None:
    wave = tone(16_000, 0.01)
    assert resample(wave, 16_000, 16_000) is wave


def test_stream_equals_whole_file() -> None:
    wave = np.random.default_rng(0).standard_normal((2, 3 * 1280)).astype(np.float32)
    streamed, whole = down(3, wave), resample(wave, 48_000, 16_000)
    np.testing.assert_allclose(streamed[:, HALF_SAMPLES:], whole[:, :-HALF_SAMPLES], atol=1e-5)
