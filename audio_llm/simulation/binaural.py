"""Binaural rendering of a mono sound, from a fixed direction or along a path."""

from __future__ import annotations

import numpy as np

from audio_llm.simulation.heads import SAMPLE_RATE, Head
from audio_llm.simulation.rooms import Room, early_response, images, respond

STEP_S = 0.025  # interval of a moving source's responses, which are crossfaded
_STEP = round(STEP_S * SAMPLE_RATE)  # samples


def render(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return the binaural image of a sound through a response.

    Args:
        waveform: (T,) float32 at 16 kHz.
        response: (2, N) float32, such as `rooms.Response.whole`.

    Returns:
        (2, T) float32; the decay after the end is cut.
    """
    from scipy.signal import fftconvolve

    binaural = fftconvolve(waveform[None], response, axes=1)[:, : waveform.size]
    return np.asarray(binaural, dtype=np.float32)


def render_moving(
    waveform: np.ndarray,
    head: Head,
    room: Room,
    azimuths: np.ndarray,
    distance_m: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the binaural image of a moving source.

    The direct sound and the reflections follow the path; the tail, which has no direction, is fixed.

    Args:
        waveform: (T,) float32 at 16 kHz.
        head: Head responses.
        room: The room.
        azimuths: (steps,) degrees, one every `STEP_S` seconds; `path_steps(T)` of them.
        distance_m: Distance of the source.
        rng: Draws the tail, as in `rooms.respond`.

    Returns:
        (2, T) float32.
    """
    start = respond(head, room, float(azimuths[0]), distance_m, rng)
    tail = start.whole.copy()
    fixed = early_response(head, images(room, float(azimuths[0]), distance_m))
    tail[:, : fixed.shape[1]] -= fixed
    early = [early_response(head, images(room, float(azimuth), distance_m)) for azimuth in azimuths]
    return render(waveform, tail) + _crossfaded(waveform, early)


def path_steps(samples: int) -> int:
    """Return the number of azimuths of a path over so many samples."""
    return -(-samples // _STEP) + 1


def draw_path(
    rng: np.random.Generator, steps: int, azimuth: float, fastest_deg_s: float = 90.0, slowest_deg_s: float = 30.0
) -> np.ndarray:
    """Return a path of turns and rests: about once a second the source moves for 0.1 to 1 s at a constant speed.

    Args:
        rng: Source of all draws.
        steps: Number of azimuths, from `path_steps`.
        azimuth: First azimuth, degrees.
        fastest_deg_s: Highest speed of a turn.
        slowest_deg_s: Lowest speed of a turn.

    Returns:
        (steps,) float64 degrees.
    """
    speeds = np.zeros(steps)
    position = 0
    while position < steps:
        position += int(rng.exponential(0.5) / STEP_S)
        length = max(1, int(rng.uniform(0.1, 1.0) / STEP_S))
        speeds[position : position + length] = rng.choice((-1.0, 1.0)) * rng.uniform(slowest_deg_s, fastest_deg_s)
        position += length
    return azimuth + np.concatenate([[0.0], np.cumsum(speeds[:-1])]) * STEP_S


def _crossfaded(waveform: np.ndarray, responses: list[np.ndarray]) -> np.ndarray:
    """Filter with successive responses, (2, N) each, crossfaded over `STEP_S`; (2, T) float32."""
    longest = max(response.shape[1] for response in responses)
    size = 1 << (2 * _STEP + longest - 1).bit_length()
    steps = len(responses)
    padded = np.zeros((steps + 1) * _STEP, dtype=np.float32)
    padded[_STEP : _STEP + waveform.size] = waveform[: steps * _STEP]
    fade = np.arange(_STEP) / _STEP
    window = np.concatenate([fade, 1.0 - fade]).astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 2 * _STEP)[::_STEP] * window
    filters = np.stack([np.pad(response, ((0, 0), (0, longest - response.shape[1]))) for response in responses])
    binaural = np.fft.irfft(np.fft.rfft(pieces, size)[:, None] * np.fft.rfft(filters, size), size)
    out = np.zeros((2, (steps + 1) * _STEP + size), dtype=np.float32)
    for step, piece in enumerate(binaural):
        out[:, step * _STEP : step * _STEP + size] += piece
    return out[:, _STEP : _STEP + waveform.size]
