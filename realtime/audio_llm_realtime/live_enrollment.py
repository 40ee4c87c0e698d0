"""Enrollment while the loop runs: record, enroll, and fade the engine to the new speaker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial

from audio_llm_realtime.counters import Count
from audio_llm_realtime.enrollment import Enroller, Enrollment
from audio_llm_realtime.errors import EnrollmentError
from audio_llm_realtime.worker import Worker


class LiveEnrollment:
    """Replaces the target speaker on request.

    Until a speaker is enrolled, the dry signal is played.

    Args:
        worker: Runs the engine.
        enroller: Runs the enrollment network.
        seconds: Duration of a recording; limited to what the network accepts.
        notify: Receives messages for the user.
        executor: Runs the enrollment network concurrently with the loop; a later `poll` applies the result. None:
            `poll` runs it itself.

    Raises:
        UsageError: The duration is too short.

    Attributes:
        seconds: Duration of a recording after the limit.
        failure: Why the last enrollment failed; None if it succeeded.
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
        self._first_position: int | None = None  # first position whose wet signal contains the first speaker
        self.failure: EnrollmentError | None = None

    def request(self) -> None:
        """Start a recording, unless an enrollment is in progress."""
        if self._worker.recorder.active or self._pending is not None:
            self._notify("an enrollment is in progress")
            return
        self._worker.recorder.start(self.seconds)
        self._notify(
            f"face the speaker for {self.seconds:g} s{', the most that the model accepts' if self._shortened else ''}"
        )

    def poll(self, wait: bool = False) -> None:
        """Enroll if a recording is complete; a failed enrollment changes nothing but `failure`.

        Args:
            wait: Whether to wait for an enrollment that runs concurrently.
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
        if not buffer.mixer.enrolled and self._first_position is None:  # pending chunks have no target speaker
            self._first_position = buffer.input_ring.written + buffer.chunk_frames
        self._worker.counters.add(Count.ENROLMENTS)
        self._notify(f"enrolled from {enrollment.used_s:.1f} s")
