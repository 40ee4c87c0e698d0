"""A recorded mixture and a look in, the person of the look out, in both ears, in memory that no length changes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from audio_llm.audio import BlockReader, write_blocks
from audio_llm.audio_stream import process_at_rate, process_in_chunks
from audio_llm.doctor import resolve_device
from audio_llm.errors import AudioFileError, UsageError
from audio_llm.tse.enrolment import LEAST_S, MOST_S
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.models import load_model

if TYPE_CHECKING:
    from audio_llm.tse.hearing import TargetHearing
    from audio_llm.tse.models import TargetSpeechModel

DEFAULT_MODEL = "tse-small"
EARS = 2
_BLOCK_S = 4.0  # that is read at a time
_SILENT = 1e-3  # root mean square of an ear that counts as silent, -60 dB of full scale
_CLIPPED = 0.999  # of full scale
_MOST_CLIPPED = 1e-2  # share of a look's samples that passes without a warning


@dataclass(frozen=True)
class Look:
    """A few seconds recorded while facing the person wanted.

    Attributes:
        waveform: (2, T) float32 at 16 kHz, left ear first, T a multiple of 128.
        warnings: What is amiss with it, one line each.
    """

    waveform: Tensor
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Extraction:
    """What `extract` did.

    Attributes:
        output: The file written.
        sample_rate: Hz, of the mixture and of the output.
        samples: Per ear, of both.
        look_s: Seconds of the look that were used.
        clipped: Samples of the output that lay beyond full scale and were clipped.
        warnings: What is amiss with the mixture or the look, each beginning with the file.
    """

    output: Path
    sample_rate: int
    samples: int
    look_s: float
    clipped: int
    warnings: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Seconds of the mixture."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Person:
    """Somebody to hear, known from a look.

    Attributes:
        hearing: The networks.
        vector: (1, 256) unit vector of the person.
        look_s: Seconds of the look that were used.
        warnings: What is amiss with it, one line each.
    """

    hearing: TargetHearing
    vector: Tensor
    look_s: float
    warnings: tuple[str, ...]

    @classmethod
    def from_look(
        cls,
        look: str | os.PathLike[str],
        model: str | os.PathLike[str] | TargetSpeechModel = DEFAULT_MODEL,
        device: str = "cpu",
    ) -> Person:
        """Return who is in front in a look; arguments and errors as of `extract`."""
        seen = read_look(look)
        loaded = load_model(model, resolve_device(device)) if isinstance(model, (str, os.PathLike)) else model
        with torch.inference_mode():
            enrolled = loaded.enrolment.encode(seen.waveform[None].to(next(loaded.hearing.parameters()).device))
        warnings = seen.warnings
        if float(enrolled.front_db) < loaded.hearing.config.least_front_db:
            warnings = (*warnings, "nobody seems to talk in front: face the person")
        return cls(loaded.hearing, enrolled.vector, seen.waveform.shape[-1] / SAMPLE_RATE, warnings)

    def hear(self, blocks: Iterable[np.ndarray], sample_rate: int, mix: float = 0.0) -> Iterator[np.ndarray]:
        """Yield the person in both ears, (T', 2) float32, of blocks (T, C) float32, as `hear` does."""
        return hear(self.hearing, self.vector, (_ears(block) for block in blocks), sample_rate, mix)


def extract(
    mixture: str | os.PathLike[str],
    enroll: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mix: float = 0.0,
    model: str | os.PathLike[str] | TargetSpeechModel = DEFAULT_MODEL,
    device: str = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> Extraction:
    """Write what one person says in a mixture, as long as the mixture, at its rate, for two ears.

    Args:
        mixture: A binaural recording, left ear first; of one channel it works with a warning.
        enroll: The look: 1 to 10 s of the person in front, noise and others allowed.
        output: The file to write; its suffix names the format.
        mix: 0 is only the person, 1 the mixture as it was.
        model: A model directory or a name, or what `tse.models.load_model` gave.
        device: `cpu`, `cuda` or `auto`; a model that was loaded stays where it is.
        progress: Takes the seconds that are done and those of the mixture, as its header says, after every block.

    Raises:
        AudioFileError: A file cannot be read or written, or the look is too short or silent.
        ModelNotFoundError, ModelFormatError: As `tse.models.load_model`.
        UsageError: `mix` lies outside 0..1, or the output is one of the inputs.
    """
    if not 0.0 <= mix <= 1.0:
        raise UsageError(f"a mix of {mix} is outside 0 to 1", remedy="0 is only the person, 1 the mixture as it was")
    if any(_same(output, path) for path in (mixture, enroll)):
        raise UsageError("is an input as well", path=output, remedy="name another output")
    person = Person.from_look(enroll, model, device)
    count = _Count()

    def shown(blocks: Iterable[np.ndarray], rate: int, whole_s: float) -> Iterator[np.ndarray]:
        for block in blocks:
            yield block
            if progress is not None:
                progress(count.samples / rate, whole_s)

    with BlockReader(mixture, None, _BLOCK_S, channel="each") as reader:
        blocks = iter(reader)
        first = next(blocks, None)
        if first is None:
            raise AudioFileError("holds no sound", path=mixture, remedy="record it again")
        heard = person.hear(itertools.chain([first], blocks), reader.sample_rate, mix)
        heard = shown(count.through(heard), reader.sample_rate, reader.info.duration_s)
        write_blocks(output, heard, reader.sample_rate, EARS)
        warnings = (*reader.warnings, *_ear_warnings(reader.info.channels, "where people stand is lost"))
        rate = reader.sample_rate
    lines = [f"{mixture}: {line}" for line in warnings] + [f"{enroll}: {line}" for line in person.warnings]
    if count.clipped:
        lines.append(f"{output}: {count.clipped} samples were clipped to full scale")
    return Extraction(Path(output), rate, count.samples, person.look_s, count.clipped, tuple(lines))


def read_look(path: str | os.PathLike[str]) -> Look:
    """Read and check a look.

    Raises:
        AudioFileError: It cannot be read, is shorter than 1 s, or silent.
    """
    with BlockReader(path, SAMPLE_RATE, MOST_S, channel="each") as reader:
        waveform = next(iter(reader), np.zeros((0, 1), np.float32))
        channels, whole_s = reader.info.channels, reader.info.duration_s
        more = whole_s - MOST_S if len(waveform) == round(MOST_S * SAMPLE_RATE) else 0.0
        warnings = list(reader.warnings)  # of what was read
    seconds = len(waveform) / SAMPLE_RATE
    remedy = f"record {LEAST_S:g} to {MOST_S:g} s while facing the person"
    if seconds < LEAST_S:
        raise AudioFileError(f"a look of {seconds:.2f} s is too short", path=path, remedy=remedy)
    levels = np.sqrt(np.mean(np.square(waveform, dtype=np.float64), axis=0))
    if levels.max() < _SILENT:
        raise AudioFileError("the look is silent", path=path, remedy=f"check the microphones and {remedy}")
    ears = _ears(waveform)
    loss = "nobody can be told from others by being in front"
    warnings += _ear_warnings(channels, loss)
    if channels >= EARS and np.array_equal(ears[:, 0], ears[:, 1]):
        warnings.append(f"both ears heard exactly the same: {loss}")
    elif min(levels[:EARS]) < _SILENT:
        warnings.append(f"one ear is silent: {loss}")
    clipped = float((np.abs(ears) >= _CLIPPED).mean())
    if clipped > _MOST_CLIPPED:
        warnings.append(f"{100 * clipped:.1f} % of the samples are clipped: the look was recorded too loud")
    if more > 0.01:
        warnings.append(f"only its first {MOST_S:g} s are used")
    whole = len(ears) // CHUNK * CHUNK
    return Look(torch.from_numpy(np.ascontiguousarray(ears[:whole].T)), tuple(warnings))


def hear(
    hearing: TargetHearing, enrolled: Tensor, blocks: Iterable[np.ndarray], sample_rate: int, mix: float = 0.0
) -> Iterator[np.ndarray]:
    """Hear one person in a recording that comes block by block.

    Args:
        hearing: The networks.
        enrolled: (1, 256) unit vector of the person.
        blocks: (T, 2) float32 of any lengths.
        sample_rate: Of the blocks, Hz.
        mix: 0 is only the person, 1 the recording as it was.

    Yields:
        (T', 2) float32: in all as many samples as came, aligned with them.
    """
    state = hearing.initial_state()

    def step(chunks: np.ndarray) -> np.ndarray:
        nonlocal state
        with torch.inference_mode():
            sound, state = hearing.step(torch.from_numpy(chunks.T.copy())[None].to(enrolled.device), enrolled, state)
        found: np.ndarray = sound[0].T.cpu().numpy()
        return found

    return process_at_rate(
        blocks, sample_rate, SAMPLE_RATE, lambda at_model: process_in_chunks(at_model, CHUNK, OVERLAP, step), mix
    )


class _Count:
    """Counts what goes through."""

    def __init__(self) -> None:
        self.samples, self.clipped = 0, 0

    def through(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            self.clipped += int((np.abs(block) > 1.0).sum())
            yield block


def _ears(block: np.ndarray) -> np.ndarray:
    """Return (T, 2) of (T, C): one channel twice, or the first two."""
    return np.repeat(block, EARS, axis=1) if block.shape[1] == 1 else block[:, :EARS]


def _ear_warnings(channels: int, loss: str) -> list[str]:
    if channels == 1:
        return [f"has one channel, so both ears hear the same: {loss}"]
    if channels > EARS:
        return [f"has {channels} channels: the first two are taken for the left and the right ear"]
    return []


def _same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
