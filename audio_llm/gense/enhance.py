"""A noisy recording in, a clean one out: as long, at its rate, of its channels, in memory that no length changes."""

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
from audio_llm.gense.generate import SpeechGenerator
from audio_llm.gense.mask_model import HOP_LENGTH, LOOKAHEAD, N_FFT, SAMPLE_RATE, MaskNetwork
from audio_llm.gense.models import GENSE, load_gense, load_mask

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "mask-small"
_BLOCK_S = 4.0  # that is read at a time
_DELAY = N_FFT - HOP_LENGTH + LOOKAHEAD * HOP_LENGTH  # samples that the mask network's output is late


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
    """Takes noise out of speech, or speaks noisy speech anew.

    Args:
        network: The mask network.
        generator: Speaks anew; None where only noise is taken out.
        policy: How much may be spoken anew.

    Raises:
        UsageError: The policy wants speech spoken anew and there is no generator.
    """

    def __init__(
        self, network: MaskNetwork, generator: SpeechGenerator | None = None, policy: Policy | None = None
    ) -> None:
        self.network, self.generator, self.policy = network.eval(), generator, policy or Policy()
        if self.policy.mode != "safe" and generator is None:
            remedy = "give a model that speaks, such as gense-small, or the mode safe"
            raise UsageError(f"the mode {self.policy.mode} needs language models", remedy=remedy)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        mode: Mode | None = None,
        guards: bool = True,
        seed: int = 0,
        device: str = "cpu",
    ) -> Enhancer:
        """Return the enhancer of a model directory or a name.

        Args:
            model: A mask network, or GenSE's language models.
            mode: How much may be spoken anew; None: `balanced` where the model can, else `safe`.
            guards: Whether what was spoken is looked at before it may be heard.
            seed: Of all draws.
            device: `cpu`, `cuda` or `auto`.

        Raises:
            ModelNotFoundError, ModelFormatError: As `hub.load_model`.
            UsageError: The mode needs language models and this is a mask network.
        """
        device = resolve_device(device)
        folder = hub.find_model(model)
        if hub.model_kind(folder) != GENSE:
            return cls(load_mask(folder, device), None, Policy(mode or "safe", guards, seed=seed))
        loaded = load_gense(folder, device)
        policy = Policy(mode or "balanced", guards, loaded.limits, loaded.balanced_below_db, seed)
        if policy.mode == "balanced" and policy.balanced_below_db is None:
            _log.warning("%s: no threshold was found for the mode balanced: nothing is spoken anew", model)
        return cls(load_mask(loaded.mask, device), SpeechGenerator(loaded), policy)

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
            warnings.append(f"was recorded at {rate} Hz: nothing above {rate // 2} Hz is made up")
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
        """Enhance a recording that comes block by block.

        Args:
            blocks: (T, C) float32 of any lengths.
            sample_rate: Of the blocks, Hz.
            mix: 0 is only the enhanced sound, 1 the recording as it was.
            report: Takes what was done to each stretch.

        Yields:
            (T', C) float32: in all as many samples as came, aligned with them.
        """
        chunked = ChunkedEnhancement(self.policy, self.generator, report or (lambda chunk: None))
        return process_at_rate(blocks, sample_rate, SAMPLE_RATE, lambda own: chunked.run(self._pairs(own)), mix)

    def _pairs(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of the recording with the mask network's sound of them."""
        waiting: list[np.ndarray] = []

        def kept() -> Iterator[np.ndarray]:
            for block in blocks:
                waiting.append(block)
                yield block

        for masked in self._masked(kept()):
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
    """Counts what goes through."""

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
