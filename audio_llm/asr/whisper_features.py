"""Log-mel features of Whisper in numpy: 30 s windows, no torch."""

from __future__ import annotations

import functools

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE
from audio_llm.errors import UsageError

WINDOW_S = 30  # seconds, the fixed input of the encoder
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE
N_FFT = 400  # points of the transform, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_LENGTH
BAND_COUNTS = (80, 128)  # 128 since large-v3

_FLOOR = 1e-10  # smallest mel power
_DYNAMIC_RANGE = 8.0  # dynamic range below the loudest value, in powers of ten
_BLOCK_FRAMES = 250  # frames transformed at a time; more exceed the cache and take three times as long
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0  # Slaney's mel scale is linear below, logarithmic above
_MEL_STEP = np.log(6.4) / 27.0  # natural log of the ratio of frequencies one mel apart, above the break


def log_mel(waveform: np.ndarray, bands: int = 80) -> np.ndarray:
    """Return the features of one 30 s window, as Whisper was trained on them.

    Short-time spectrum (Hann window of 400 samples, hop of 160, reflected edges), power in triangular bands, base-10
    logarithm, limited to 8 below its maximum, then (x + 4) / 4. Shorter waveforms are padded with zeros.

    Args:
        waveform: (T,) floating point at 16 kHz in -1..1, at most 30 s; may be empty.
        bands: Number of mel bands, 80 or 128: the input channels of the model's first convolution.

    Returns:
        (bands, 3000) float32, contiguous.

    Raises:
        UsageError: The waveform has another shape or type, values that are not finite, or more than 30 s; or `bands`
            is neither 80 nor 128.
    """
    if bands not in BAND_COUNTS:
        raise UsageError(f"Whisper has no features of {bands} mel bands", remedy="use 80 or 128")
    padded = _pad(_checked(waveform))
    # frames after the end of the sound hold zeros only: their value is known without a transform
    sounding = min(WINDOW_FRAMES, (len(waveform) + N_FFT // 2) // HOP_LENGTH + 1)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:sounding]
    features = np.full((bands, WINDOW_FRAMES), np.log10(_FLOOR), dtype=np.float32)
    for start in range(0, sounding, _BLOCK_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * _hann_window(), axis=1)
        energies = mel_filters(bands) @ (spectrum.real**2 + spectrum.imag**2).T
        np.log10(np.maximum(energies, _FLOOR), out=features[:, start : start + energies.shape[1]])
    np.maximum(features, features.max() - _DYNAMIC_RANGE, out=features)
    features += 4.0
    features /= 4.0
    return features


@functools.cache
def mel_filters(bands: int) -> np.ndarray:
    """Return triangular filters of unit area over 0 to 8 kHz, evenly spaced on Slaney's mel scale.

    Args:
        bands: Number of filters.

    Returns:
        (bands, 201) float32, read-only.
    """
    highest_mel = _BREAK_MEL + np.log(SAMPLE_RATE / 2 / _BREAK_HZ) / _MEL_STEP
    mel = np.linspace(0.0, highest_mel, bands + 2)
    edges_hz = np.where(
        mel < _BREAK_MEL, mel * _BREAK_HZ / _BREAK_MEL, _BREAK_HZ * np.exp((mel - _BREAK_MEL) * _MEL_STEP)
    )
    bins_hz = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
    low, center, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    triangles = np.minimum((bins_hz - low) / (center - low), (high - bins_hz) / (high - center))
    filters = (np.maximum(triangles, 0.0) * 2.0 / (high - low)).astype(np.float32)
    filters.flags.writeable = False
    return filters


@functools.cache
def _hann_window() -> np.ndarray:
    """Return the periodic Hann window (400,) float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


def _checked(waveform: np.ndarray) -> np.ndarray:
    """Return the waveform as (T,) float32, or raise UsageError."""
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        actual = f"{'x'.join(map(str, waveform.shape))} of {waveform.dtype}"
        raise UsageError(f"a waveform of one channel in floating point is needed, not {actual}", remedy="convert it")
    if len(waveform) > WINDOW_SAMPLES:
        message = f"{len(waveform) / SAMPLE_RATE:.2f} s of sound do not fit into a window of {WINDOW_S} s"
        raise UsageError(message, remedy="cut it into windows first")
    if not np.isfinite(waveform).all():
        raise UsageError("the waveform has values that are not finite", remedy="repair the sound file")
    return waveform.astype(np.float32, copy=False)


def _pad(waveform: np.ndarray) -> np.ndarray:
    """Return 30 s with half a transform reflected at each end: (480400,) float32."""
    side = N_FFT // 2
    padded = np.zeros(WINDOW_SAMPLES + N_FFT, dtype=np.float32)
    inside = padded[side:-side]
    inside[: len(waveform)] = waveform
    padded[:side] = inside[side:0:-1]
    padded[-side:] = inside[-2 : -side - 2 : -1]
    return padded
