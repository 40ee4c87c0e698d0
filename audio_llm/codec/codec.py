"""Waveforms to acoustic codes and back, by a trained model."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.features import valid_mask
from audio_llm.simulation.mono import active_power

KIND = "codec"
LEVEL_DB = -25.0  # RMS level re full scale of the input that codecs are trained for


class Codes(NamedTuple):
    """Acoustic codes of a batch.

    Attributes:
        codes: (B, N) int64, 0 after each end.
        lengths: (B,) int64, number of codes of each.
    """

    codes: Tensor
    lengths: Tensor


class SpeechCodec:
    """An acoustic codec.

    Args:
        network: The network; it is put into eval mode.
    """

    def __init__(self, network: CodecNetwork) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, name_or_dir: str | os.PathLike[str], device: str = "cpu") -> SpeechCodec:
        """Load the codec of a model directory; raises as `hub.load_network`."""
        return cls(load_codec_network(name_or_dir, device))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the codes, for models that depend on them.

        Further training of the decoder alone does not change it, since the codes keep their meaning.
        """
        config = self.network.config
        levels = config.levels if config.quantizer == "fsq" else ()
        digest = hashlib.sha256(repr((config.quantizer, config.fold, levels)).encode())
        for part in self.network.coding_parts():
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Number of different codes."""
        return self.network.quantizer.size

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.network.config.frame_rate

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> Codes:
        """Return the codes of waveforms (B, T) float32 at 16 kHz, zero-padded; lengths (B,) int64 in samples.

        Their number depends only on the length: one for each 10 ms begun (20 ms at 50 codes per second).
        """
        if not len(lengths) or not int(lengths.max()):
            return Codes(torch.zeros(len(lengths), 0, dtype=torch.int64), torch.zeros_like(lengths))
        quantized, mask = self.network.quantize(waveforms, lengths)
        return Codes(quantized.codes * mask, mask.sum(1))

    @torch.inference_mode()
    def decode(self, codes: Codes, samples: Tensor) -> Tensor:
        """Return the waveforms (B, T) float32 at 16 kHz for codes; samples (B,) int64 are their lengths."""
        if not codes.codes.shape[1]:
            return torch.zeros(len(samples), int(samples.max()) if len(samples) else 0)
        sound = self.network.decode(codes.codes, codes.lengths)[:, : int(samples.max())]
        return sound * valid_mask(samples, sound.shape[1])


def to_level(waveform: np.ndarray) -> float:
    """Return the gain that brings the speech of (T,) float32 to `LEVEL_DB`; 1 for silence."""
    return gain_of(active_power(waveform))


def gain_of(power: float) -> float:
    """Return the gain that brings a mean power to `LEVEL_DB`; 1 for a power of 0."""
    return 10.0 ** (LEVEL_DB / 20.0) / power**0.5 if power > 0.0 else 1.0


def load_codec_network(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> CodecNetwork:
    """Return a codec's network in eval mode; raises as `hub.load_network`."""
    return hub.load_network(name_or_dir, KIND, CodecConfig, CodecNetwork, device)
