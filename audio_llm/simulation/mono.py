"""Degradation of clean mono speech: noise at a given SNR, a small room, level, voice changes."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16_000  # Hz


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise so that the ratio of mean powers is `snr_db`.

    Args:
        waveform: (T,) float32.
        noise: (N,) float32; repeated or cut to T.
        snr_db: Signal-to-noise ratio in dB over the whole length.

    Returns:
        (T,) float32. Silence and empty waveforms are returned unchanged.
    """
    power = float(np.mean(waveform**2)) if waveform.size else 0.0
    noise = np.resize(noise, waveform.shape)
    noise_power = float(np.mean(noise**2)) if noise.size else 0.0
    if power == 0.0 or noise_power == 0.0:
        return waveform
    gain = np.sqrt(power / noise_power / 10.0 ** (snr_db / 10.0))
    return (waveform + gain * noise).astype(np.float32)


def colored_noise(samples: int, rng: np.random.Generator, exponent: float) -> np.ndarray:
    """Return (samples,) float32 noise of unit power with power falling as 1 / f**exponent (0 white, 1 pink)."""
    if not samples:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    shape = np.maximum(np.fft.rfftfreq(samples), 1.0 / max(samples, 1)) ** (-exponent / 2.0)
    noise = np.fft.irfft(spectrum * shape, n=samples)
    return (noise / (np.sqrt(np.mean(noise**2)) + 1e-12)).astype(np.float32)


def room_response(rng: np.random.Generator, rt60_s: float, direct_to_reverb_db: float) -> np.ndarray:
    """Return a direct path of 1 and an exponentially decaying diffuse tail.

    Args:
        rng: Source of the tail.
        rt60_s: Time in seconds after which the tail is 60 dB down.
        direct_to_reverb_db: Level of the direct path over the whole tail.

    Returns:
        (N,) float64 at 16 kHz; (1,) for times too short for a tail.
    """
    length = int(rt60_s * SAMPLE_RATE)
    if length < 2:
        return np.ones(1)
    time_s = np.arange(length) / SAMPLE_RATE
    tail = rng.standard_normal(length) * np.exp(-6.9078 * time_s / rt60_s)
    tail[: int(0.003 * SAMPLE_RATE)] = 0.0  # the first reflection travels one meter more than the direct sound
    tail *= np.sqrt(10.0 ** (-direct_to_reverb_db / 10.0) / max(float(np.sum(tail**2)), 1e-12))
    tail[0] = 1.0
    return tail


def add_room(waveform: np.ndarray, rng: np.random.Generator, rt60_s: float, direct_to_reverb_db: float) -> np.ndarray:
    """Convolve with a room response, see `room_response`.

    Args:
        waveform: (T,) float32 at 16 kHz.
        rng: Source of the tail.
        rt60_s: Time in seconds after which the tail is 60 dB down.
        direct_to_reverb_db: Level of the direct path over the whole tail.

    Returns:
        (T,) float32, aligned with the input.
    """
    return convolve(waveform, room_response(rng, rt60_s, direct_to_reverb_db)) if waveform.size else waveform


def convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return (T,) float32: a waveform (T,) convolved with a response (N,), cut at its end."""
    if response.size == 1:
        return (waveform * response[0]).astype(np.float32)
    from scipy.signal import fftconvolve

    return fftconvolve(waveform, response)[: waveform.size].astype(np.float32)


def active_power(waveform: np.ndarray, below_db: float = 40.0) -> float:
    """Return the mean power of the frames of 20 ms that are within `below_db` dB of the loudest; 0 for silence."""
    frame = SAMPLE_RATE // 50
    count = waveform.size // frame
    if not count:
        return float(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0
    powers = np.mean(np.square(waveform[: count * frame].reshape(count, frame), dtype=np.float64), axis=1)
    return float(powers[powers >= powers.max() * 10.0 ** (-below_db / 10.0)].mean())


def set_level(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """Scale to an RMS of `level_db` dB below full scale, less where the peak would pass 0.99."""
    rms = float(np.sqrt(np.mean(waveform**2))) if waveform.size else 0.0
    if rms == 0.0:
        return waveform
    gain = min(10.0 ** (level_db / 20.0) / rms, 0.99 / float(np.abs(waveform).max()))
    return (waveform * gain).astype(np.float32)


def trim_silence(
    waveform: np.ndarray, below_db: float = 35.0, pause_s: float = 0.3, margin_s: float = 0.0
) -> np.ndarray:
    """Cut silence off both ends, and shorten long pauses.

    Args:
        waveform: (T,) float32 at 16 kHz.
        below_db: Frames of 20 ms so far below the 95th percentile of the levels are silent.
        pause_s: Length of a shortened pause, half of it on each side of the cut.
        margin_s: Silence to leave at both ends.

    Returns:
        (T',) float32; empty if all is silent.
    """
    frame = SAMPLE_RATE // 50
    count = waveform.size // frame
    if count == 0:
        return waveform[:0]
    power = np.mean(waveform[: count * frame].reshape(count, frame).astype(np.float64) ** 2, axis=1)
    loud = power > np.percentile(power, 95) * 10.0 ** (-below_db / 10.0)
    if not power.any():
        return waveform[:0]
    reach = max(1, round(0.5 * pause_s * 50))
    near = np.convolve(loud, np.ones(2 * reach + 1))[reach : reach + count] > 0
    inside = np.flatnonzero(loud)
    margin = round(margin_s * 50)
    near[max(0, inside[0] - margin) : inside[0]] = near[inside[-1] + 1 : inside[-1] + 1 + margin] = True
    near[: max(0, inside[0] - margin)] = near[inside[-1] + 1 + margin :] = False
    return waveform[: count * frame][np.repeat(near, frame)]


def shift_voice(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Resample to play faster by `factor`: pitch and formants rise alike, as with a shorter vocal tract.

    Args:
        waveform: (T,) float32 at 16 kHz.
        factor: 1.0 changes nothing; 1.1 sounds like a smaller speaker with a 10 % higher speaking rate.

    Returns:
        (T / factor,) float32 at 16 kHz.
    """
    if abs(factor - 1.0) < 1e-3 or not waveform.size:
        return waveform
    import soxr

    return soxr.resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE).astype(np.float32)
