"""Enrollment: a short binaural recording of the frontal speaker to the vector that conditions the stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS, Contract, EnrollmentContract
from audio_llm_realtime.errors import ContractError, EnrollmentError, UsageError
from audio_llm_realtime.onnx_session import open_session

SILENT_DB = -60.0  # RMS level, relative to full scale
FULL_SCALE = 0.999
CLIPPED_FRACTION = 0.01  # largest accepted fraction of clipped samples

_RECORD_AGAIN = "face the speaker and record again"


@dataclass(frozen=True)
class Enrollment:
    """An enrolled speaker.

    Attributes:
        vector: float32, of the shape of the stream's condition.
        used_s: Duration of the recording that was used.
        warnings: Messages for the user.
    """

    vector: NDArray[np.float32]
    used_s: float
    warnings: tuple[str, ...] = ()


class Enroller:
    """Runs the enrollment network of a model.

    Args:
        contract: The model's contract.

    Raises:
        ContractError: The model has no enrollment network, or the file does not match the contract.
        ModelNotFoundError: The file of the network is missing.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = _enrollment_of(contract)
        self._rate = contract.sample_rate
        ports = self._contract
        self._session = open_session(ports.path, ports.sha256, (ports.recording,), (ports.vector, ports.frontal_level))

    def enroll(self, recording: NDArray[np.float32], sample_rate: int) -> Enrollment:
        """Enroll the frontal speaker of a recording.

        Args:
            recording: (2, T) float32.
            sample_rate: Rate of the recording in Hz, which must be the model's.

        Raises:
            EnrollmentError: The recording has another rate, one channel or NaN, or it is too short, silent or clipped.
        """
        recording = np.asarray(recording, np.float32)
        most = self._contract.most_samples
        warnings = []
        if recording.ndim == 2 and recording.shape[1] > most:
            warnings.append(
                f"the enrollment lasts {recording.shape[1] / self._rate:.1f} s; "
                f"the first {most / self._rate:.1f} s are used"
            )
            recording = recording[:, :most]
        self._check(recording, sample_rate)
        ports = self._contract
        vector, frontal_level_db = self._session.run(
            [ports.vector.name, ports.frontal_level.name], {ports.recording.name: recording[None]}
        )
        if vector.shape != self._contract.vector.sizes:
            raise ContractError(f"the enrollment vector has the shape {vector.shape}", path=self._contract.path)
        if not np.isfinite(vector).all() or not vector.any():
            raise EnrollmentError("no speaker detected in the enrollment", remedy=_RECORD_AGAIN)
        if frontal_level_db[0] < ports.least_frontal_level_db:
            warnings.append("no frontal speaker detected in the enrollment; face the speaker and record again")
        return Enrollment(vector, recording.shape[1] / self._rate, tuple(warnings))

    def _check(self, recording: NDArray[np.float32], sample_rate: int) -> None:
        if sample_rate != self._rate:
            raise EnrollmentError(f"the enrollment is at {sample_rate} Hz, not {self._rate} Hz", remedy="resample it")
        if recording.ndim != 2 or recording.shape[0] != EARS:
            channels = recording.shape[0] if recording.ndim == 2 else 1
            raise EnrollmentError(
                f"the enrollment has {channels} channel{'s' if channels != 1 else ''}, not 2",
                remedy="record it with a microphone at each ear",
            )
        least = self._contract.least_samples
        if recording.shape[1] < least:
            raise EnrollmentError(
                f"the enrollment lasts {recording.shape[1] / self._rate:.2f} s, less than {least / self._rate:.2f} s",
                remedy=_RECORD_AGAIN,
            )
        if not np.isfinite(recording).all():
            raise EnrollmentError("the enrollment has samples that are not finite", remedy=_RECORD_AGAIN)
        power = np.mean(np.square(recording, dtype=np.float64), axis=1)
        for ear, value in zip(("left", "right"), power, strict=True):
            if value < 10.0 ** (SILENT_DB / 10.0):
                raise EnrollmentError(f"the {ear} channel of the enrollment is silent", remedy="check the microphones")
        clipped = float(np.mean(np.abs(recording) >= FULL_SCALE))
        if clipped > CLIPPED_FRACTION:
            raise EnrollmentError(
                f"{100 * clipped:.1f} % of the enrollment is clipped",
                remedy="lower the gain of the microphones and record again",
            )


class EnrollmentRecorder:
    """Records an enrollment from the chunks that a worker processes; another thread starts it and takes the result.

    Args:
        contract: The model's contract.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        most = contract.enrollment.most_samples if contract.enrollment else 0
        self._recording = np.zeros((EARS, most), np.float32)
        self._target_samples = 0  # 0: nothing is recorded
        self._filled = 0

    @property
    def active(self) -> bool:
        """Whether a recording was started and is not complete, or was not taken."""
        return self._target_samples > 0

    def start(self, seconds: float) -> None:
        """Start a recording, unless one is active.

        Args:
            seconds: Duration; limited to what the network accepts.

        Raises:
            ContractError: The model has no enrollment network.
            UsageError: The duration is too short.
        """
        samples = round(self.recordable_s(seconds) * self._contract.sample_rate)
        if self.active:
            return
        self._filled = 0
        self._target_samples = samples

    def recordable_s(self, seconds: float) -> float:
        """Return the duration that `start` would record: at most what the network accepts.

        Raises:
            ContractError: The model has no enrollment network.
            UsageError: The duration is too short.
        """
        limits, rate = _enrollment_of(self._contract), self._contract.sample_rate
        fitting_s = min(seconds, limits.most_samples / rate)
        if round(fitting_s * rate) < limits.least_samples:
            least_s = limits.least_samples / rate
            raise UsageError(f"an enrollment of {seconds:g} s is too short", remedy=f"give {least_s:g} s or more")
        return fitting_s

    def write(self, chunk: NDArray[np.float32]) -> None:
        """Append a chunk (2, T) float32, if a recording is active."""
        length = min(chunk.shape[1], self._target_samples - self._filled)
        if length > 0:
            self._recording[:, self._filled : self._filled + length] = chunk[:, :length]
            self._filled += length

    def take(self) -> NDArray[np.float32] | None:
        """Return the recording (2, T) float32 once, when it is complete; else None."""
        if not self._target_samples or self._filled < self._target_samples:
            return None
        recording = self._recording[:, : self._target_samples].copy()
        self._target_samples = 0
        return recording


def _enrollment_of(contract: Contract) -> EnrollmentContract:
    if contract.enrollment is None:
        raise ContractError(
            "this model cannot enroll", path=contract.folder, remedy="export one with an enrollment network"
        )
    return contract.enrollment
