"""Errors of this package: what went wrong, with which file or device, and what the user can do about it."""

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
    """An audio file that cannot be read or written, or that has the wrong number of channels."""


class EnrollmentError(RealtimeError):
    """An enrollment recording from which no speaker can be enrolled."""


class DeviceError(RealtimeError):
    """An audio device that is missing or does not support what is requested."""


class DeviceLostError(DeviceError):
    """An audio device that was disconnected while it was in use."""


class UsageError(RealtimeError):
    """Options that contradict each other, or a value that is out of range."""

    exit_status = 2


class ModelNotFoundError(RealtimeError):
    """The folder contains no model, or a file of the model is missing."""

    exit_status = 3


class ContractError(RealtimeError):
    """A model whose contract is damaged, of another version, or does not match its ONNX file."""

    exit_status = 3
