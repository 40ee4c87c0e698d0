"""The character CTC network: log-mel features to symbol log-probabilities every 40 ms.

A Conformer with intermediate CTC (Lee and Watanabe 2021), which helps with little data.
"""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from audio_llm.asr.conformer import SUBSAMPLING, ConformerBlock, ConvSubsampling, output_lengths, rotation
from audio_llm.errors import ConfigError
from audio_llm.features import FRAME_RATE, valid_mask

BLANK = 0
SYMBOLS = "\0 'abcdefghijklmnopqrstuvwxyz"  # symbol i of the network's output; the first is the blank
FRAME_S = SUBSAMPLING / FRAME_RATE  # seconds per output frame

_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number != BLANK}


@dataclass(frozen=True)
class CtcConfig:
    """Size of the network.

    Attributes:
        channels: Channels of the two subsampling convolutions.
        width: Model width.
        layers: Conformer blocks.
        heads: Attention heads.
        feedforward: Inner width of the feed-forward layers.
        kernel: Kernel size of the convolution of a block, frames.
        fold: Output frames that the blocks process as one; 2 halves the work, and each then predicts two symbols.
        dropout: Dropout rate in training.
        phones: Phone classes that the middle layer predicts in every output frame; 0 for no phone output.
    """

    channels: int = 32
    width: int = 176
    layers: int = 8
    heads: int = 4
    feedforward: int = 528
    kernel: int = 15
    fold: int = 2
    dropout: float = 0.1
    phones: int = 0

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} does not split into {self.heads} heads of even width")
        if self.kernel % 2 == 0 or self.fold < 1:
            raise ConfigError(
                f"kernel {self.kernel}, fold {self.fold}", remedy="give an odd kernel and a fold of 1 or 2"
            )


PRESETS = {
    "small": CtcConfig(),
    "tiny": CtcConfig(channels=16, width=112, layers=6, heads=4, feedforward=336, dropout=0.05),
}


@dataclass(frozen=True)
class CtcOutput:
    """Output of the network.

    Attributes:
        log_probs: (B, N, 29) float32, log-probability of each symbol in each 40 ms frame.
        lengths: (B,) int64, output frames of each utterance.
        halfway: (B, N, 29) float32, the same of the middle layer; None unless requested.
        phones: (B, N, phones) float32, log-probability of each phone at the middle layer; None unless requested.
    """

    log_probs: torch.Tensor
    lengths: torch.Tensor
    halfway: torch.Tensor | None = None
    phones: torch.Tensor | None = None


class CtcModel(nn.Module):
    """Conformer encoder with a CTC output."""

    def __init__(self, config: CtcConfig) -> None:
        super().__init__()
        self.config = config
        self.front = ConvSubsampling(config, config.fold)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))
        self.output = nn.Linear(config.width, config.fold * len(SYMBOLS))
        if config.phones:
            self.phone_output = nn.Linear(config.width, config.fold * config.phones)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor, dropout: float | None = None, halfway: bool = False
    ) -> CtcOutput:
        """Recognize a batch.

        Args:
            features: (B, F, 80) float32, normalized, zero-padded.
            lengths: (B,) int64, feature frames of each, at least 1.
            dropout: Dropout rate, also in eval mode; None: the configured rate in training, 0 in eval mode.
            halfway: Also return the predictions of the middle layer.
        """
        rate = (self.config.dropout if self.training else 0.0) if dropout is None else dropout
        x = self.front(features, lengths, rate)
        lengths = output_lengths(lengths)
        mask = valid_mask((lengths + self.config.fold - 1) // self.config.fold, x.shape[1])
        turns = rotation(x.shape[1], self.config.width // self.config.heads, x.device)
        middle = phones = None
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask, turns, rate)
            if halfway and number == len(self.blocks) // 2:
                middle = self._log_probs(self.output, x, features.shape[1])
                phones = self._log_probs(self.phone_output, x, features.shape[1]) if self.config.phones else None
        return CtcOutput(self._log_probs(self.output, x, features.shape[1]), lengths, middle, phones)

    def _log_probs(self, output: nn.Linear, x: torch.Tensor, feature_frames: int) -> torch.Tensor:
        logits = output(x).float().view(x.shape[0], -1, output.out_features // self.config.fold)
        return functional.log_softmax(logits[:, : (feature_frames + 3) // SUBSAMPLING], dim=-1)


def encode_symbols(text: str) -> list[int] | None:
    """Return symbol numbers of a text; accents are dropped; None where it has anything but letters, ' and spaces."""
    plain = unicodedata.normalize("NFKD", " ".join(text.lower().split()))
    numbers = [_NUMBERS.get(symbol) for symbol in plain if not unicodedata.combining(symbol)]
    return None if None in numbers else [number for number in numbers if number is not None]


def decode_symbols(numbers: list[int]) -> str:
    """Return the text of symbol numbers without blanks, single spaces between words."""
    return " ".join("".join(SYMBOLS[number] for number in numbers).split())


def frames_needed(numbers: list[int]) -> int:
    """Return the fewest output frames that can spell this: equal neighbors need a blank between them."""
    return len(numbers) + sum(a == b for a, b in itertools.pairwise(numbers))
