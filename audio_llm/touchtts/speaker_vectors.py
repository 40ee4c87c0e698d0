"""Speaker vectors by the published CAM++ file of CosyVoice (3D-Speaker), with onnxruntime.

The network is the user's own file, `campplus.onnx`; its features, Kaldi's filter bank of 80 bands minus the mean over
time, are computed by transformers.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.errors import ModelFormatError
from audio_llm.hub import file_sha256
from audio_llm.onnx_file import accepts_shape, open_session

SAMPLE_RATE = 16_000  # Hz
N_MELS = 80  # bands
WIDTH = 192  # of a speaker vector
_WIN_LENGTH, _HOP_LENGTH, _N_FFT = 400, 160, 512  # samples
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_FLOOR = 1.1920929e-07  # smallest energy of a band


class CamPlusPlus:
    """The speaker encoder; it runs on the CPU. `fingerprint` is the SHA-256 of the file.

    Args:
        path: The .onnx file.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelNotFoundError: No such file.
        ModelFormatError: The file is not such a network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._session = open_session(self.path, "CAM++")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not accepts_shape(inputs[0], (1, None, N_MELS)):
            signature = ", ".join(f"{part.name} {part.type} {part.shape}" for part in inputs)
            raise self._wrong(f"the input should be features tensor(float) [B, T, {N_MELS}], not {signature}")
        self._input = inputs[0].name
        self.fingerprint = file_sha256(self.path)
        self._run(np.zeros((100, N_MELS), np.float32))

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """Return the unit-length speaker vector (192,) float32 of speech (T,) float32 at 16 kHz of 25 ms or more."""
        features = kaldi_filter_bank(waveform)
        vector = self._run(features - features.mean(0))
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _run(self, features: np.ndarray) -> np.ndarray:
        try:
            output = np.asarray(self._session.run(None, {self._input: features[None]})[0])
        except Exception as error:  # onnxruntime's errors have no common base
            raise self._wrong(f"the network fails on {len(features)} frames: {error}") from None
        if not np.isfinite(output).all():
            raise self._wrong("its output is not finite")
        if output.size != WIDTH:
            raise self._wrong(f"its output is {output.dtype} {output.shape}, not {WIDTH} numbers")
        return output.reshape(-1).astype(np.float32)

    def _wrong(self, what: str) -> ModelFormatError:
        return ModelFormatError(what, path=self.path, remedy="give campplus.onnx of CosyVoice")


def kaldi_filter_bank(waveform: np.ndarray) -> np.ndarray:
    """Return Kaldi's log filter bank without dither: (F, 80) float32, from (T,) float32 at 16 kHz in -1..1."""
    from transformers.audio_utils import spectrogram, window_function

    features = spectrogram(
        np.asarray(waveform, np.float64),
        window_function(_WIN_LENGTH, "povey", periodic=False),
        frame_length=_WIN_LENGTH,
        hop_length=_HOP_LENGTH,
        fft_length=_N_FFT,
        power=2.0,
        center=False,
        preemphasis=_PREEMPHASIS,
        mel_filters=_filters(),
        log_mel="log",
        mel_floor=_FLOOR,
        remove_dc_offset=True,
    )
    return np.asarray(features.T, np.float32)


@functools.cache
def _filters() -> Any:
    """Return triangular mel filters (257, 80)."""
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(
        num_frequency_bins=_N_FFT // 2 + 1,
        num_mel_filters=N_MELS,
        min_frequency=_LOWEST_HZ,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
