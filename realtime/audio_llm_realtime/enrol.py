"""Enrolment: a few seconds recorded while facing someone to the vector that the stream is conditioned by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audio_llm_realtime.contract import EARS, Contract, EnrolmentContract
from audio_llm_realtime.errors import ContractError, EnrolmentError, UsageError
from audio_llm_realtime.session import open_session

SILENT_DB = -60.0  # RMS against full scale
FULL_SCALE = 0.999
CLIPPED_SHARE = 0.01  # of all samples

_LOOK_AGAIN = "face the person and record the look again"


@dataclass(frozen=True)
class Enrolment:
    """What a look gave.

    Attributes:
        vector: float32, of the shape of the stream's condition.
        used_s: Seconds of the look that were used.
        warnings: What the listener should know.
    """

    vector: NDArray[np.float32]
    used_s: float
    warnings: tuple[str, ...] = ()


class Enroller:
    """Runs the enrolment network of a contract.

    Args:
        contract: Of the model.

    Raises:
        ContractError: The model has no enrolment network, or not the one described.
        ModelNotFoundError: Its file is missing.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = _enrolment_of(contract)
        self._rate = contract.sample_rate
        found = self._contract
        self._session = open_session(found.path, found.sha256, (found.look,), (found.vector, found.front))

    def enrol(self, look: NDArray[np.float32], sample_rate: int) -> Enrolment:
        """Enrol the person of a look.

        Args:
            look: (2, T) float32.
            sample_rate: Its rate in Hz, which must be the model's.

        Raises:
            EnrolmentError: The look has another rate, one channel, NaN, or is too short, silent or clipped.
        """
        look = np.asarray(look, np.float32)
        most = self._contract.most_samples
        warnings = []
        if look.ndim == 2 and look.shape[1] > most:
            warnings.append(
                f"the look lasts {look.shape[1] / self._rate:.1f} s; the first {most / self._rate:.1f} s are used"
            )
            look = look[:, :most]
        self._check(look, sample_rate)
        ports = self._contract
        vector, front_db = self._session.run([ports.vector.name, ports.front.name], {ports.look.name: look[None]})
        if vector.shape != self._contract.vector.sizes:
            raise ContractError(f"enrolment gave the shape {vector.shape}", path=self._contract.path)
        if not np.isfinite(vector).all() or not vector.any():
            raise EnrolmentError("enrolment found nobody in this look", remedy=_LOOK_AGAIN)
        if front_db[0] < ports.least_front_db:
            warnings.append("nobody seems to talk in front: face the person and record the look again")
        return Enrolment(vector, look.shape[1] / self._rate, tuple(warnings))

    def _check(self, look: NDArray[np.float32], sample_rate: int) -> None:
        if sample_rate != self._rate:
            raise EnrolmentError(f"the look is at {sample_rate} Hz, not {self._rate} Hz", remedy="resample it")
        if look.ndim != 2 or look.shape[0] != EARS:
            channels = look.shape[0] if look.ndim == 2 else 1
            raise EnrolmentError(
                f"the look has {channels} channel{'s' if channels != 1 else ''}, not 2",
                remedy="record it with a microphone at each ear",
            )
        least = self._contract.least_samples
        if look.shape[1] < least:
            raise EnrolmentError(
                f"the look lasts {look.shape[1] / self._rate:.2f} s, less than {least / self._rate:.2f} s",
                remedy=_LOOK_AGAIN,
            )
        if not np.isfinite(look).all():
            raise EnrolmentError("the look has samples that are not finite", remedy=_LOOK_AGAIN)
        power = np.mean(np.square(look, dtype=np.float64), axis=1)
        for ear, value in zip(("left", "right"), power, strict=True):
            if value < 10.0 ** (SILENT_DB / 10.0):
                raise EnrolmentError(f"the {ear} ear of the look is silent", remedy="check the microphones")
        clipped = float(np.mean(np.abs(look) >= FULL_SCALE))
        if clipped > CLIPPED_SHARE:
            raise EnrolmentError(
                f"{100 * clipped:.1f} % of the look is clipped",
                remedy="lower the gain of the microphones and record again",
            )


class LookRecorder:
    """Keeps a look out of the chunks that a worker hears; asking and taking belong to another thread.

    Args:
        contract: Of the model.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        most = contract.enrolment.most_samples if contract.enrolment else 0
        self._look = np.zeros((EARS, most), np.float32)
        self._wanted = 0  # samples; 0: nothing is recorded
        self._filled = 0

    @property
    def recording(self) -> bool:
        """A look was asked for and is not complete, or was not taken."""
        return self._wanted > 0

    def start(self, seconds: float) -> None:
        """Begin to record, unless a look is being recorded.

        Args:
            seconds: How long; more than the network takes is cut.

        Raises:
            ContractError: The model has no enrolment network.
            UsageError: The look would be too short.
        """
        samples = round(self.fit(seconds) * self._contract.sample_rate)
        if self.recording:
            return
        self._filled = 0
        self._wanted = samples

    def fit(self, seconds: float) -> float:
        """Return how many of these seconds `start` would record: no more than the network takes.

        Raises:
            ContractError: The model has no enrolment network.
            UsageError: The look would be too short.
        """
        found, rate = _enrolment_of(self._contract), self._contract.sample_rate
        fitting_s = min(seconds, found.most_samples / rate)
        if round(fitting_s * rate) < found.least_samples:
            least_s = found.least_samples / rate
            raise UsageError(f"a look of {seconds:g} s is too short", remedy=f"give {least_s:g} s or more")
        return fitting_s

    def hear(self, chunk: NDArray[np.float32]) -> None:
        """Keep a chunk (2, T) float32, if one is wanted."""
        length = min(chunk.shape[1], self._wanted - self._filled)
        if length > 0:
            self._look[:, self._filled : self._filled + length] = chunk[:, :length]
            self._filled += length

    def take(self) -> NDArray[np.float32] | None:
        """Return the look (2, T) float32 once, when it is complete."""
        if not self._wanted or self._filled < self._wanted:
            return None
        look = self._look[:, : self._wanted].copy()
        self._wanted = 0
        return look


def _enrolment_of(contract: Contract) -> EnrolmentContract:
    if contract.enrolment is None:
        raise ContractError("this model cannot enrol", path=contract.folder, remedy="export one with an enrolment")
    return contract.enrolment
