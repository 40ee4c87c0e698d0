"""The errors a listener can meet: what went wrong, with which file or device, and what to do about it."""

from __future__ import annotations

import os
from pathlib import Path


class RealtimeError(Exception):
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


class SoundFileError(RealtimeError):
    """A sound file that cannot be read, or whose rate or channels do not fit."""


class EnrollmentError(RealtimeError):
    """A look that nobody can be enrolled from."""


class DeviceError(RealtimeError):
    """A sound device that is not there, or cannot do what is asked."""


class DeviceLostError(DeviceError):
    """A sound device that went away while it was in use."""


class UsageError(RealtimeError):
    """Options that contradict each other, or a value outside its range."""

    exit_status = 2


class ModelNotFoundError(RealtimeError):
    """No model in that folder, or a file of it is missing."""

    exit_status = 3


class ContractError(RealtimeError):
    """A model whose contract is damaged, of another version, or does not match its ONNX file."""

    exit_status = 3
