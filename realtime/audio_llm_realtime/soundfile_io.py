"""Read and write audio files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS
from audio_llm_realtime.errors import SoundFileError

_PIECE_FRAMES = 16_384  # libsndfile's Vorbis encoder puts a whole write on the stack
_PRESERVED_SUBTYPES = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")


@dataclass(frozen=True)
class Sound:
    """The content of an audio file.

    Attributes:
        waveform: (C, T) float32.
        sample_rate: In Hz.
        subtype: Sample format, as soundfile names it.
    """

    waveform: NDArray[np.float32]
    sample_rate: int
    subtype: str


def read_sound(path: Path) -> Sound:
    """Read an audio file of one or two channels.

    Raises:
        SoundFileError: The file is missing, not audio, empty, or has more channels.
    """
    import soundfile

    if not path.is_file():
        raise SoundFileError("no such file", path=path)
    try:
        with soundfile.SoundFile(path) as file:
            waveform = file.read(dtype="float32", always_2d=True).T
            sound = Sound(np.ascontiguousarray(waveform), file.samplerate, file.subtype)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "error_string", error)).split())
        raise SoundFileError(f"not readable as audio: {reason}", path=path, remedy="convert it to WAV") from None
    channels, samples = sound.waveform.shape
    if channels > EARS:
        raise SoundFileError(f"{channels} channels, not 2", path=path, remedy="keep the channels of the two ears")
    if not samples:
        raise SoundFileError("holds no samples", path=path)
    return sound


def write_sound(path: Path, waveform: NDArray[np.float32], sample_rate: int, subtype: str) -> int:
    """Write an audio file completely or not at all.

    Args:
        path: Its suffix determines the format.
        waveform: (C, T) float32.
        sample_rate: In Hz.
        subtype: Sample format of the source; used if it is PCM of 16 bits or more, or float, and the file format
            supports it; otherwise the default of the file format is used.

    Returns:
        Number of samples that exceeded full scale and were clipped.

    Raises:
        SoundFileError: The file cannot be written.
    """
    import soundfile

    check_writable(path)
    extension = path.suffix[1:].upper()
    part = path.with_name(f".{path.name}.part")
    try:
        storable = subtype in _PRESERVED_SUBTYPES and soundfile.check_format(extension, subtype)
        chosen = subtype if storable else soundfile.default_subtype(extension)
        with soundfile.SoundFile(part, "w", sample_rate, waveform.shape[0], chosen, format=extension) as file:
            for start in range(0, waveform.shape[1], _PIECE_FRAMES):
                file.write(waveform[:, start : start + _PIECE_FRAMES].T)
        part.replace(path)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise SoundFileError(f"not written: {' '.join(str(error).split())}", path=path) from None
    finally:
        part.unlink(missing_ok=True)
    return int(np.count_nonzero(np.abs(waveform) > 1.0)) if chosen.startswith("PCM_") else 0


def check_writable(path: Path) -> None:
    """Check before processing whether a file of this name can be written.

    Raises:
        SoundFileError: The format is unknown, the folder is missing, or the path is a folder.
    """
    import soundfile

    extension = path.suffix[1:].upper()
    if extension not in soundfile.available_formats() or soundfile.default_subtype(extension) is None:
        raise SoundFileError(f"no audio format has the suffix {path.suffix!r}", path=path, remedy="write .wav")
    if not path.parent.is_dir():
        raise SoundFileError("the folder does not exist", path=path, remedy=f"create {path.parent}")
    if path.is_dir():
        raise SoundFileError("is a folder", path=path, remedy="name a file")
