"""Measures of speech that need no clean reference: activity, tone, pitch, and the difference between two signals."""

from __future__ import annotations

import itertools

import numpy as np

SAMPLE_RATE = 16_000  # Hz
FRAME = 320  # samples, 20 ms
_ACTIVE_DB = 30.0  # range of speech below its loudest frames
_LEAST_DB = -65.0  # level of a frame below which nothing is speech
_BANDS_HZ = np.geomspace(120.0, 7600.0, 19)  # edges of the bands of a long-term spectrum
_PITCH_HZ = (65.0, 420.0)
_PITCH_FRAME = 640  # samples, 40 ms
_NEARLY = 0.85  # of the highest peak of an autocorrelation
_VOICED = 0.5  # normalized autocorrelation of a frame that has a pitch


def levels_db(waveform: np.ndarray) -> np.ndarray:
    """Return the level of every 20 ms frame below full scale: (N,) float64 of (T,) float32."""
    count = len(waveform) // FRAME
    frames = waveform[: count * FRAME].reshape(count, FRAME).astype(np.float64)
    return 10.0 * np.log10(np.mean(frames**2, axis=1) + 1e-12)


def active_frames(waveform: np.ndarray) -> np.ndarray:
    """Return which 20 ms frames hold speech, by level: (N,) bool."""
    levels = levels_db(waveform)
    if not len(levels):
        return np.zeros(0, dtype=bool)
    return levels > max(_LEAST_DB, float(np.percentile(levels, 95)) - _ACTIVE_DB)


def snr_db(noisy: np.ndarray, speech: np.ndarray) -> float:
    """Return the ratio of the power that an enhancer retained to what it removed, in dB, within -40..60."""
    retained = float(np.mean(np.square(speech, dtype=np.float64)))
    removed = float(np.mean(np.square(noisy - speech, dtype=np.float64)))
    return float(np.clip(10.0 * np.log10((retained + 1e-12) / (removed + 1e-12)), -40.0, 60.0))


def tone_distance_db(one: np.ndarray, other: np.ndarray) -> float:
    """Return the difference of two long-term spectra: RMS over bands in dB, levels matched."""
    spectra = [_long_term_db(part) for part in (one, other)]
    difference = spectra[0] - spectra[1]
    return float(np.sqrt(np.mean((difference - difference.mean()) ** 2)))


def pitch_hz(waveform: np.ndarray) -> float:
    """Return the median pitch in Hz of the voiced frames, by autocorrelation; NaN with fewer than 5 of them."""
    step = _PITCH_FRAME // 2
    count = max(0, (len(waveform) - _PITCH_FRAME) // step + 1)
    if not count:
        return float("nan")
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), _PITCH_FRAME)[::step]
    frames = frames - frames.mean(axis=1, keepdims=True)
    energy = (frames**2).sum(axis=1)
    spectrum = np.abs(np.fft.rfft(frames, 2 * _PITCH_FRAME)) ** 2
    correlation = np.fft.irfft(spectrum)[:, :_PITCH_FRAME]
    low, high = (round(SAMPLE_RATE / hz) for hz in reversed(_PITCH_HZ))
    lags = np.arange(low, high + 1)
    # the overlap shrinks with the lag, the true correlation does not
    normalized = correlation[:, lags] / (energy[:, None] + 1e-9) * (_PITCH_FRAME / (_PITCH_FRAME - lags))
    # the first peak that is nearly the highest: later ones are multiples of the period
    peaks = np.pad(normalized, ((0, 0), (1, 1)), constant_values=-1.0)
    is_peak = (normalized >= peaks[:, :-2]) & (normalized >= peaks[:, 2:])
    best = (is_peak & (normalized >= _NEARLY * normalized.max(axis=1, keepdims=True))).argmax(axis=1)
    voiced = (normalized.max(axis=1) > _VOICED) & (energy > 0.01 * np.percentile(energy, 95))
    if voiced.sum() < 5:
        return float("nan")
    return float(np.median(SAMPLE_RATE / lags[best[voiced]]))


def _long_term_db(waveform: np.ndarray) -> np.ndarray:
    size = 512
    padded = np.pad(waveform.astype(np.float64), (0, max(0, size - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2] * np.hanning(size)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean(axis=0)
    bins = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    bands = [power[(bins >= a) & (bins < b)] for a, b in itertools.pairwise(_BANDS_HZ)]
    values = np.array([band.mean() if len(band) else np.nan for band in bands])
    known = ~np.isnan(values)
    values = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    loudest: float = float(values.max()) + 1e-12
    return 10.0 * np.log10(np.maximum(values, 1e-6 * loudest))
