"""What every tokenizer gives."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

SAMPLE_RATE = 16_000  # Hz, what tokenizers take


class Tokens(NamedTuple):
    """Semantic tokens of a batch.

    Attributes:
        tokens: (B, N) int64, 0 behind each end.
        lengths: (B,) int64, tokens of each.
    """

    tokens: Tensor
    lengths: Tensor


class SemanticTokenizer(Protocol):
    """Cuts speech into tokens.

    Attributes:
        size: How many different tokens there are.
        frame_rate: Tokens per second.
        fingerprint: Of everything that decides which token comes out, for models that depend on it.
    """

    @property
    def size(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, waveforms: Tensor, lengths: Tensor) -> Tokens:
        """Return the tokens of waveforms (B, T) float32 at 16 kHz, zeros behind each end; lengths (B,) int64 samples.

        How many there are depends on the length alone.
        """
        ...
