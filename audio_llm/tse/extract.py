"""Extraction from files: a binaural mixture and an enrollment recording to the target speaker, in constant memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from audio_llm.audio import BlockReader, resample, write_blocks
from audio_llm.audio_stream import process_at_rate, process_in_chunks
from audio_llm.doctor import resolve_device
from audio_llm.errors import AudioFileError, UsageError
from audio_llm.tse.enrollment import LEAST_S, MOST_S
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.models import load_model
from audio_llm.waveforms import Audio, Source, as_audio, check_mix

if TYPE_CHECKING:
    from audio_llm.tse.models import TargetSpeakerModel
    from audio_llm.tse.target_speaker import TargetSpeakerNetwork

DEFAULT_MODEL = "tse-small"
EARS = 2
_BLOCK_S = 4.0  # read at a time
_SILENT = 1e-3  # RMS below which an ear counts as silent, -60 dB of full scale
_CLIPPED = 0.999  # of full scale
_MOST_CLIPPED = 1e-2  # fraction of clipped samples that passes without a warning


@dataclass(frozen=True)
class EnrollmentRecording:
    """A few seconds recorded while facing the target speaker.

    Attributes:
        waveform: (2, T) float32 at 16 kHz, left ear first, T a multiple of 128.
        warnings: Problems with the recording, one line each.
    """

    waveform: Tensor
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Extraction:
    """Result of `extract`.

    Attributes:
        output: The file written.
        sample_rate: Hz, of the mixture and of the output.
        samples: Samples per ear, of the mixture and of the output.
        enrollment_s: Seconds of the enrollment recording that were used.
        clipped: Samples of the output that lay beyond full scale and were clipped.
        warnings: Problems of the mixture and the enrollment recording, each line beginning with the file.
    """

    output: Path
    sample_rate: int
    samples: int
    enrollment_s: float
    clipped: int
    warnings: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Length of the mixture in seconds."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class TargetSpeaker:
    """A speaker enrolled for extraction.

    Attributes:
        network: The trained networks.
        vector: (1, 256) unit vector of the speaker.
        enrollment_s: Seconds of the enrollment recording that were used.
        warnings: Problems with the recording, one line each.
    """

    network: TargetSpeakerNetwork
    vector: Tensor
    enrollment_s: float
    warnings: tuple[str, ...]

    @classmethod
    def enroll(
        cls,
        enrollment: Source,
        sample_rate: int | None = None,
        model: str | os.PathLike[str] | TargetSpeakerModel = DEFAULT_MODEL,
        device: str = "cpu",
    ) -> TargetSpeaker:
        """Enroll the frontal speaker of a recording.

        Args:
            enrollment: 1 to 10 s recorded while facing the speaker: a sound file, (T, 2) float in -1..1, or audio.
            sample_rate: Sample rate of an array in Hz.
            model: A model directory or name, or a model from `tse.models.load_model`.
            device: `cpu`, `cuda` or `auto`.

        Raises:
            AudioFileError: The recording cannot be read, or is too short or silent.
            ModelNotFoundError, ModelFormatError: See `tse.models.load_model`.
        """
        recording = read_enrollment(enrollment, sample_rate)
        loaded = load_model(model, resolve_device(device)) if isinstance(model, (str, os.PathLike)) else model
        with torch.inference_mode():
            device_of_model = next(loaded.network.parameters()).device
            enrolled = loaded.enrollment_encoder.encode(recording.waveform[None].to(device_of_model))
        warnings = recording.warnings
        if float(enrolled.frontal_level_db) < loaded.network.config.least_front_db:
            warnings = (*warnings, "no frontal speaker detected: face the speaker and record again")
        return cls(loaded.network, enrolled.vector, recording.waveform.shape[-1] / SAMPLE_RATE, warnings)

    def extract(self, mixture: Source, sample_rate: int | None = None, mix: float = 0.0) -> Audio:
        """Extract the speaker from a mixture that fits into memory.

        Args:
            mixture: A binaural sound file, (T, 2) float in -1..1, left ear first, or audio; a single channel
                is used for both ears.
            sample_rate: Sample rate of an array in Hz.
            mix: Fraction of the mixture in the output, 0 to 1.

        Returns:
            Audio of the same length and rate, (T, 2); its report is a tuple of warnings.

        Raises:
            AudioFileError, UsageError: See `waveforms.as_audio`; or `mix` lies outside 0..1.
        """
        check_mix(mix)
        audio = as_audio(mixture, sample_rate)
        nothing = np.zeros((0, EARS), np.float32)
        output = np.concatenate([nothing, *self.stream([audio.columns], audio.sample_rate, mix)])
        warnings = (*self.warnings, *_ear_warnings(audio.columns.shape[1], "directions are lost"))
        return Audio(output, audio.sample_rate, warnings)

    def stream(self, blocks: Iterable[np.ndarray], sample_rate: int, mix: float = 0.0) -> Iterator[np.ndarray]:
        """Yield the extracted speaker, (T', 2) float32, from blocks (T, C) float32; see `extract_stream`."""
        return extract_stream(self.network, self.vector, (_ears(block) for block in blocks), sample_rate, mix)


def extract(
    mixture: str | os.PathLike[str],
    enroll: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mix: float = 0.0,
    model: str | os.PathLike[str] | TargetSpeakerModel = DEFAULT_MODEL,
    device: str = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> Extraction:
    """Extract the enrolled speaker from a mixture; the output has two channels and the mixture's length and rate.

    Args:
        mixture: A binaural recording, left ear first; one channel works, with a warning.
        enroll: The enrollment recording: 1 to 10 s facing the speaker; noise and other speakers are allowed.
        output: The file to write; its suffix names the format.
        mix: 0 is the speaker alone, 1 the unchanged mixture.
        model: A model directory or a name, or a model from `tse.models.load_model`.
        device: `cpu`, `cuda` or `auto`; a loaded model stays on its device.
        progress: Called after every block with the seconds processed and the length in the mixture's header.

    Raises:
        AudioFileError: A file cannot be read or written, or the enrollment recording is too short or silent.
        ModelNotFoundError, ModelFormatError: See `tse.models.load_model`.
        UsageError: `mix` lies outside 0..1, or the output is one of the inputs.
    """
    check_mix(mix)
    if any(_same(output, path) for path in (mixture, enroll)):
        raise UsageError("is an input as well", path=output, remedy="name another output")
    speaker = TargetSpeaker.enroll(enroll, model=model, device=device)
    counter = _Counter()

    def report_progress(blocks: Iterable[np.ndarray], rate: int, whole_s: float) -> Iterator[np.ndarray]:
        for block in blocks:
            yield block
            if progress is not None:
                progress(counter.samples / rate, whole_s)

    with BlockReader(mixture, None, _BLOCK_S, channel="each") as reader:
        blocks = iter(reader)
        first = next(blocks, None)
        if first is None:
            raise AudioFileError("holds no sound", path=mixture, remedy="record it again")
        extracted = speaker.stream(itertools.chain([first], blocks), reader.sample_rate, mix)
        extracted = report_progress(counter.count(extracted), reader.sample_rate, reader.info.duration_s)
        write_blocks(output, extracted, reader.sample_rate, EARS)
        warnings = (*reader.warnings, *_ear_warnings(reader.info.channels, "directions of the speakers are lost"))
        rate = reader.sample_rate
    lines = [f"{mixture}: {line}" for line in warnings] + [f"{enroll}: {line}" for line in speaker.warnings]
    if counter.clipped:
        lines.append(f"{output}: {counter.clipped} samples were clipped to full scale")
    return Extraction(Path(output), rate, counter.samples, speaker.enrollment_s, counter.clipped, tuple(lines))


def read_enrollment(source: Source, sample_rate: int | None = None) -> EnrollmentRecording:
    """Read and check an enrollment recording.

    Args:
        source: A sound file, (T, 2) float in -1..1, left ear first, or audio.
        sample_rate: Sample rate of an array in Hz.

    Raises:
        AudioFileError: The recording cannot be read, is shorter than 1 s, or silent.
        UsageError: See `waveforms.as_audio`.
    """
    if isinstance(source, np.ndarray | Audio):
        audio = as_audio(source, sample_rate)
        waveform = resample(audio.columns, audio.sample_rate, SAMPLE_RATE)[: round(MOST_S * SAMPLE_RATE)]
        return _checked(waveform, "the enrollment", audio.duration_s, ())
    with BlockReader(source, SAMPLE_RATE, MOST_S, channel="each") as reader:
        waveform = next(iter(reader), np.zeros((0, reader.info.channels), np.float32))
        return _checked(waveform, os.fspath(source), reader.info.duration_s, reader.warnings)


def _checked(waveform: np.ndarray, path: str, whole_s: float, problems: Sequence[str]) -> EnrollmentRecording:
    """Check an enrollment recording: (T, C) float32 at 16 kHz, cut to the longest that is used."""
    warnings, channels = list(problems), waveform.shape[1]
    more = whole_s - MOST_S if len(waveform) == round(MOST_S * SAMPLE_RATE) else 0.0
    seconds = len(waveform) / SAMPLE_RATE
    remedy = f"record {LEAST_S:g} to {MOST_S:g} s while facing the speaker"
    if seconds < LEAST_S:
        raise AudioFileError(f"an enrollment of {seconds:.2f} s is too short", path=path, remedy=remedy)
    levels = np.sqrt(np.mean(np.square(waveform, dtype=np.float64), axis=0))
    if levels.max() < _SILENT:
        raise AudioFileError("the enrollment is silent", path=path, remedy=f"check the microphones and {remedy}")
    ears = _ears(waveform)
    loss = "the frontal speaker cannot be distinguished from others"
    warnings += _ear_warnings(channels, loss)
    if channels >= EARS and np.array_equal(ears[:, 0], ears[:, 1]):
        warnings.append(f"both channels are identical: {loss}")
    elif min(levels[:EARS]) < _SILENT:
        warnings.append(f"one ear is silent: {loss}")
    clipped = float((np.abs(ears) >= _CLIPPED).mean())
    if clipped > _MOST_CLIPPED:
        warnings.append(f"{100 * clipped:.1f} % of the samples are clipped: the enrollment was recorded too loud")
    if more > 0.01:
        warnings.append(f"only its first {MOST_S:g} s are used")
    whole = len(ears) // CHUNK * CHUNK
    return EnrollmentRecording(torch.from_numpy(np.ascontiguousarray(ears[:whole].T)), tuple(warnings))


def extract_stream(
    network: TargetSpeakerNetwork, enrolled: Tensor, blocks: Iterable[np.ndarray], sample_rate: int, mix: float = 0.0
) -> Iterator[np.ndarray]:
    """Extract one speaker from a recording that arrives block by block.

    Args:
        network: The trained networks.
        enrolled: (1, 256) unit vector of the speaker.
        blocks: (T, 2) float32 of any lengths.
        sample_rate: Sample rate of the blocks, Hz.
        mix: 0 is the speaker alone, 1 the unchanged recording.

    Yields:
        (T', 2) float32, aligned with the input; in total as many samples as the input.
    """
    state = network.initial_state()

    def step(chunks: np.ndarray) -> np.ndarray:
        nonlocal state
        with torch.inference_mode():
            sound, state = network.step(torch.from_numpy(chunks.T.copy())[None].to(enrolled.device), enrolled, state)
        extracted: np.ndarray = sound[0].T.cpu().numpy()
        return extracted

    return process_at_rate(
        blocks, sample_rate, SAMPLE_RATE, lambda at_model: process_in_chunks(at_model, CHUNK, OVERLAP, step), mix
    )


class _Counter:
    """Counts samples and clipped samples of a stream of blocks."""

    def __init__(self) -> None:
        self.samples, self.clipped = 0, 0

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            self.clipped += int((np.abs(block) > 1.0).sum())
            yield block


def _ears(block: np.ndarray) -> np.ndarray:
    """Return (T, 2) of (T, C): one channel twice, or the first two."""
    return np.repeat(block, EARS, axis=1) if block.shape[1] == 1 else block[:, :EARS]


def _ear_warnings(channels: int, loss: str) -> list[str]:
    if channels == 1:
        return [f"has one channel, which is used for both ears: {loss}"]
    if channels > EARS:
        return [f"has {channels} channels: the first two are used as the left and the right ear"]
    return []


def _same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
