"""The extractor's step in few operations: the same weights and results as `Extractor.step`, for one stream at a time.

In a small graph each operation costs a microsecond or two whatever it does. So bins are kept in the order (bin of the
band, band), by which features and filters are turned once each; sums over few rows are products with small matrices;
gates are added to within the products; and each memory is a state of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.tse.extractor import Extractor, ExtractorState
from audio_llm.tse.frames import BINS, CHUNK, FRAME, OVERLAP, inverse, transform

EARS = 2
_PARTS = 4  # real and imaginary parts of both ears' spectra: left, left, right, right
_LEFT = (0, 1, 2, 3, 0, 1, 1, 0)  # factors of the products of parts
_RIGHT = (0, 1, 2, 3, 2, 3, 2, 3)
_SUMS = (  # of those products: power of the left and of the right, and both parts of left times conjugate of right
    (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0),
)
_FLOOR = 1e-5  # of magnitudes, as the extractor's
_SLOPE = 0.5 * (0.3 - 1.0)  # exponent of a power that compresses a spectrum to the power 0.3
_LOGS = (  # of the logarithms of both powers: level, ratio, and the logarithms of what the rows before are scaled by
    (0.05, 0.05),
    (0.1, -0.1),
    (_SLOPE, 0.0),
    (_SLOPE, 0.0),
    (0.0, _SLOPE),
    (0.0, _SLOPE),
    (-0.5, -0.5),
    (-0.5, -0.5),
)
_FILTERED = (
    0,
    1,
    2,
    3,
    1,
    0,
    3,
    2,
)  # parts that the filters' real and imaginary parts meet, to give real and imaginary
_SIGNS = (1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0)


class ExtractorStep(nn.Module):
    """A step for one stream; its state is a list of tensors, see `states`.

    Args:
        extractor: Whose weights it uses.
    """

    order: Tensor
    rows: Tensor
    forward_table: Tensor
    backward_table: Tensor
    left: Tensor
    right: Tensor
    sums: Tensor
    logs: Tensor
    floor: Tensor
    filtered: Tensor
    signs: Tensor

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor, self.config = extractor, extractor.config
        config = self.config
        self.bins = config.bands * config.stride  # with those that only fill the last band
        order = torch.arange(self.bins).view(config.bands, config.stride).T.flatten()
        self.register_buffer("order", order)
        own = torch.arange(config.stride * config.outputs * EARS * _PARTS).view(config.stride, -1)
        self.register_buffer("rows", own.T.flatten())  # of the filters: (output, ear, part, bin of the band)
        self.register_buffer("forward_table", transform(torch.eye(FRAME)).flatten(1))
        self.register_buffer("backward_table", inverse(torch.eye(2 * BINS).view(-1, 2, BINS)))
        self.register_buffer("left", torch.tensor(_LEFT))
        self.register_buffer("right", torch.tensor(_RIGHT))
        self.register_buffer("sums", torch.tensor(_SUMS))
        self.register_buffer("logs", torch.tensor(_LOGS))
        floor = torch.zeros(_PARTS, self.bins)
        floor[:EARS] = torch.where(order < BINS, _FLOOR**2, 1.0)  # a logarithm of 0 where there is no bin
        self.register_buffer("floor", floor)
        self.register_buffer("filtered", torch.tensor(_FILTERED))
        self.register_buffer("signs", torch.tensor(_SIGNS)[:, None])

    def states(self, state: ExtractorState) -> dict[str, Tensor]:
        """Return a state of `Extractor.step`, of one stream, in the form of this one: zeros stay zeros."""
        past = functional.pad(state.past[0], (0, self.bins - BINS))[..., self.order].flatten(0, 1)
        found = {"tail": state.tail, "past": past, "overlap": state.overlap[0]}
        return found | {f"hidden_{number}": hidden for number, hidden in enumerate(state.hidden[:, 0])}

    def forward(
        self, chunk: Tensor, film: Tensor | None, tail: Tensor, past: Tensor, overlap: Tensor, *hidden: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Extract from one chunk.

        Args:
            chunk: (1, 2, 128) float32.
            film: (blocks, 2, C), or None where the network takes no embedding.
            tail: (1, 2, 64).
            past: ((context - 1) x 8, bins).
            overlap: (outputs x 2, 64).
            hidden: (bands, H) of each block.

        Returns:
            (outputs x 2, 128), and the next state in the same order.
        """
        spectra = (torch.cat([tail, chunk], dim=-1) @ self._forward()).view(_PARTS, self.bins)
        seen = torch.cat([past, self._features(spectra)], dim=0)  # (context x 8, bins)
        rows = seen.view(-1, self.config.bands).T  # (bands, context x 8 x stride)
        embed: Any = self.extractor.embed
        x = (rows.unsqueeze(1) @ embed.weight).squeeze(1) + embed.bias
        memories = []
        for number, block in enumerate(self.extractor.blocks):
            x, memory = _block(block, x, None if film is None else film[number], hidden[number])
            memories.append(memory)
        frames = self._filter(x, spectra) @ self._backward()  # (outputs x 2, FRAME)
        start, middle, end = frames.split([OVERLAP, CHUNK - OVERLAP, OVERLAP], dim=-1)
        sound = torch.cat([start + overlap, middle], dim=-1)
        return sound, [chunk[..., CHUNK - OVERLAP :], seen[len(self.logs) :], end, *memories]

    def _forward(self) -> Tensor:
        """Return window and DFT, (FRAME, 2 x bins), the bins that only fill being zero."""
        table = functional.pad(self.forward_table.view(FRAME, 2, BINS), (0, self.bins - BINS))
        return table[..., self.order].view(FRAME, 2 * self.bins)

    def _backward(self) -> Tensor:
        """Return inverse DFT and window, (2 x bins, FRAME), the bins that only fill being zero."""
        table = functional.pad(self.backward_table.view(2, BINS, FRAME), (0, 0, 0, self.bins - BINS))
        return table[:, self.order].view(2 * self.bins, FRAME)

    def _features(self, spectra: Tensor) -> Tensor:
        """Return (8, bins) of (4, bins)."""
        products = spectra[self.left] * spectra[self.right]
        powers, phase = torch.addmm(self.floor, self.sums, products).split([EARS, EARS])
        levels, scales = (self.logs @ powers.log()).split([EARS, len(self.logs) - EARS])
        return torch.cat([torch.cat([spectra, phase]) * scales.exp(), levels])

    def _filter(self, x: Tensor, spectra: Tensor) -> Tensor:
        """Return filtered spectra (outputs x 2, 2 x bins) of bands (bands, C) and spectra (4, bins)."""
        own: Any = self.extractor.filters.linear
        weight, bias = own.weight[..., self.rows], own.bias[:, self.rows]
        filters = (self.extractor.norm(x).unsqueeze(1) @ weight).squeeze(1) + bias  # (bands, outputs x 2 x 4 x stride)
        filters = filters.T.reshape(-1, 1, _PARTS, self.bins)
        parts = (spectra[self.filtered] * self.signs).view(2, _PARTS, self.bins)
        return (filters * parts).sum(dim=2).view(-1, 2 * self.bins)


def _block(block: Any, x: Tensor, film: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Transform (bands, C) with film (2, C) and the memory (bands, H); return both anew."""
    y = block.band_norm(x)
    if film is not None:
        y = y * (1.0 + film[0]) + film[1]
    turned = y.T
    near = block.near(turned.unsqueeze(0)).squeeze(0)
    mixed = torch.addmm(near, turned, block.far.weight.T).T  # but for the bias of `far`, a constant behind `up`
    bias = torch.outer(block.far.bias, block.up.weight.sum(dim=1)) + block.up.bias
    x = x + block.down(functional.silu(torch.addmm(bias, mixed, block.up.weight.T)))
    memory = gru_step(block.gru, block.time_norm(x), hidden)
    return x + block.out(memory), memory


def gru_step(gru: nn.GRU, x: Tensor, hidden: Tensor) -> Tensor:
    """Return the next memory (rows, H) of a GRU of one layer for an input (rows, C)."""
    to_x, to_hidden, bias_x, bias_hidden = gru.parameters()
    size = 2 * gru.hidden_size
    gates = torch.addmm(bias_x[:size] + bias_hidden[:size], x, to_x[:size].T)
    reset, keep = torch.addmm(gates, hidden, to_hidden[:size].T).sigmoid().chunk(2, dim=-1)
    own = torch.addmm(bias_x[size:], x, to_x[size:].T)
    new = (own + reset * torch.addmm(bias_hidden[size:], hidden, to_hidden[size:].T)).tanh()
    return new + keep * (hidden - new)
