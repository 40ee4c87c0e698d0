"""The extractor's step in few operations: the same weights and results as `Extractor.step`, for one stream at a time.

In a small graph each operation costs a microsecond or two, whatever it computes. So bins are stored in the order (bin
of the band, band), which transposes features and filters once each; sums over few rows are products with small
matrices; gates are accumulated within the products; and each hidden state is a separate state of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.tse.extractor import Extractor, ExtractorState
from audio_llm.tse.frames import BINS, CHUNK, FRAME, OVERLAP, inverse, transform, transform_long

EARS = 2
_PARTS = 4  # real and imaginary parts of both ears' spectra: left, left, right, right
_LEFT = (0, 1, 2, 3, 0, 1, 1, 0)  # factors of the products of parts
_RIGHT = (0, 1, 2, 3, 2, 3, 2, 3)
_SUMS = (  # sums of those products: power of left and right, and both parts of left times the conjugate of right
    (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0),
)
_FLOOR = 1e-5  # floor of magnitudes, as in the extractor
_SLOPE = 0.5 * (0.3 - 1.0)  # exponent of a power that compresses a spectrum to the power 0.3
_LOGS = (  # weights of both log powers: level, ratio, and the log scales of the rows before
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
)  # parts that the filters' real and imaginary parts are multiplied by, for the real and the imaginary result
_SIGNS = (1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0)


class ExtractorStep(nn.Module):
    """A step for one stream; its state is a list of tensors, see `states`.

    Args:
        extractor: The trained extractor, whose weights are used.
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
    fine_order: Tensor
    fine_table: Tensor
    fine_floor: Tensor
    filtered: Tensor
    signs: Tensor

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor, self.config = extractor, extractor.config
        config = self.config
        self.bins = config.bands * config.stride  # including the padding of the last band
        order = _order(config.bands, config.stride)
        self.register_buffer("order", order)
        if config.window:
            fine_order = _order(config.bands, config.stride * config.fine)
            self.register_buffer("fine_order", fine_order)
            self.register_buffer("fine_table", transform_long(torch.eye(config.window)).flatten(1))
            self.register_buffer("fine_floor", _floor(fine_order, config.window // 2 + 1))
        indices = torch.arange(config.stride * config.outputs * EARS * _PARTS).view(config.stride, -1)
        self.register_buffer("rows", indices.T.flatten())  # rows of the filters: (output, ear, part, bin of the band)
        self.register_buffer("forward_table", transform(torch.eye(FRAME)).flatten(1))
        self.register_buffer("backward_table", inverse(torch.eye(2 * BINS).view(-1, 2, BINS)))
        self.register_buffer("left", torch.tensor(_LEFT))
        self.register_buffer("right", torch.tensor(_RIGHT))
        self.register_buffer("sums", torch.tensor(_SUMS))
        self.register_buffer("logs", torch.tensor(_LOGS))
        self.register_buffer("floor", _floor(order, BINS))
        self.register_buffer("filtered", torch.tensor(_FILTERED))
        self.register_buffer("signs", torch.tensor(_SIGNS)[:, None])

    def states(self, state: ExtractorState) -> dict[str, Tensor]:
        """Convert a state of `Extractor.step` for one stream to the states of this module; zeros stay zeros."""
        past = functional.pad(state.past[0], (0, self.bins - BINS))[..., self.order].flatten(0, 1)
        result = {"tail": state.tail, "past": past, "overlap": state.overlap[0]}
        return result | {f"hidden_{number}": hidden for number, hidden in enumerate(state.hidden[:, 0])}

    def forward(
        self, chunk: Tensor, film: Tensor | None, tail: Tensor, past: Tensor, overlap: Tensor, *hidden: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Extract from one chunk.

        Args:
            chunk: (1, 2, 128) float32.
            film: (blocks, 2, C), or None where the network takes no embedding.
            tail: (1, 2, 64), more with a long window (`ExtractorConfig.tail`).
            past: ((context - 1) x 8, bins).
            overlap: (outputs x 2, 64).
            hidden: (bands, H) of each block.

        Returns:
            (outputs x 2, 128), and the next state in the same order.
        """
        extended = torch.cat([tail, chunk], dim=-1)
        spectra = (extended[..., self.config.tail - OVERLAP :] @ self._forward()).view(_PARTS, self.bins)
        features = torch.cat([past, self._features(spectra, self.floor)], dim=0)  # (context x 8, bins)
        rows = features.view(-1, self.config.bands)  # (context x 8 x stride, bands)
        if self.config.window:
            fine = self._features((extended @ self._forward_long()).view(_PARTS, -1), self.fine_floor)
            rows = torch.cat([rows, fine.view(-1, self.config.bands)], dim=0)
        rows = rows.T
        embed: Any = self.extractor.embed
        x = (rows.unsqueeze(1) @ embed.weight).squeeze(1) + embed.bias
        memories = []
        for number, block in enumerate(self.extractor.blocks):
            x, memory = _block(block, x, None if film is None else film[number], hidden[number])
            memories.append(memory)
        frames = self._filter(x, spectra) @ self._backward()  # (outputs x 2, FRAME)
        start, middle, end = frames.split([OVERLAP, CHUNK - OVERLAP, OVERLAP], dim=-1)
        sound = torch.cat([start + overlap, middle], dim=-1)
        return sound, [extended[..., CHUNK:], features[len(self.logs) :], end, *memories]

    def _forward(self) -> Tensor:
        """Return window and DFT, (FRAME, 2 x bins); padded bins are zero."""
        table = functional.pad(self.forward_table.view(FRAME, 2, BINS), (0, self.bins - BINS))
        return table[..., self.order].view(FRAME, 2 * self.bins)

    def _forward_long(self) -> Tensor:
        """Return long window and DFT, (window, 2 x fine bins); padded bins are zero."""
        bins, size = self.config.window // 2 + 1, len(self.fine_order)
        table = functional.pad(self.fine_table.view(-1, 2, bins), (0, size - bins))
        return table[..., self.fine_order].view(-1, 2 * size)

    def _backward(self) -> Tensor:
        """Return inverse DFT and window, (2 x bins, FRAME); padded bins are zero."""
        table = functional.pad(self.backward_table.view(2, BINS, FRAME), (0, 0, 0, self.bins - BINS))
        return table[:, self.order].view(2 * self.bins, FRAME)

    def _features(self, spectra: Tensor, floor: Tensor) -> Tensor:
        """Return features (8, bins) from spectra (4, bins); the floor (4, bins) is added to powers."""
        products = spectra[self.left] * spectra[self.right]
        powers, phase = torch.addmm(floor, self.sums, products).split([EARS, EARS])
        levels, scales = (self.logs @ powers.log()).split([EARS, len(self.logs) - EARS])
        return torch.cat([torch.cat([spectra, phase]) * scales.exp(), levels])

    def _filter(self, x: Tensor, spectra: Tensor) -> Tensor:
        """Return filtered spectra (outputs x 2, 2 x bins) from bands (bands, C) and spectra (4, bins)."""
        linear: Any = self.extractor.filters.linear
        weight, bias = linear.weight[..., self.rows], linear.bias[:, self.rows]
        filters = (self.extractor.norm(x).unsqueeze(1) @ weight).squeeze(1) + bias  # (bands, outputs x 2 x 4 x stride)
        filters = filters.T.reshape(-1, 1, _PARTS, self.bins)
        parts = (spectra[self.filtered] * self.signs).view(2, _PARTS, self.bins)
        return (filters * parts).sum(dim=2).view(-1, 2 * self.bins)


def _order(bands: int, stride: int) -> Tensor:
    """Return the indices of bins in the order (bin of the band, band)."""
    return torch.arange(bands * stride).view(bands, stride).T.flatten()


def _floor(order: Tensor, bins: int) -> Tensor:
    """Return the floor of powers, (4, bins in this order)."""
    floor = torch.zeros(_PARTS, len(order))
    floor[:EARS] = torch.where(order < bins, _FLOOR**2, 1.0)  # 1: a log power of 0 for padded bins
    return floor


def _block(block: Any, x: Tensor, film: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Transform (bands, C) with film (2, C) and the hidden state (bands, H); return both updated."""
    y = block.band_norm(x)
    if film is not None:
        y = y * (1.0 + film[0]) + film[1]
    if hasattr(block, "near"):
        turned = y.T
        near = block.near(turned.unsqueeze(0)).squeeze(0)
        mixed = torch.addmm(near, turned, block.far.weight.T).T  # the bias of `far` is a constant after `up`
    else:
        mixed = torch.addmm(y, block.far.weight, y)
    bias = torch.outer(block.far.bias, block.up.weight.sum(dim=1)) + block.up.bias
    x = x + block.down(functional.silu(torch.addmm(bias, mixed, block.up.weight.T)))
    if block.linear:
        forget, entry, gate = block.recurrence.gates(block.time_norm(x))
        memory = torch.addcmul(entry, forget, hidden)
        return x + block.recurrence.output(memory, gate), memory
    memory = gru_step(block.gru, block.time_norm(x), hidden)
    return x + block.out(memory), memory


def gru_step(gru: nn.GRU, x: Tensor, hidden: Tensor) -> Tensor:
    """Return the next hidden state (rows, H) of a one-layer GRU for an input (rows, C)."""
    to_x, to_hidden, bias_x, bias_hidden = gru.parameters()
    size = 2 * gru.hidden_size
    gates = torch.addmm(bias_x[:size] + bias_hidden[:size], x, to_x[:size].T)
    reset, keep = torch.addmm(gates, hidden, to_hidden[:size].T).sigmoid().chunk(2, dim=-1)
    candidate = torch.addmm(bias_x[size:], x, to_x[size:].T)
    new = (candidate + reset * torch.addmm(bias_hidden[size:], hidden, to_hidden[size:].T)).tanh()
    return new + keep * (hidden - new)
