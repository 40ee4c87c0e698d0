"""Waveforms with their sample rate: files, arrays and audio taken alike."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

import numpy as np

from audio_llm.audio import BlockReader, write
from audio_llm.audio_channels import EACH
from audio_llm.errors import UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Audio:
    """A waveform with its sample rate, and the report of the model that produced it.

    Attributes:
        waveform: (T,) or (T, C) float32 in -1..1.
        sample_rate: Hz.
        report: The model's report, such as what was done in each chunk; None for audio that was read.
    """

    waveform: np.ndarray = field(repr=False)
    sample_rate: int
    report: object = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / self.sample_rate

    @property
    def columns(self) -> np.ndarray:
        """The waveform as (T, C), also of one channel."""
        return self.waveform if self.waveform.ndim == 2 else self.waveform[:, None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a sound file, whole or not at all; the suffix names the format (see `audio.write`)."""
        write(path, self.waveform, self.sample_rate)


Source = str | os.PathLike[str] | np.ndarray | Audio


def as_audio(source: Source, sample_rate: int | None = None) -> Audio:
    """Return a file, an array or audio as audio, all channels at its own sample rate.

    Args:
        source: A sound file, (T,) or (T, C) float in -1..1, or audio.
        sample_rate: Sample rate of an array in Hz; None for files and audio, which know theirs.

    Raises:
        AudioFileError: The file is missing, unreadable, no sound, or holds NaN or infinite samples.
        UsageError: An array without a sample rate, of another shape, or with NaN or infinite samples; a sample rate
            for what has one.
    """
    if isinstance(source, np.ndarray):
        if sample_rate is None or sample_rate < 1:
            raise UsageError("an array has no sample rate", remedy="give sample_rate, in Hz")
        if source.ndim not in (1, 2) or not np.issubdtype(source.dtype, np.floating):
            shape = f"{source.dtype} of shape {source.shape}"
            raise UsageError(f"a waveform cannot be {shape}", remedy="give (T,) or (T, C) float in -1..1")
        if not np.isfinite(source).all():
            raise UsageError("the waveform holds NaN or infinite samples", remedy="repair or remove them")
        return Audio(np.asarray(source, dtype=np.float32), sample_rate)
    if sample_rate is not None:
        raise UsageError("files and audio have a sample rate", remedy="leave sample_rate out")
    if isinstance(source, Audio):
        return source
    with BlockReader(source, None, channel=EACH) as reader:
        blocks = list(reader)
        for warning in reader.warnings:
            _log.warning("%s: %s", source, warning)
        waveform = np.concatenate(blocks) if blocks else np.zeros((0, max(1, reader.info.channels)), np.float32)
        return Audio(waveform[:, 0] if waveform.shape[1] == 1 else waveform, reader.sample_rate)


def check_mix(mix: float) -> None:
    """Check the fraction of the input that is mixed into a model's output.

    Raises:
        UsageError: It lies outside 0..1.
    """
    if not 0.0 <= mix <= 1.0:
        raise UsageError(f"a mix of {mix} is outside 0 to 1", remedy="0 is the output alone, 1 the input")
