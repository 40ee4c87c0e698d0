"""One sound to what two ears hear of it: from a place that stays, or along a path."""

from __future__ import annotations

import numpy as np

from audio_llm.simulation.heads import SAMPLE_RATE, Head
from audio_llm.simulation.rooms import Room, early_response, images, respond

STEP_S = 0.025  # a moving source has another response every so many seconds, crossfaded
_STEP = round(STEP_S * SAMPLE_RATE)  # samples


def render(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return a sound as both ears hear it through a response.

    Args:
        waveform: (T,) float32 at 16 kHz.
        response: (2, N) float32, such as `rooms.Response.whole`.

    Returns:
        (2, T) float32; what is still sounding at the end is cut.
    """
    from scipy.signal import fftconvolve

    heard = fftconvolve(waveform[None], response, axes=1)[:, : waveform.size]
    return np.asarray(heard, dtype=np.float32)


def render_moving(
    waveform: np.ndarray,
    head: Head,
    room: Room,
    azimuths: np.ndarray,
    distance_m: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a moving sound as both ears hear it.

    The direct sound and the reflections follow the path; the tail, which has no direction, stays.

    Args:
        waveform: (T,) float32 at 16 kHz.
        head: Who listens.
        room: Where.
        azimuths: (steps,) degrees, one every `STEP_S` seconds as of `path_steps(T)`.
        distance_m: Of the source.
        rng: Draws the tail, as `rooms.respond` does.

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
    """Return how many azimuths a path of so many samples has."""
    return -(-samples // _STEP) + 1


def draw_path(
    rng: np.random.Generator, steps: int, azimuth: float, fastest_deg_s: float = 90.0, slowest_deg_s: float = 30.0
) -> np.ndarray:
    """Return a path of turns and rests: about once a second the source moves for 0.1 to 1 s at an even speed.

    Args:
        rng: Of all draws.
        steps: From `path_steps`.
        azimuth: Where it begins, degrees.
        fastest_deg_s: Highest speed.
        slowest_deg_s: Lowest speed of a turn.

    Returns:
        (steps,) float64 degrees.
    """
    speeds = np.zeros(steps)
    place = 0
    while place < steps:
        place += int(rng.exponential(0.5) / STEP_S)
        length = max(1, int(rng.uniform(0.1, 1.0) / STEP_S))
        speeds[place : place + length] = rng.choice((-1.0, 1.0)) * rng.uniform(slowest_deg_s, fastest_deg_s)
        place += length
    return azimuth + np.concatenate([[0.0], np.cumsum(speeds[:-1])]) * STEP_S


def _crossfaded(waveform: np.ndarray, responses: list[np.ndarray]) -> np.ndarray:
    """Filter with one response after the other, (2, N) each, faded over `STEP_S`; (2, T) float32."""
    longest = max(response.shape[1] for response in responses)
    size = 1 << (2 * _STEP + longest - 1).bit_length()
    steps = len(responses)
    padded = np.zeros((steps + 1) * _STEP, dtype=np.float32)
    padded[_STEP : _STEP + waveform.size] = waveform[: steps * _STEP]
    fade = np.arange(_STEP) / _STEP
    window = np.concatenate([fade, 1.0 - fade]).astype(np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 2 * _STEP)[::_STEP] * window
    filters = np.stack([np.pad(response, ((0, 0), (0, longest - response.shape[1]))) for response in responses])
    heard = np.fft.irfft(np.fft.rfft(pieces, size)[:, None] * np.fft.rfft(filters, size), size)
    out = np.zeros((2, (steps + 1) * _STEP + size), dtype=np.float32)
    for step, piece in enumerate(heard):
        out[:, step * _STEP : step * _STEP + size] += piece
    return out[:, _STEP : _STEP + waveform.size]
