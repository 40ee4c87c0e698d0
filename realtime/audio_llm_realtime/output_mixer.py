"""Mix the output from the wet and the dry signal, with a fade wherever the mix changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS


class OutputMixer:
    """Mixes wet and dry chunks of fixed length, and fades over one chunk where the mix changes.

    The wet signal is the extracted speaker; the dry signal is the input with the same delay. Where a wet chunk is
    missing, the output fades to dry from the time-reversed last wet chunk, so that the waveform has no step and never
    exceeds the signals it is mixed from. The first chunk is played without a fade.

    Args:
        chunk_frames: Frames of a chunk at the device's rate.
        wet: Gain of the wet signal, 0 to 1; the dry signal gets the rest.

    Attributes:
        wet: As given; may be set at any time.
        bypass: Whether only the dry signal is played; may be set at any time.
        enrolled: Whether a speaker is enrolled; if not, the dry signal is played.
    """

    def __init__(self, chunk_frames: int, wet: float = 1.0) -> None:
        self.wet = wet
        self.bypass = False
        self.enrolled = True
        self._last_wet_gain = 0.0  # gain of the wet signal at the end of the last chunk
        self._started = False
        self._ramp = (np.arange(1, chunk_frames + 1) / chunk_frames).astype(np.float32)
        self._gain = np.zeros(chunk_frames, np.float32)
        self._backwards = np.zeros((EARS, chunk_frames), np.float32)

    @property
    def target_wet(self) -> float:
        """Requested gain of the wet signal."""
        return self.wet if self.enrolled and not self.bypass else 0.0

    def mix(self, wet: NDArray[np.float32] | None, dry: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Mix one chunk.

        Args:
            wet: (2, chunk_frames) float32; None where it is missing.
            dry: (2, chunk_frames) float32, with the same delay.
            out: (2, chunk_frames) float32, written to.
        """
        before, after = self._last_wet_gain, self.target_wet if wet is not None else 0.0
        if not self._started:  # the output before was silence
            before, self._started = after, True
        source = wet if wet is not None else self._backwards
        if before == after == 0.0:
            out[:] = dry
        elif before == after == 1.0:
            out[:] = source
        else:
            np.multiply(self._ramp, np.float32(after - before), out=self._gain)
            self._gain += np.float32(before)
            np.subtract(source, dry, out=out)
            out *= self._gain
            out += dry
        if wet is not None:
            self._backwards[:] = wet[:, ::-1]
        self._last_wet_gain = after
