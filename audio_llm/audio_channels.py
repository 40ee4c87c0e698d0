"""Channels of a recording: selection, names and mixing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audio_llm.errors import AudioFileError, UsageError

Channel = str | int  # "mix", "left", "right", "each", or a number from 1 on

MIX, EACH = "mix", "each"

_NUMBERS = {"left": 1, "right": 2}
_CANCELED = 0.1  # relative to uncorrelated channels, energy of the mean below which channels cancel out
_FADE_S = 0.01  # cross-fade of the mixing weights


@dataclass(frozen=True)
class Excerpt:
    """Part of a recording that is read.

    Attributes:
        channel: `mix` (the mean; channels that are inverted copies are aligned first), `left` (channel 1), `right`
            (channel 2), the number of a channel from 1, or `each` (all channels).
        start_s: Start in seconds of the recording.
        end_s: End in seconds; None, or a time after the end, reads to the end.

    Raises:
        UsageError: The channel has no such name or number, or `end_s` is not after `start_s`.
    """

    channel: Channel = MIX
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        parse_channel(str(self.channel))
        if not 0 <= self.start_s < float("inf"):
            raise UsageError(f"the start is {self.start_s} s", remedy="give seconds from 0 on")
        if self.end_s is not None and not self.end_s > self.start_s:
            raise UsageError(
                f"the end, {self.end_s:g} s, is not after the start, {self.start_s:g} s", remedy="give a later end"
            )


def parse_channel(text: str) -> Channel:
    """Read the name or number of a channel.

    Raises:
        UsageError: There is no such channel in any file.
    """
    if text in (MIX, EACH, *_NUMBERS):
        return text
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"no channel is named {text!r}", remedy="use mix, left, right, each or a number from 1 on")


def channel_index(channel: Channel, channels: int, name: str) -> int | None:
    """Return the index from 0 of one channel of a file; None for `mix` and `each`.

    Args:
        channel: As in `Excerpt`.
        channels: Number of channels of the file.
        name: Name of the file, for the error.

    Raises:
        AudioFileError: The file has no such channel.
    """
    if channel in (MIX, EACH):
        return None
    number = _NUMBERS.get(str(channel)) or int(channel)
    if number > channels:
        count = "1 channel" if channels == 1 else f"{channels} channels"
        raise AudioFileError(
            f"there is no channel {channel}, the file has {count}",
            path=name,
            remedy=f"choose one from 1 to {channels}, or mix" if channels > 1 else "leave the channel out",
        )
    return number - 1


def channel_name(index: int, channels: int) -> str:
    """Return the name of a channel in a transcript: `left` and `right` of two, else `channel 3`."""
    return ("left", "right")[index] if channels == 2 else f"channel {index + 1}"


class Mixer:
    """Mixes channels to their mean; where that cancels out, channels of opposite polarity are inverted first.

    Left and right of a miswired cable are inverted copies, whose mean is silence. A piece counts as such where the
    energy of the mean is less than a tenth of what the mean of uncorrelated channels would have.

    Args:
        channels: Count.
        sample_rate: Hz.
    """

    def __init__(self, channels: int, sample_rate: int) -> None:
        self._weights = self._mean = np.full(channels, 1.0 / channels, np.float32)
        self._rate = sample_rate
        self._aligned = 0

    @property
    def aligned_s(self) -> float:
        """Seconds in which channels were inverted."""
        return self._aligned / self._rate

    def mix(self, piece: np.ndarray) -> np.ndarray:
        """Return (T,) float32 of the next (T, C) float32."""
        mean = piece.mean(axis=1)
        if len(self._mean) == 1 or not len(piece):
            return mean
        energy = np.einsum("tc,tc->c", piece, piece, dtype=np.float64)
        canceled = float(np.dot(mean, mean)) < _CANCELED * float(energy.sum()) / len(energy) ** 2
        weights = self._polarity(piece, energy) if canceled else self._mean
        before, self._weights = self._weights, weights
        self._aligned += len(piece) * int(canceled)
        if not canceled and before is self._mean:
            return mean
        mixed = np.asarray(piece @ weights, np.float32)
        fade = min(len(piece), round(_FADE_S * self._rate))
        ramp = np.arange(1, fade + 1, dtype=np.float32) / (fade + 1)
        mixed[:fade] = ramp * mixed[:fade] + (1 - ramp) * (piece[:fade] @ before)
        return mixed

    def _polarity(self, piece: np.ndarray, energy: np.ndarray) -> np.ndarray:
        """Return weights whose signs are those of each channel's correlation with the loudest one."""
        signs = np.where(piece.T @ piece[:, int(energy.argmax())] < 0, -1.0, 1.0).astype(np.float32)
        weights = signs * self._mean
        return -weights if float(weights @ self._weights) < 0 else weights
