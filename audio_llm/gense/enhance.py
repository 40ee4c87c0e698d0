"""A noisy recording in, a clean one out: as long, at its rate, of its channels, in memory that no length changes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audio_llm.audio import BlockReader, write_blocks
from audio_llm.audio_stream import in_chunks, through_rate
from audio_llm.doctor import resolve_device
from audio_llm.errors import AudioFileError, UsageError
from audio_llm.gense.mask_model import HOP_LENGTH, LOOKAHEAD, N_FFT, SAMPLE_RATE, MaskNetwork
from audio_llm.gense.models import load_mask

DEFAULT_MODEL = "mask-small"
CHUNK_S = 6.0  # of a line of the report
_BLOCK_S = 4.0  # that is read at a time
_DELAY = N_FFT - HOP_LENGTH + LOOKAHEAD * HOP_LENGTH  # samples that the mask network's output is late
_SILENT_DB = -100.0  # level that stands for silence


@dataclass(frozen=True)
class ChunkReport:
    """What was done to a stretch of one channel.

    Attributes:
        channel: From 0.
        start_s: Where it begins.
        end_s: Where it ends.
        action: `mask`: noise was taken away by the mask network; `silent`: there was nothing.
        input_db: Level before, below full scale.
        output_db: Level after.
    """

    channel: int
    start_s: float
    end_s: float
    action: str
    input_db: float
    output_db: float


@dataclass(frozen=True)
class Enhancement:
    """What `Enhancer.enhance` did.

    Attributes:
        output: The file written.
        sample_rate: Hz, of the input and of the output.
        channels: Of both.
        samples: Per channel, of both.
        clipped: Samples of the output that lay beyond full scale and were clipped.
        chunks: What was done, stretch by stretch.
        warnings: What is amiss with the input.
    """

    output: Path
    sample_rate: int
    channels: int
    samples: int
    clipped: int
    chunks: tuple[ChunkReport, ...]
    warnings: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return self.samples / self.sample_rate


class Enhancer:
    """Takes noise out of speech.

    Args:
        network: The mask network, in eval mode.
    """

    def __init__(self, network: MaskNetwork) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, model: str | os.PathLike[str] = DEFAULT_MODEL, device: str = "cpu") -> Enhancer:
        """Return the enhancer of a model directory or a name; raises as `hub.load_model`."""
        return cls(load_mask(model, resolve_device(device)))

    def enhance(
        self,
        path: str | os.PathLike[str],
        output: str | os.PathLike[str],
        mix: float = 0.0,
        progress: Callable[[float], None] | None = None,
    ) -> Enhancement:
        """Write a recording without its noise.

        Args:
            path: The recording; `-` for standard input. Each channel is enhanced by itself.
            output: The file to write; its suffix names the format.
            mix: 0 is only the enhanced sound, 1 the recording as it was.
            progress: Called with the seconds of sound just finished.

        Raises:
            AudioFileError: A file cannot be read or written, or the recording holds no sound.
            UsageError: `mix` lies outside 0..1, or the output is the input.
        """
        if not 0.0 <= mix <= 1.0:
            raise UsageError(
                f"a mix of {mix} is outside 0 to 1", remedy="0 is only the enhanced sound, 1 the recording"
            )
        if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
            raise UsageError("is the input as well", path=output, remedy="name another output")
        with BlockReader(path, None, _BLOCK_S, mono=False) as reader:
            blocks = iter(reader)
            first = next(blocks, None)
            if first is None:
                raise AudioFileError("holds no sound", path=path, remedy="record it again")
            meter = _Meter(reader.sample_rate, progress)
            sound = self.stream(meter.before(itertools.chain([first], blocks)), reader.sample_rate, mix)
            write_blocks(output, meter.after(sound), reader.sample_rate, reader.info.channels)
            warnings = list(reader.warnings)
            rate, channels = reader.sample_rate, reader.info.channels
        if rate < SAMPLE_RATE:
            warnings.append(f"was recorded at {rate} Hz: nothing above {rate // 2} Hz is made up")
        if rate > SAMPLE_RATE:
            warnings.append(f"the enhanced sound holds nothing above {SAMPLE_RATE // 2} Hz")
        if meter.clipped:
            warnings.append(f"{meter.clipped} samples of the output were clipped to full scale")
        chunks = tuple(meter.chunks)
        return Enhancement(Path(output), rate, channels, meter.samples, meter.clipped, chunks, tuple(warnings))

    def stream(self, blocks: Iterable[np.ndarray], sample_rate: int, mix: float = 0.0) -> Iterator[np.ndarray]:
        """Enhance a recording that comes block by block.

        Args:
            blocks: (T, C) float32 of any lengths.
            sample_rate: Of the blocks, Hz.
            mix: 0 is only the enhanced sound, 1 the recording as it was.

        Yields:
            (T', C) float32: in all as many samples as came, aligned with them.
        """
        return through_rate(blocks, sample_rate, SAMPLE_RATE, self._enhance_blocks, mix)

    def _enhance_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        device = self.network.norm.weight.device
        state = None

        def step(chunk: np.ndarray) -> np.ndarray:
            nonlocal state
            with torch.inference_mode():
                state = self.network.initial_state(chunk.shape[1]) if state is None else state
                sound, state = self.network.step(torch.from_numpy(chunk.T.copy()).to(device), state)
            return np.ascontiguousarray(sound.cpu().numpy().T)

        return in_chunks(blocks, HOP_LENGTH, _DELAY, step)


class _Meter:
    """Counts what goes through and describes it, stretch by stretch."""

    def __init__(self, sample_rate: int, progress: Callable[[float], None] | None) -> None:
        self.samples = self.clipped = 0
        self.chunks: list[ChunkReport] = []
        self._rate, self._progress = sample_rate, progress
        self._size = round(CHUNK_S * sample_rate)
        self._waiting: list[np.ndarray] = []  # of the input, not yet gone out
        self._energies: list[np.ndarray] = []  # of input and output of the stretch so far, (2, C) each
        self._begun = 0

    def before(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self._waiting.append(block)
            yield block

    def after(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            yield block
            self._count(block)
            if self._progress is not None:
                self._progress(len(block) / self._rate)
        self._finish_chunk()

    def _count(self, block: np.ndarray) -> None:
        self.clipped += int((np.abs(block) > 1.0).sum())
        dry = np.concatenate(self._waiting)
        self._waiting = [dry[len(block) :]]
        place = 0
        while place < len(block):
            size = min(len(block) - place, self._begun + self._size - self.samples)
            parts = (dry[place : place + size], block[place : place + size])
            self._energies.append(np.stack([np.square(part, dtype=np.float64).sum(axis=0) for part in parts]))
            place, self.samples = place + size, self.samples + size
            if self.samples == self._begun + self._size:
                self._finish_chunk()

    def _finish_chunk(self) -> None:
        if self.samples == self._begun:
            return
        powers = np.sum(self._energies, axis=0) / (self.samples - self._begun)
        levels = np.maximum(10.0 * np.log10(np.maximum(powers, 1e-30)), _SILENT_DB).round(1)
        start_s, end_s = self._begun / self._rate, self.samples / self._rate
        for channel, (before, after) in enumerate(levels.T.tolist()):
            action = "silent" if before == _SILENT_DB else "mask"
            self.chunks.append(ChunkReport(channel, start_s, end_s, action, before, after))
        self._energies, self._begun = [], self.samples
