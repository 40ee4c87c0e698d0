"""Errors for users: what went wrong, with which file, and what to do about it."""

from __future__ import annotations

import os
from pathlib import Path


class AudioLLMError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        message: What went wrong, without the file name.
        path: The file or folder concerned, if any.
        remedy: What the user can do about it, as an instruction.
    """

    exit_status = 1

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.path = Path(path) if path is not None else None
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path is not None else ""
        what_to_do = f" ({self.remedy})" if self.remedy else ""
        return " ".join(f"{where}{self.message}{what_to_do}".split())


class AudioFileError(AudioLLMError):
    """A sound file that cannot be read as sound."""


class DataError(AudioLLMError):
    """A manifest, N-best list, text or configuration with invalid content."""


class ConfigError(DataError):
    """A configuration with an unknown key or a value of the wrong kind."""

    exit_status = 2


class UsageError(AudioLLMError):
    """Options that contradict each other, or a value outside its range."""

    exit_status = 2


class ModelNotFoundError(AudioLLMError):
    """No model of that name or in that folder."""

    exit_status = 3


class DownloadError(ModelNotFoundError):
    """A model that could not be downloaded, or whose files could not be stored."""


class ModelFormatError(AudioLLMError):
    """A model directory that is damaged, of another version, or that holds pickles instead of safetensors."""

    exit_status = 3


class ParityError(AudioLLMError):
    """An exported network that does not compute what the trained one does."""


class MissingDependencyError(AudioLLMError):
    """An optional package or program that this function needs is not installed."""

    exit_status = 3


class OutOfMemoryError(AudioLLMError):
    """The memory of the machine or of its GPU does not suffice."""


class NoAudioFoundError(AudioLLMError):
    """The inputs exist but hold no sound file."""

    exit_status = 4
