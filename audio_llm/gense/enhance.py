"""Enhances recordings; length, sample rate and channels are kept, and memory use does not grow with the length."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audio_llm import hub
from audio_llm.audio import BlockReader, write_blocks
from audio_llm.audio_stream import process_at_rate, process_in_chunks
from audio_llm.doctor import resolve_device
from audio_llm.errors import AudioFileError, UsageError
from audio_llm.gense.chunks import ChunkedEnhancement, ChunkReport, Mode, Policy
from audio_llm.gense.generate import Resynthesizer
from audio_llm.gense.mask_model import HOP_LENGTH, LOOKAHEAD, N_FFT, SAMPLE_RATE, MaskNetwork
from audio_llm.gense.models import GENSE, load_gense, load_mask
from audio_llm.waveforms import Audio, Source, as_audio, check_mix

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "mask-small"
_BLOCK_S = 4.0  # read at a time
_DELAY = N_FFT - HOP_LENGTH + LOOKAHEAD * HOP_LENGTH  # samples of latency of the mask network


@dataclass(frozen=True)
class Enhancement:
    """What `Enhancer.enhance` did.

    Attributes:
        output: The file written.
        sample_rate: Sample rate of input and output, in Hz.
        channels: Number of channels of input and output.
        samples: Samples per channel of input and output.
        clipped: Samples of the output beyond full scale that were clipped.
        chunks: What was done to each chunk.
        warnings: Problems with the input.
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
    """Suppresses noise in speech, or resynthesizes noisy speech.

    Args:
        network: The mask network.
        generator: The resynthesizer; None if noise is only suppressed.
        policy: Which chunks are resynthesized.

    Raises:
        UsageError: The policy requires a resynthesizer and there is none.
    """

    def __init__(
        self, network: MaskNetwork, generator: Resynthesizer | None = None, policy: Policy | None = None
    ) -> None:
        self.network, self.generator, self.policy = network.eval(), generator, policy or Policy()
        if self.policy.mode != "safe" and generator is None:
            remedy = "give a model that resynthesizes, such as gense-small, or the mode safe"
            raise UsageError(f"the mode {self.policy.mode} needs language models", remedy=remedy)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        mode: Mode | None = None,
        checks: bool = True,
        seed: int = 0,
        device: str = "cpu",
    ) -> Enhancer:
        """Load the enhancer of a model directory or name.

        Args:
            model: A mask network, or GenSE's language models.
            mode: Which chunks are resynthesized; None: `balanced` if the model supports it, else `safe`.
            checks: Whether generated chunks have to pass the quality checks.
            seed: Random seed.
            device: `cpu`, `cuda` or `auto`.

        Raises:
            ModelNotFoundError, ModelFormatError: See `hub.load_model`.
            UsageError: The mode needs language models, but the model is a mask network.
        """
        device = resolve_device(device)
        folder = hub.find_model(model)
        if hub.model_kind(folder) != GENSE:
            return cls(load_mask(folder, device), None, Policy(mode or "safe", checks, seed=seed))
        loaded = load_gense(folder, device)
        policy = Policy(mode or "balanced", checks, loaded.limits, loaded.balanced_below_db, seed)
        if policy.mode == "balanced" and policy.balanced_below_db is None:
            _log.warning("%s: no threshold was tuned for the mode balanced: nothing is resynthesized", model)
        return cls(load_mask(loaded.mask, device), Resynthesizer(loaded), policy)

    def enhance(self, source: Source, sample_rate: int | None = None, mix: float = 0.0) -> Audio:
        """Remove noise from a recording that fits into memory.

        Args:
            source: A sound file, (T,) or (T, C) float in -1..1, or audio. Each channel is enhanced separately.
            sample_rate: Sample rate of an array in Hz.
            mix: Fraction of the input in the output: 0 is the enhanced sound, 1 the unprocessed recording.

        Returns:
            Audio of the same length, rate and channels; its report is a tuple of `ChunkReport`.

        Raises:
            AudioFileError, UsageError: See `waveforms.as_audio`; or `mix` lies outside 0..1.
        """
        check_mix(mix)
        audio = as_audio(source, sample_rate)
        chunks: list[ChunkReport] = []
        columns = audio.columns
        output = np.concatenate([columns[:0], *self.stream([columns], audio.sample_rate, mix, chunks.append)])
        return Audio(output.reshape(audio.waveform.shape), audio.sample_rate, tuple(chunks))

    def enhance_file(
        self,
        path: str | os.PathLike[str],
        output: str | os.PathLike[str],
        mix: float = 0.0,
        progress: Callable[[float], None] | None = None,
    ) -> Enhancement:
        """Write an enhanced recording to a file.

        Args:
            path: The recording; `-` for standard input. Each channel is enhanced separately.
            output: The file to write; its suffix names the format.
            mix: Fraction of the input in the output: 0 is the enhanced sound, 1 the unprocessed recording.
            progress: Called with the seconds of audio just finished.

        Raises:
            AudioFileError: A file cannot be read or written, or the recording contains no audio.
            UsageError: `mix` lies outside 0..1, or the output is the input.
        """
        check_mix(mix)
        if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
            raise UsageError("is the input as well", path=output, remedy="name another output")
        with BlockReader(path, None, _BLOCK_S, channel="each") as reader:
            blocks = iter(reader)
            first = next(blocks, None)
            if first is None:
                raise AudioFileError("holds no sound", path=path, remedy="record it again")
            meter = _Meter(reader.sample_rate, progress)
            chunks: list[ChunkReport] = []
            sound = self.stream(itertools.chain([first], blocks), reader.sample_rate, mix, chunks.append)
            write_blocks(output, meter.through(sound), reader.sample_rate, reader.info.channels)
            warnings = list(reader.warnings)
            rate, channels = reader.sample_rate, reader.info.channels
        if rate < SAMPLE_RATE:
            warnings.append(f"was recorded at {rate} Hz: nothing above {rate // 2} Hz is generated")
        if rate > SAMPLE_RATE:
            warnings.append(f"the enhanced sound holds nothing above {SAMPLE_RATE // 2} Hz")
        if meter.clipped:
            warnings.append(f"{meter.clipped} samples of the output were clipped to full scale")
        counts = (meter.samples, meter.clipped)
        return Enhancement(Path(output), rate, channels, *counts, tuple(chunks), tuple(warnings))

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        sample_rate: int,
        mix: float = 0.0,
        report: Callable[[ChunkReport], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Enhance a recording that arrives block by block.

        Args:
            blocks: (T, C) float32 of any lengths.
            sample_rate: Sample rate of the blocks, in Hz.
            mix: Fraction of the input in the output: 0 is the enhanced sound, 1 the unprocessed recording.
            report: Called with the report of each chunk.

        Yields:
            (T', C) float32, aligned with the input; the total length is that of the input.
        """
        chunked = ChunkedEnhancement(self.policy, self.generator, report or (lambda chunk: None))
        return process_at_rate(
            blocks, sample_rate, SAMPLE_RATE, lambda resampled: chunked.run(self._pairs(resampled)), mix
        )

    def _pairs(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of the recording with the mask network's output for them."""
        waiting: list[np.ndarray] = []

        def remembered() -> Iterator[np.ndarray]:
            for block in blocks:
                waiting.append(block)
                yield block

        for masked in self._masked(remembered()):
            noisy = np.concatenate(waiting)
            waiting[:] = [noisy[len(masked) :]]
            yield noisy[: len(masked)], masked

    def _masked(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        device = self.network.norm.weight.device
        state = None

        def step(chunk: np.ndarray) -> np.ndarray:
            nonlocal state
            with torch.inference_mode():
                state = self.network.initial_state(chunk.shape[1]) if state is None else state
                sound, state = self.network.step(torch.from_numpy(chunk.T.copy()).to(device), state)
            return np.ascontiguousarray(sound.cpu().numpy().T)

        return process_in_chunks(blocks, HOP_LENGTH, _DELAY, step)


class _Meter:
    """Counts samples and clipped samples that pass through."""

    def __init__(self, sample_rate: int, progress: Callable[[float], None] | None) -> None:
        self.samples = self.clipped = 0
        self._rate, self._progress = sample_rate, progress

    def through(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            self.clipped += int((np.abs(block) > 1.0).sum())
            yield block
            if self._progress is not None:
                self._progress(len(block) / self._rate)
