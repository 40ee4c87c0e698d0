"""Noise features of a waveform for distillation: log-mel statistics, or the mean of a Whisper encoder's output.

RobustGER used the latter, `WhisperEncoderFeatures`. `NoiseStatistics` needs no model, but does not replace it in a
comparison with the paper. Compute both once and store them; cut noisy and clean recordings of an utterance alike.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import torch

from audio_llm.asr.whisper_model import load_model
from audio_llm.errors import DataError
from audio_llm.features import N_MELS, SAMPLE_RATE, WIN_LENGTH, log_mel

_QUANTILES = (0.1, 0.5, 0.9)
_QUIET_FRACTION = 0.1  # of the frames; about as many of speech are pauses
_FRAME_SAMPLES = 320  # 20 ms, one frame of Whisper's encoder


class SoundEncoder(Protocol):
    """Turns a recording into a vector.

    Attributes:
        width: Length A of the vector.
    """

    width: int

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """Return (A,) float32 of a waveform (T,) float32 at 16 kHz, of any length."""
        ...


class NoiseStatistics:
    """Statistics of the log-mel energies over time; nothing is downloaded.

    In order, 80 bands each: mean, standard deviation, the 10, 50 and 90 % quantiles; last the noise floor, which is
    the energy of the mean band in the quietest tenth of the frames. All are natural logs of mel energy (the
    deviations their differences): 10 dB are 2.3.
    """

    width = (2 + len(_QUANTILES)) * N_MELS + 1

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """Return (401,) float32; less than 25 ms are padded with silence to 25 ms.

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1.

        Raises:
            DataError: The waveform has another shape or is not finite.
        """
        _check(waveform)
        padded = np.zeros(max(WIN_LENGTH, len(waveform)), dtype=np.float32)
        padded[: len(waveform)] = waveform
        log_mels, _ = log_mel(torch.from_numpy(padded)[None], torch.tensor([len(padded)]))
        energies = log_mels[0].double().numpy()
        loudness = np.sort(np.exp(energies).mean(axis=1))
        floor = np.log(loudness[: max(1, round(_QUIET_FRACTION * len(loudness)))].mean(keepdims=True))
        quantiles = np.quantile(energies, _QUANTILES, axis=0)
        return np.concatenate([energies.mean(axis=0), energies.std(axis=0), *quantiles, floor]).astype(np.float32)


class WhisperEncoderFeatures:
    """The mean of a Whisper encoder's output over the frames of the recording, not over the padding to 30 s.

    The encoder still processes the padding, as in its training; averaging over it would make the length of a
    recording outweigh its noise. Longer recordings are processed in windows of 30 s.

    Args:
        folder: Folder of a transformers model, or the name of one that was downloaded before.
        device: `cpu` (float32) or `cuda` (float16).

    Raises:
        ModelNotFoundError: There is no such model on this machine.
        ModelFormatError: It is not a Whisper model, or its weights are not in safetensors.
    """

    def __init__(self, folder: str | os.PathLike[str], device: str = "cpu") -> None:
        model = load_model(folder, device, offline=True)
        self._encoder = model.network.get_encoder()  # the decoder is dropped
        self._extractor = model.feature_extractor
        self.width = int(model.network.config.d_model)

    @torch.inference_mode()
    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """Return (width,) float32; less than 20 ms count as one frame.

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1.

        Raises:
            DataError: The waveform has another shape or is not finite.
        """
        _check(waveform)
        window = int(self._extractor.n_samples)
        total, count = torch.zeros(self.width), 0
        for start in range(0, max(1, len(waveform)), window):
            piece = waveform[start : start + window].astype(np.float32)
            frames = max(1, -(-len(piece) // _FRAME_SAMPLES))
            total += self._frames(piece)[:frames].float().sum(dim=0).cpu()
            count += frames
        return np.asarray((total / count).numpy())

    def _frames(self, piece: np.ndarray) -> torch.Tensor:
        """Return the encoder's output for one window, padding included: (frames, width)."""
        piece = piece if len(piece) else np.zeros(1, dtype=np.float32)
        features = self._extractor(piece, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        parameter = next(self._encoder.parameters())
        output: torch.Tensor = self._encoder(features.to(parameter.device, parameter.dtype)).last_hidden_state[0]
        return output


def _check(waveform: np.ndarray) -> None:
    if waveform.ndim != 1:
        raise DataError(f"a waveform of the shape {waveform.shape}", remedy="give one channel, (T,)")
    if not np.isfinite(waveform).all():
        raise DataError("the waveform holds infinite samples or NaN", remedy="look for damage in the recording")
