"""Enrol anew while the loop runs: record a look, enrol, and have the engine fade to the new person."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial

from audio_llm_realtime.enrol import Enroller, Enrolment
from audio_llm_realtime.errors import EnrolmentError
from audio_llm_realtime.ledger import Count
from audio_llm_realtime.worker import Worker


class LiveEnrolment:
    """Takes the place of whoever is heard when it is asked to.

    Until somebody is enrolled, the listener hears the dry signal.

    Args:
        worker: Runs the engine.
        enroller: Runs the enrolment network.
        seconds: Of a look; no more are recorded than the network takes.
        say: Takes a line for the listener.
        beside: Runs the enrolment while the loop goes on, so that a later `poll` takes up what it gave; None: `poll`
            itself runs it.

    Raises:
        UsageError: The look would be too short.

    Attributes:
        seconds: Of a look, as it is recorded.
        failure: Why the last look enrolled nobody; None if it did.
    """

    def __init__(
        self,
        worker: Worker,
        enroller: Enroller,
        seconds: float,
        say: Callable[[str], None],
        beside: Executor | None = None,
    ) -> None:
        self._worker = worker
        self._enroller = enroller
        self.seconds = worker.recorder.fit(seconds)
        self._cut = self.seconds < seconds
        self._say = say
        self._beside = beside
        self._pending: Future[Enrolment] | None = None
        self._first_heard: int | None = None  # position from which on the first person is in what the worker gives
        self.failure: EnrolmentError | None = None

    def ask(self) -> None:
        """Begin to record a look, unless one is being recorded or enrolled from."""
        if self._worker.recorder.recording or self._pending is not None:
            self._say("a look is being recorded")
            return
        self._worker.recorder.start(self.seconds)
        self._say(f"face the person for {self.seconds:g} s{', the most that the model takes' if self._cut else ''}")

    def poll(self, wait: bool = False) -> None:
        """Enrol if a look is complete; a look that cannot be used changes nothing but `failure`.

        Args:
            wait: For an enrolment that runs beside.
        """
        look = self._worker.recorder.take()
        if look is not None:
            enrol = partial(self._enroller.enrol, look, self._worker.engine.contract.sample_rate)
            if self._beside is None:
                self._take_up(enrol)
            else:
                self._pending = self._beside.submit(enrol)
        if self._pending is not None and (wait or self._pending.done()):
            pending, self._pending = self._pending, None
            self._take_up(pending.result)
        if self._first_heard is not None and self._worker.bridge.next_position >= self._first_heard:
            self._worker.bridge.playout.enrolled, self._first_heard = True, None

    def _take_up(self, result: Callable[[], Enrolment]) -> None:
        try:
            found = result()
        except EnrolmentError as error:
            self.failure = error
            self._say(f"not enrolled: {error}")
            return
        self.failure = None
        for warning in found.warnings:
            self._say(f"warning: {warning}")
        self._worker.engine.set_conditions(found.vector)
        bridge = self._worker.bridge
        if not bridge.playout.enrolled and self._first_heard is None:  # chunks on their way were made for nobody
            self._first_heard = bridge.heard.written + bridge.unit
        self._worker.ledger.add(Count.ENROLMENTS)
        self._say(f"enrolled from {found.used_s:.1f} s")
