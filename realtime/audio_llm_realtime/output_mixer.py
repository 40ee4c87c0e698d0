"""What the listener gets: the wet signal, the dry signal, or a mix, with a fade wherever that changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS


class OutputMixer:
    """Mixes wet and dry units of fixed length, and fades over one unit where their shares change.

    Where the wet unit is missing, the last one is played backwards under the fade: the sound goes on without a step,
    and never exceeds what it is made of. The first unit comes without a fade.

    Args:
        unit: Frames that are mixed at once.
        wet: Share of the wet signal, 0 to 1.

    Attributes:
        wet: As given; may be set at any time.
        bypass: Play the dry signal alone; may be set at any time.
        enrolled: There is somebody to be heard; without, the dry signal is played.
    """

    def __init__(self, chunk_frames: int, wet: float = 1.0) -> None:
        self.wet = wet
        self.bypass = False
        self.enrolled = True
        self._wet_fraction = 0.0  # of the wet signal at the end of the last unit
        self._started = False
        self._ramp = (np.arange(1, chunk_frames + 1) / chunk_frames).astype(np.float32)
        self._gain = np.zeros(chunk_frames, np.float32)
        self._backwards = np.zeros((EARS, chunk_frames), np.float32)

    @property
    def target_wet(self) -> float:
        """Share of the wet signal that the listener asked for."""
        return self.wet if self.enrolled and not self.bypass else 0.0

    def mix(self, wet: NDArray[np.float32] | None, dry: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Mix one unit.

        Args:
            wet: (2, unit) float32; None where it is missing.
            dry: (2, unit) float32, equally late.
            out: (2, unit) float32 to write to.
        """
        before, after = self._wet_fraction, self.target_wet if wet is not None else 0.0
        if not self._started:  # what came before was silence
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
        self._wet_fraction = after
