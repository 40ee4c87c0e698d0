"""A causal vocoder that shares its layers with the codec and streams: log-mel spectra to waveforms.

ConvNeXt blocks over mel frames of 20 ms, then over frames of 10 ms, then an inverse transform. Its lookahead is two mel
frames, so that the output of a stream equals that of the whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm import hub
from audio_llm.codec import istft
from audio_llm.codec.istft import BINS, SIDE, SoundState
from audio_llm.codec.layers import ConvNeXtStack
from audio_llm.codec.mel import HOP_LENGTH, LOG_FLOOR, N_MELS
from audio_llm.errors import ConfigError

KIND = "vocoder"
_FINE = HOP_LENGTH // istft.HOP_LENGTH  # frames of the transform per mel frame
_CENTER, _SPREAD = -5.0, 2.5  # approximate mean and deviation of log-mel energies of speech


@dataclass(frozen=True)
class VocoderConfig:
    """Size of the network.

    Attributes:
        width: Width of every layer.
        blocks: Number of blocks over mel frames.
        fine_blocks: Number of blocks over frames of 10 ms.
        expansion: Ratio of a block's inner width to its width.
        lookahead: Future mel frames of 20 ms that the output depends on.
    """

    width: int = 192
    blocks: int = 3
    fine_blocks: int = 6
    expansion: int = 3
    lookahead: int = 2

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.fine_blocks, self.expansion) < 1 or self.lookahead < 0:
            raise ConfigError(f"{self}", remedy="give 1 or more, and a lookahead of 0 or more")


class VocoderState(NamedTuple):
    """State of a stream.

    Attributes:
        coarse: State of the blocks over mel frames (see `ConvNeXtStack.step`).
        fine: State of the blocks over frames of 10 ms.
        sound: State of the inverse transform.
        waiting: Mel frames still needed before there is output.
        early: Samples still to be dropped at the start of the output.
    """

    coarse: Tensor
    fine: Tensor
    sound: SoundState
    waiting: int
    early: int


class Vocoder(nn.Module):
    """The vocoder."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Linear(N_MELS, config.width)
        self.coarse = ConvNeXtStack(config.width, config.blocks, config.expansion, causal=True)
        self.split = nn.Linear(config.width, _FINE * config.width)
        self.fine = ConvNeXtStack(config.width, config.fine_blocks, config.expansion, causal=True)
        self.leave = nn.Linear(config.width, 2 * BINS)

    def forward(self, mel: Tensor) -> Tensor:
        """Return the waveforms (B, N x 320) float32 at 16 kHz of log-mel frames (B, N, 80)."""
        if not mel.shape[1]:
            return mel.new_zeros(len(mel), 0)
        mel = functional.pad(mel, (0, 0, 0, self.config.lookahead), value=LOG_FLOOR)
        everywhere = torch.ones(mel.shape[:2], dtype=torch.bool, device=mel.device)
        x = self._split(self.coarse(self._enter(mel), everywhere))[:, _FINE * self.config.lookahead :]
        everywhere = torch.ones(x.shape[:2], dtype=torch.bool, device=mel.device)
        return istft.to_sound(self.leave(self.fine(x, everywhere)), everywhere)

    def first_state(self) -> VocoderState:
        """Return the state of one stream before its first frame."""
        coarse, fine = self.coarse.first_state(), self.fine.first_state()
        return VocoderState(coarse, fine, istft.first_state(1, coarse.device), self.config.lookahead, SIDE)

    @torch.inference_mode()
    def step(self, mel: Tensor, state: VocoderState, last: bool = False) -> tuple[Tensor, VocoderState]:
        """Return the samples that the next frames complete, and the new state.

        The concatenated samples equal the output of `forward` for all frames.

        Args:
            mel: (1, N, 80) float32, any N.
            state: State after the frames before.
            last: Whether these are the last frames; then the rest of the output is returned.

        Returns:
            (1, T) float32; T can be 0.
        """
        if last:
            mel = functional.pad(mel, (0, 0, 0, self.config.lookahead), value=LOG_FLOOR)
        pieces = [mel.new_zeros(1, 0)]
        if mel.shape[1]:
            x, coarse = self.coarse.step(self._enter(mel), state.coarse)
            skipped = min(state.waiting, x.shape[1])
            x = self._split(x[:, skipped:])
            state = state._replace(coarse=coarse, waiting=state.waiting - skipped)
            if x.shape[1]:
                x, fine = self.fine.step(x, state.fine)
                sound, rest = istft.next_sound(self.leave(x), state.sound)
                pieces.append(sound[:, state.early :])
                state = state._replace(fine=fine, sound=rest, early=max(0, state.early - sound.shape[1]))
        if last and not state.waiting and not state.early:
            pieces.append(istft.last_sound(state.sound))
        return torch.cat(pieces, dim=1), state

    def _enter(self, mel: Tensor) -> Tensor:
        entered: Tensor = self.enter((mel - _CENTER) / _SPREAD)
        return entered

    def _split(self, x: Tensor) -> Tensor:
        return self.split(x).unflatten(2, (_FINE, -1)).flatten(1, 2)


def load_vocoder(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Vocoder:
    """Return a vocoder of a model directory in eval mode; raises as `hub.load_network`."""
    return hub.load_network(name_or_dir, KIND, VocoderConfig, Vocoder, device)
