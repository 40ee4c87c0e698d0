"""Enrol anew while the loop runs: record a look, enrol, and have the engine fade to the new person."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial

from audio_llm_realtime.counters import Count
from audio_llm_realtime.enrollment import Enroller, Enrollment
from audio_llm_realtime.errors import EnrollmentError
from audio_llm_realtime.worker import Worker


class LiveEnrollment:
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
        notify: Callable[[str], None],
        executor: Executor | None = None,
    ) -> None:
        self._worker = worker
        self._enroller = enroller
        self.seconds = worker.recorder.recordable_s(seconds)
        self._shortened = self.seconds < seconds
        self._notify = notify
        self._executor = executor
        self._pending: Future[Enrollment] | None = None
        self._first_position: int | None = None  # position from which on the first person is in what the worker gives
        self.failure: EnrollmentError | None = None

    def request(self) -> None:
        """Begin to record a look, unless one is being recorded or enrolled from."""
        if self._worker.recorder.active or self._pending is not None:
            self._notify("a look is being recorded")
            return
        self._worker.recorder.start(self.seconds)
        self._notify(
            f"face the person for {self.seconds:g} s{', the most that the model takes' if self._shortened else ''}"
        )

    def poll(self, wait: bool = False) -> None:
        """Enrol if a look is complete; a look that cannot be used changes nothing but `failure`.

        Args:
            wait: For an enrolment that runs beside.
        """
        recording = self._worker.recorder.take()
        if recording is not None:
            enroll = partial(self._enroller.enroll, recording, self._worker.engine.contract.sample_rate)
            if self._executor is None:
                self._apply(enroll)
            else:
                self._pending = self._executor.submit(enroll)
        if self._pending is not None and (wait or self._pending.done()):
            pending, self._pending = self._pending, None
            self._apply(pending.result)
        if self._first_position is not None and self._worker.buffer.next_position >= self._first_position:
            self._worker.buffer.mixer.enrolled, self._first_position = True, None

    def _apply(self, result: Callable[[], Enrollment]) -> None:
        try:
            enrollment = result()
        except EnrollmentError as error:
            self.failure = error
            self._notify(f"not enrolled: {error}")
            return
        self.failure = None
        for warning in enrollment.warnings:
            self._notify(f"warning: {warning}")
        self._worker.engine.set_conditions(enrollment.vector)
        buffer = self._worker.buffer
        if not buffer.mixer.enrolled and self._first_position is None:  # chunks on their way were made for nobody
            self._first_position = buffer.input_ring.written + buffer.chunk_frames
        self._worker.counters.add(Count.ENROLMENTS)
        self._notify(f"enrolled from {enrollment.used_s:.1f} s")
