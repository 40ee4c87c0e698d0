"""Resample audio: by integer factors in a stream, with a known delay, and whole files by any ratio, without delay."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

HALF_SAMPLES = 16  # delay of one filter, in samples of the lower rate: 1 ms at 16 kHz
_ATTENUATION = 5.65  # Kaiser beta for 60 dB; the passband ends at 0.44 of the lower rate


def delay_frames(ratio: int) -> int:
    """Return the delay of downsampling and upsampling together, in frames of the higher rate; 0 for a ratio of 1."""
    return 2 * HALF_SAMPLES * ratio if ratio > 1 else 0


class Decimator:
    """Lowers the rate by an integer factor; linear phase, with a delay of HALF_SAMPLES output samples.

    Args:
        ratio: Higher rate over lower rate, 2 or more.
        channels: Number of channels.
        block: Output samples per block.
    """

    def __init__(self, ratio: int, channels: int, block: int) -> None:
        self._ratio = ratio
        self._filter = _low_pass(ratio)  # symmetric, so that its direction does not matter
        self._history = len(self._filter) - 1
        self._buffer = np.zeros((channels, self._history + block * ratio), np.float32)
        self._windows = sliding_window_view(self._buffer, len(self._filter), axis=1)[:, ::ratio]
        self._windows = self._windows[:, :block]

    def reset(self) -> None:
        """Clear the filter's history."""
        self._buffer[:] = 0.0

    def process(self, block: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Downsample (C, block x ratio) float32 to `out` (C, block) float32."""
        self._buffer[:, : self._history] = self._buffer[:, -self._history :].copy()
        self._buffer[:, self._history :] = block
        np.matmul(self._windows, self._filter, out=out)


class Interpolator:
    """Raises the rate by an integer factor; linear phase, with a delay of HALF_SAMPLES x ratio output samples.

    Args:
        ratio: Higher rate over lower rate, 2 or more.
        channels: Number of channels.
        block: Input samples per block.
    """

    def __init__(self, ratio: int, channels: int, block: int) -> None:
        self._ratio = ratio
        taps = np.zeros((ratio, 2 * HALF_SAMPLES + 1), np.float32)
        for phase in range(ratio):
            of_phase = ratio * _low_pass(ratio)[phase::ratio]
            taps[phase, : len(of_phase)] = of_phase
        self._filters = np.ascontiguousarray(taps[:, ::-1].T)  # (taps, ratio)
        self._history = 2 * HALF_SAMPLES
        self._buffer = np.zeros((channels, self._history + block), np.float32)
        self._windows = sliding_window_view(self._buffer, 2 * HALF_SAMPLES + 1, axis=1)
        self._phases = np.zeros((channels, block, ratio), np.float32)

    def reset(self) -> None:
        """Clear the filter's history."""
        self._buffer[:] = 0.0

    def process(self, block: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Upsample (C, block) float32 to `out` (C, block x ratio) float32."""
        self._buffer[:, : self._history] = self._buffer[:, -self._history :].copy()
        self._buffer[:, self._history :] = block
        np.matmul(self._windows, self._filters, out=self._phases)
        out[:] = self._phases.reshape(out.shape)


def resample(waveform: NDArray[np.float32], source_rate: int, target_rate: int) -> NDArray[np.float32]:
    """Resample a whole waveform from any rate to any other, without delay.

    Args:
        waveform: (C, T) float32.
        source_rate: Rate of the waveform in Hz.
        target_rate: Rate of the result in Hz.

    Returns:
        (C, ceil(T x target / source)) float32.
    """
    if source_rate == target_rate:
        return waveform
    divisor = gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    taps = up * _low_pass(max(up, down))  # at the rate of source x up, centered on its middle
    middle = len(taps) // 2
    length = -(-waveform.shape[1] * up // down)
    reach = -(-len(taps) // up)
    padded = np.pad(waveform, ((0, 0), (reach, reach + down)))
    windows = sliding_window_view(padded, reach, axis=1)
    out = np.zeros((waveform.shape[0], length), np.float32)
    for first in range(min(up, length)):  # outputs `up` apart have the same phase
        position = first * down + middle
        newest, phase = divmod(position, up)
        of_phase = np.zeros(reach, np.float32)
        of_phase[: len(taps[phase::up])] = taps[phase::up]
        count = -(-(length - first) // up)
        out[:, first::up] = windows[:, newest + 1 :: down][:, :count] @ of_phase[::-1]
    return out


@lru_cache(maxsize=8)
def _low_pass(factor: int) -> NDArray[np.float32]:
    """Return a low-pass of 2 x HALF_SAMPLES x factor + 1 taps with cutoff 1 / (2 x factor) of its rate and unit gain.

    Args:
        factor: Rate of the filter over the lower rate.
    """
    half = HALF_SAMPLES * factor
    time = np.arange(-half, half + 1) / factor
    taps = np.sinc(time) * np.kaiser(2 * half + 1, _ATTENUATION)
    return (taps / taps.sum()).astype(np.float32)
