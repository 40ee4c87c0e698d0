"""Protocol and result of tokenizers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

SAMPLE_RATE = 16_000  # Hz, of the input of tokenizers


class Tokens(NamedTuple):
    """Semantic tokens of a batch.

    Attributes:
        tokens: (B, N) int64, 0 after each end.
        lengths: (B,) int64, number of tokens of each.
    """

    tokens: Tensor
    lengths: Tensor


class SemanticTokenizer(Protocol):
    """Converts speech to tokens.

    Attributes:
        size: Number of different tokens.
        frame_rate: Tokens per second.
        fingerprint: Hash of everything that determines the tokens, for models that depend on them.
    """

    @property
    def size(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, waveforms: Tensor, lengths: Tensor) -> Tokens:
        """Return the tokens of waveforms (B, T) float32 at 16 kHz, zeros after each end; lengths (B,) int64 samples.

        Their number depends on the length alone.
        """
        ...
