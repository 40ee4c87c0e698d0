"""The supervised semantic tokenizer's network: a CTC recognizer with a quantizer in its middle.

As S3Tokenizer (Du et al. 2024): the quantized states have to suffice to recognize the text. One half of a small
Conformer, one code of a finite scalar quantizer every 40 ms, the other half, characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from audio_llm import features
from audio_llm.asr.conformer import SUBSAMPLING, ConformerBlock, ConvSubsampling, output_lengths, rotation
from audio_llm.asr.ctc_model import SYMBOLS
from audio_llm.errors import ConfigError
from audio_llm.features import FRAME_RATE, valid_mask
from audio_llm.quantizers.base import Quantized
from audio_llm.quantizers.fsq import FSQ

TOKEN_RATE = FRAME_RATE / SUBSAMPLING  # 25 tokens a second


@dataclass(frozen=True)
class S3Config:
    """Size of the network.

    Attributes:
        channels: Channels of the two convolutions that subsample the features.
        width: Width of every layer.
        before: Conformer blocks before the quantizer.
        after: Conformer blocks after it, which only training and recognition need.
        heads: Attention heads.
        feedforward: Inner width of the feed-forward layers.
        kernel: Kernel size of the convolutions, in frames.
        levels: Levels of each dimension of the quantizer; their product is the number of tokens.
        dropout: Dropout rate in training.
    """

    channels: int = 24
    width: int = 144
    before: int = 3
    after: int = 3
    heads: int = 4
    feedforward: int = 432
    kernel: int = 15
    levels: tuple[int, ...] = (8, 5, 5, 5)
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.kernel % 2 == 0:
            remedy = "give heads of even width and an odd kernel"
            raise ConfigError(f"width {self.width}, {self.heads} heads, kernel {self.kernel}", remedy=remedy)


class S3Output(NamedTuple):
    """Output of a pass.

    Attributes:
        log_probs: (B, N, 29) float32, log-probability of each symbol in each 40 ms frame.
        lengths: (B,) int64, number of tokens of each.
        quantized: The tokens (as `codes`), their vectors and the values before quantization.
    """

    log_probs: Tensor
    lengths: Tensor
    quantized: Quantized


class S3Network(nn.Module):
    """Encoder, quantizer, and decoder from tokens to characters."""

    def __init__(self, config: S3Config) -> None:
        super().__init__()
        self.config = config
        self.front = ConvSubsampling(config)
        self.before = nn.ModuleList(ConformerBlock(config) for _ in range(config.before))
        self.quantizer = FSQ(config.levels)
        self.narrow = nn.Linear(config.width, self.quantizer.width)
        self.widen = nn.Linear(self.quantizer.width, config.width)
        self.after = nn.ModuleList(ConformerBlock(config) for _ in range(config.after))
        self.output = nn.Linear(config.width, len(SYMBOLS))

    def forward(self, mel: Tensor, lengths: Tensor) -> S3Output:
        """Tokenize and recognize features (B, F, 80), normalized, zeros after each end; lengths (B,) int64 frames."""
        quantized, counts = self.quantize(mel, lengths)
        return S3Output(self._write(quantized.values, counts), counts, quantized)

    def quantize(self, mel: Tensor, lengths: Tensor) -> tuple[Quantized, Tensor]:
        """Return the tokens (as `codes`) of features as for `forward`, and their number per utterance."""
        x, counts = self.encode(mel, lengths)
        return self.quantizer(self.narrow(x), valid_mask(counts, x.shape[1])), counts

    def encode(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states before quantization, (B, N, width) float32, and their number per utterance."""
        rate = self.config.dropout if self.training else 0.0
        counts = output_lengths(lengths)
        return self._blocks(self.before, self.front(mel, lengths, rate), counts, rate), counts

    def write(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return log-probabilities of symbols (B, N, 29) for tokens (B, N) int64; lengths (B,) int64 tokens."""
        return self._write(self.quantizer.decode(tokens), lengths)

    def _write(self, values: Tensor, counts: Tensor) -> Tensor:
        rate = self.config.dropout if self.training else 0.0
        x = self.widen(values.to(self.widen.weight.dtype)) * valid_mask(counts, values.shape[1])[:, :, None]
        return functional.log_softmax(self.output(self._blocks(self.after, x, counts, rate)).float(), dim=-1)

    def _blocks(self, blocks: nn.ModuleList, x: Tensor, counts: Tensor, rate: float) -> Tensor:
        mask = valid_mask(counts, x.shape[1])
        turns = rotation(x.shape[1], self.config.width // self.config.heads, x.device)
        for block in blocks:
            x = block(x, mask, turns, rate)
        return x


def log_mel(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the network's input features, (B, F, 80) float32, and the number of frames per utterance."""
    mel, frames = features.log_mel(waveforms, lengths)
    return features.normalize(mel, frames), frames
