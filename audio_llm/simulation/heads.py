"""Head-related impulse responses (HRIRs) for distant sources in the horizontal plane, and their variation among heads.

Azimuths are counter-clockwise: 0 is straight ahead, 90 left. The left ear comes first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audio_llm.errors import DataError
from audio_llm.simulation.filters import color, minimum_phase, shifted, slow_waves_db

SAMPLE_RATE = 16_000  # Hz
KEMAR = Path(__file__).parent / "kemar.npz"  # MIT KEMAR, normal pinna (Gardner and Martin 1995)
_PADDING = 32  # samples around a response while it is shifted
_SHIFT_UPSAMPLING = 16  # delays are resolved to 1 / 16 sample, 3.9 microseconds


@dataclass(frozen=True)
class Head:
    """Anechoic responses of one head.

    Attributes:
        name: Name of the head.
        azimuths: (A,) float64 degrees, ascending in 0..360.
        responses: (A, 2, T) float32 at 16 kHz.
    """

    name: str
    azimuths: np.ndarray
    responses: np.ndarray

    def at(self, azimuth: float) -> np.ndarray:
        """Return the response in one direction: (2, T) float32 (see `table`)."""
        response: np.ndarray = self.table([azimuth])[0]
        return response

    def table(self, azimuths: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the responses in several directions: (N, 2, T) float32.

        A measured direction returns its measured response. Between two of them the delay of each ear and the shape of
        its response are interpolated separately, which avoids comb filtering.

        Args:
            azimuths: Degrees, in any range.
        """
        directions = np.mod(np.asarray(azimuths, dtype=np.float64), 360.0)
        after = np.searchsorted(self.azimuths, directions, side="right") % len(self.azimuths)
        before = after - 1  # -1 is the last one
        gap = np.mod(self.azimuths[after] - self.azimuths[before], 360.0)
        fraction = np.mod(directions - self.azimuths[before], 360.0) / np.where(gap == 0.0, 360.0, gap)
        delays, shapes = self._parts
        fraction = fraction[:, None]
        delay = (1.0 - fraction) * delays[before] + fraction * delays[after]
        shape = (1.0 - fraction[:, :, None]) * shapes[before] + fraction[:, :, None] * shapes[after]
        table = shifted(shape, delay)[..., _PADDING : _PADDING + self.responses.shape[2]]
        exact = fraction[:, 0] == 0.0
        table[exact] = self.responses[before[exact]]
        return table.astype(np.float32)

    def near(self, azimuths: Sequence[float] | np.ndarray) -> np.ndarray:
        """Approximate `table`, much faster for many directions: interpolate between responses one degree apart."""
        directions = np.mod(np.asarray(azimuths, dtype=np.float64), 360.0)
        before = directions.astype(int) % 360
        fraction = (directions - np.floor(directions)).astype(np.float32)[:, None, None]
        mixed: np.ndarray = (1 - fraction) * self._grid[before] + fraction * self._grid[(before + 1) % 360]
        return mixed

    @functools.cached_property
    def _grid(self) -> np.ndarray:
        """Responses at every whole degree: (360, 2, T) float32."""
        return self.table(np.arange(360))

    @functools.cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Delays (A, 2) in samples, and the padded responses (A, 2, T + 2 x padding) without these delays."""
        delays = onset_delays(self.responses)
        padded = np.pad(self.responses.astype(np.float64), ((0, 0), (0, 0), (_PADDING, _PADDING)))
        return delays, shifted(padded, -delays)


@dataclass(frozen=True)
class HeadVariation:
    """Ranges of the variation among heads; each draw is uniform between minus and plus its value.

    Attributes:
        itd: Relative change of all interaural time differences.
        ild: Relative change of all interaural level differences.
        gain_db: Change of the level of each ear, as with two mismatched microphones.
        tone_db: Change of the level of each ear over frequency, in slow waves.
    """

    itd: float = 0.12
    ild: float = 0.2
    gain_db: float = 1.0
    tone_db: float = 2.0


def load_head(path: str | Path = KEMAR, name: str = "") -> Head:
    """Read a head from an `.npz` file.

    Args:
        path: File with `ir` (N, 2, T) float at 16 kHz, `azimuth_deg` (N,), `elevation_deg` (N,) and `sample_rate`; only
            the horizontal plane is used.
        name: Name of the head; if empty, the file's name.

    Raises:
        DataError: The file is missing or does not have this format.
    """
    path = Path(path)
    remedy = "give an .npz file with ir, azimuth_deg, elevation_deg and sample_rate"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            level = np.asarray(arrays["elevation_deg"]) == 0.0
            azimuths = np.mod(np.asarray(arrays["azimuth_deg"], dtype=np.float64)[level], 360.0)
            responses = np.asarray(arrays["ir"], dtype=np.float32)[level]
            rate = int(arrays["sample_rate"])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"not a file of head responses: {error}", path=path, remedy=remedy) from None
    if rate != SAMPLE_RATE or responses.ndim != 3 or responses.shape[1] != 2 or len(azimuths) < 2:
        shape_text = f"{responses.shape} responses at {rate} Hz"
        raise DataError(f"{shape_text}, expected (N, 2, T) at {SAMPLE_RATE} Hz", path=path, remedy=remedy)
    order = np.argsort(azimuths)
    return Head(name or path.stem, azimuths[order], responses[order])


def vary(head: Head, rng: np.random.Generator, variation: HeadVariation | None = None) -> Head:
    """Return a random variation of a head, in which no direction has identical ears."""
    variation = variation or HeadVariation()
    delays, shapes = head._parts
    middle = delays.mean(axis=1, keepdims=True)
    delays = middle + (1.0 + rng.uniform(-variation.itd, variation.itd)) * (delays - middle)
    levels = level_difference_db(head.responses)
    change_db = 0.5 * rng.uniform(-variation.ild, variation.ild) * np.stack([levels, -levels], axis=1)
    change_db = change_db + rng.uniform(-variation.gain_db, variation.gain_db, 2)
    shapes = shapes * 10.0 ** (change_db[:, :, None] / 20.0)
    moved = shifted(shapes, delays)[..., _PADDING : _PADDING + head.responses.shape[2]]
    responses = np.stack(
        [color(moved[:, ear], slow_waves_db(rng, 2 * moved.shape[2], variation.tone_db)) for ear in range(2)], axis=1
    )
    return replace(head, responses=responses.astype(np.float32))


def onset_delays(responses: np.ndarray) -> np.ndarray:
    """Return the delay of each response relative to its minimum-phase version, in samples.

    The delay does not depend on the level or the coloration of the response, and changes smoothly with direction (Nam,
    Abel and Smith 2008).

    Args:
        responses: (..., T) at 16 kHz.

    Returns:
        (...,) float64.
    """
    size = 4 * responses.shape[-1]
    spectrum = np.fft.fft(responses, size)
    minimum = minimum_phase(np.abs(spectrum))
    correlation = _correlation(spectrum * np.conj(minimum))[..., : responses.shape[-1] * _SHIFT_UPSAMPLING]
    return np.asarray(correlation.argmax(axis=-1) / _SHIFT_UPSAMPLING)


def level_difference_db(responses: np.ndarray) -> np.ndarray:
    """Return the interaural level difference in dB, positive if the left ear is louder: (...,) for (..., 2, T)."""
    power = np.sum(responses.astype(np.float64) ** 2, axis=-1) + 1e-20
    return np.asarray(10.0 * np.log10(power[..., 0] / power[..., 1]))


def time_difference_s(responses: np.ndarray, least_hz: float = 100.0, most_hz: float = 1500.0) -> np.ndarray:
    """Return the interaural time difference in seconds, negative if the left ear leads: (...,) for (..., 2, T).

    It is the maximum of the ears' cross-correlation in a low band, resolved to 4 microseconds, within 1 ms.
    """
    size = 2 * responses.shape[-1]
    frequencies = np.fft.fftfreq(size, 1.0 / SAMPLE_RATE)
    spectrum = np.fft.fft(responses, size)
    cross = spectrum[..., 0, :] * np.conj(spectrum[..., 1, :])
    correlation = _correlation(np.where((frequencies >= least_hz) & (frequencies <= most_hz), cross, 0.0))
    reach = SAMPLE_RATE * _SHIFT_UPSAMPLING // 1000
    near = np.concatenate([correlation[..., -reach:], correlation[..., : reach + 1]], axis=-1)
    return np.asarray((near.argmax(axis=-1) - reach) / (SAMPLE_RATE * _SHIFT_UPSAMPLING))


def _correlation(cross: np.ndarray) -> np.ndarray:
    """Return the upsampled correlation (..., N x `_SHIFT_UPSAMPLING`) of a cross-spectrum (..., N)."""
    size = cross.shape[-1]
    upsampled = np.zeros((*cross.shape[:-1], size * _SHIFT_UPSAMPLING), dtype=complex)
    upsampled[..., : size // 2] = cross[..., : size // 2]
    return np.asarray(np.fft.ifft(upsampled).real)
