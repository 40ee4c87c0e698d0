"""Speech to semantic tokens by a trained supervised tokenizer, and tokens to text."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.asr.ctc import CtcPosteriors
from audio_llm.features import valid_mask
from audio_llm.tokenizer.base import Tokens
from audio_llm.tokenizer.s3_model import TOKEN_RATE, S3Config, S3Network, log_mel
from audio_llm.training.perceptual import PerceptualLoss

KIND = "s3-tokenizer"
_LEAST_FRAMES = 1  # feature frames; shorter sounds have no token


class S3Tokenizer:
    """The tokenizer.

    Args:
        network: The network; it is put into eval mode and its weights are frozen.
        fingerprint: SHA-256 of its weights.
    """

    frame_rate = TOKEN_RATE

    def __init__(self, network: S3Network, fingerprint: str) -> None:
        self.network, self.fingerprint = network.eval().requires_grad_(False), fingerprint

    @classmethod
    def load(cls, name_or_dir: str | os.PathLike[str], device: str = "cpu") -> S3Tokenizer:
        """Return the tokenizer of a model directory; raises as `hub.load_network`."""
        network = load_s3_network(name_or_dir, device)
        return cls(network, hub.fingerprint(name_or_dir))

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.network.quantizer.size

    @property
    def width(self) -> int:
        """Width of the states that are quantized to tokens."""
        return self.network.config.width

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> Tokens:
        """Return tokens (see `SemanticTokenizer.encode`)."""
        mel, frames = log_mel(waveforms, lengths)
        if not len(frames) or int(frames.max()) < _LEAST_FRAMES:
            return Tokens(torch.zeros(len(frames), 0, dtype=torch.int64), torch.zeros_like(frames))
        quantized, counts = self.network.quantize(mel, frames.clamp_min(1))
        counts = counts * (frames > 0)
        return Tokens(quantized.codes * valid_mask(counts, quantized.codes.shape[1]), counts)

    @torch.inference_mode()
    def states(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the states before quantization, one per 40 ms, (B, N, width) float32, of waveforms as for `encode`.

        For models that take continuous features instead of tokens; 0 after each end.
        """
        mel, frames = log_mel(waveforms, lengths)
        if not len(frames) or int(frames.max()) < _LEAST_FRAMES:
            return mel.new_zeros(len(frames), 0, self.network.config.width)
        hidden, counts = self.network.encode(mel, frames.clamp_min(1))
        return hidden * valid_mask(counts * (frames > 0), hidden.shape[1])[:, :, None]

    def uncut(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the values before quantization, in levels (B, N, D) float32, for waveforms as for `encode`.

        Gradients reach the waveforms, so that a codec can learn to preserve the content. Values after each end are
        arbitrary. The tokenizer moves to the waveforms' device.
        """
        self.network.to(waveforms.device)
        mel, frames = log_mel(waveforms, lengths)
        bounded = self.network.quantize(mel, frames.clamp_min(1))[0].bounded
        return bounded * (0.5 * self.network.quantizer.counts)

    @torch.inference_mode()
    def words(self, tokens: Tokens) -> list[str]:
        """Return the greedy CTC text of each utterance's tokens."""
        if not tokens.tokens.shape[1]:
            return [""] * len(tokens.lengths)
        rows = self.network.write(tokens.tokens, tokens.lengths.clamp_min(1)).double().cpu().numpy()
        return [CtcPosteriors(row[: int(count)]).greedy_text() for row, count in zip(rows, tokens.lengths, strict=True)]


def load_perceptual_loss(name_or_dir: str | os.PathLike[str]) -> PerceptualLoss:
    """Return a tokenizer as the perceptual loss of other trainings; raises as `hub.load_network`."""
    tokenizer = S3Tokenizer.load(name_or_dir)
    return PerceptualLoss(hub.find_model(name_or_dir).resolve().name, tokenizer.fingerprint, tokenizer.uncut)


def load_s3_network(name_or_dir: str | os.PathLike[str] | Path, device: str = "cpu") -> S3Network:
    """Return a tokenizer's network in eval mode; raises as `hub.load_network`."""
    return hub.load_network(name_or_dir, KIND, S3Config, S3Network, device)
