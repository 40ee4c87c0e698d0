"""Enrol anew while the loop runs: record a look, enrol, and have the engine fade to the new person."""

from __future__ import annotations

from collections.abc import Callable

from audio_llm_realtime.enrol import Enroller
from audio_llm_realtime.errors import EnrolmentError
from audio_llm_realtime.ledger import Count
from audio_llm_realtime.worker import Worker


class LiveEnrolment:
    """Takes the place of whoever is heard when it is asked to.

    Until somebody is enrolled, the listener hears the dry signal.

    Args:
        worker: Runs the engine.
        enroller: Runs the enrolment network.
        seconds: Of a look.
        say: Takes a line for the listener.

    Attributes:
        failure: Why the last look enrolled nobody; None if it did.
    """

    def __init__(self, worker: Worker, enroller: Enroller, seconds: float, say: Callable[[str], None]) -> None:
        self._worker = worker
        self._enroller = enroller
        self._seconds = seconds
        self._say = say
        self.failure: EnrolmentError | None = None

    def ask(self) -> None:
        """Begin to record a look, unless one is being recorded."""
        if self._worker.recorder.recording:
            self._say("a look is being recorded")
            return
        self._worker.recorder.start(self._seconds)
        self._say(f"face the person for {self._seconds:g} s")

    def poll(self) -> None:
        """Enrol if a look is complete; a look that cannot be used changes nothing but `failure`."""
        look = self._worker.recorder.take()
        if look is None:
            return
        try:
            found = self._enroller.enrol(look, self._worker.engine.contract.sample_rate)
        except EnrolmentError as error:
            self.failure = error
            self._say(f"not enrolled: {error}")
            return
        self.failure = None
        for warning in found.warnings:
            self._say(f"warning: {warning}")
        self._worker.engine.set_conditions(found.vector)
        self._worker.bridge.playout.enrolled = True
        self._worker.ledger.add(Count.ENROLMENTS)
        self._say(f"enrolled from {found.used_s:.1f} s")
