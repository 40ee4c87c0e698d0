"""Log-mel spectra for vocoders: 50 frames per second, two per semantic token of 40 ms."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from audio_llm.features import triangular_filters

SAMPLE_RATE = 16_000  # Hz
N_FFT = 1024  # samples of a frame, 64 ms
HOP_LENGTH = 320  # samples, 20 ms
FRAME_RATE = SAMPLE_RATE / HOP_LENGTH
N_MELS = 80
FLOOR = 1e-4  # smallest magnitude of a band
LOG_FLOOR = -9.210340  # its natural logarithm, the value of silence


def log_mel(waveforms: Tensor) -> Tensor:
    """Return natural logarithms of mel magnitudes, one frame centered on each 20 ms begun.

    Args:
        waveforms: (B, T) float32 at 16 kHz in -1..1.

    Returns:
        (B, ceil(T / 320), 80) float32.
    """
    count = -(-waveforms.shape[1] // HOP_LENGTH)
    side = (N_FFT - HOP_LENGTH) // 2
    padded = functional.pad(waveforms.float(), (side, side + count * HOP_LENGTH - waveforms.shape[1]))
    window = torch.hann_window(N_FFT, device=waveforms.device)
    spectra = torch.fft.rfft(padded.unfold(1, N_FFT, HOP_LENGTH) * window).abs()
    return (spectra @ _filters().to(spectra).T).clamp_min(FLOOR).log()


@functools.cache
@torch.inference_mode(False)  # a tensor of inference mode could not be trained with later
def _filters() -> Tensor:
    filters = triangular_filters(N_MELS, N_FFT, 0.0, 8000.0)
    return filters / filters.sum(1, keepdim=True)
