"""Small filters for simulation: fractional delays, minimum phase, random coloration."""

from __future__ import annotations

import numpy as np

_LEAST_GAIN = 1e-4  # floor of a spectrum before its logarithm, relative to the peak
_WAVES = 3


def shifted(waveforms: np.ndarray, delays: np.ndarray) -> np.ndarray:
    """Delay (..., T) circularly by (...,) samples, which may be fractional or negative."""
    size = waveforms.shape[-1]
    turns = np.fft.rfftfreq(size) * delays[..., None]
    return np.asarray(np.fft.irfft(np.fft.rfft(waveforms) * np.exp(-2j * np.pi * turns), size))


def minimum_phase(magnitude: np.ndarray) -> np.ndarray:
    """Return the spectrum of the minimum-phase response with this magnitude (..., N), by the real cepstrum."""
    size = magnitude.shape[-1]
    floor = _LEAST_GAIN * magnitude.max(axis=-1, keepdims=True) + 1e-12
    cepstrum = np.fft.ifft(np.log(np.maximum(magnitude, floor))).real
    window = np.zeros(size)
    window[0] = window[size // 2] = 1.0
    window[1 : size // 2] = 2.0
    return np.asarray(np.exp(np.fft.fft(cepstrum * window)))


def slow_waves_db(rng: np.random.Generator, size: int, most_db: float) -> np.ndarray:
    """Return (size,) levels in dB over the bins of an FFT, as slow random waves of at most `most_db`."""
    position = np.abs(np.fft.fftfreq(size)) / 0.5
    waves = [rng.uniform(0.5, 4.0) * np.pi * position + rng.uniform(0, 2 * np.pi) for _ in range(_WAVES)]
    return np.asarray(most_db * np.mean([np.cos(wave) for wave in waves], axis=0))


def color(waveforms: np.ndarray, levels_db: np.ndarray) -> np.ndarray:
    """Filter (..., T) in minimum phase by levels (N,) in dB over the bins of an FFT, N even; returns (..., T)."""
    from scipy.signal import fftconvolve

    response = np.fft.ifft(minimum_phase(10.0 ** (levels_db / 20.0))).real
    shape = (1,) * (waveforms.ndim - 1) + response.shape
    filtered = fftconvolve(waveforms, response.reshape(shape), axes=-1)
    return np.asarray(filtered[..., : waveforms.shape[-1]])
