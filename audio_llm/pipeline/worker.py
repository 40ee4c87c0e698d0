"""A corrector in a separate process, which runs concurrently with the recognizer.

pocketsphinx holds the GIL while it decodes, so a thread would not run concurrently.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from audio_llm.correction import Correction, Corrector
from audio_llm.errors import AudioLLMError
from audio_llm.nbest import NBest

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_MOST_WAITING = 64  # lists; with more of them the recognizer waits
_AHEAD = 8  # recordings that may wait for a corrector in another process


class CorrectionWorker(Protocol):
    """Corrects lists one by one, here or in another process."""

    hypotheses: int
    ahead: int

    def ready(self) -> None:
        """Wait until the corrector is loaded; raises what went wrong."""
        ...

    def submit(self, nbest: NBest, waveform: np.ndarray) -> Future[Correction]:
        """Submit one list and its waveform, (T,) float32 at 16 kHz; return the future of the correction."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


def as_worker(corrector: Corrector) -> CorrectionWorker:
    """Return a corrector as a worker: itself where it is one, else one that corrects at once."""
    return corrector if isinstance(corrector, CorrectorProcess) else _InThisProcess(corrector)


class _InThisProcess:
    """A corrector that corrects when a list is submitted."""

    ahead = 0

    def __init__(self, corrector: Corrector) -> None:
        self._corrector = corrector
        self.hypotheses = corrector.hypotheses

    def ready(self) -> None:
        """Do nothing: it is loaded."""

    def submit(self, nbest: NBest, waveform: np.ndarray) -> Future[Correction]:
        """Correct one list (see `CorrectionWorker.submit`)."""
        correction: Future[Correction] = Future()
        correction.set_result(self._corrector.correct([nbest], [waveform])[0])
        return correction

    def close(self) -> None:
        """Do nothing: nothing runs."""


class CorrectorProcess:
    """A corrector (see `Corrector`) that runs in another process, with the same results.

    Args:
        load: Creates the corrector in that process; must be picklable.
        name: The corrector's name.
        hypotheses: Number of hypotheses per list that it uses.
    """

    ahead = _AHEAD

    def __init__(self, load: Callable[[], Corrector], name: str, hypotheses: int) -> None:
        self.name = name
        self.hypotheses = hypotheses
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, load), daemon=True)
        self._process.start()
        theirs.close()
        self._loaded: Future[None] = Future()
        self._waiting: queue.SimpleQueue[Future[Correction]] = queue.SimpleQueue()
        self._room = threading.Semaphore(_MOST_WAITING)
        threading.Thread(target=self._receive, daemon=True).start()

    def ready(self) -> None:
        """Wait until the corrector is loaded.

        Raises:
            AudioLLMError: Loading failed; the error is the one that was raised in the process.
        """
        self._loaded.result()

    def submit(self, nbest: NBest, waveform: np.ndarray) -> Future[Correction]:
        """Submit one list and its waveform, (T,) float32 at 16 kHz; return the future of the correction."""
        future: Future[Correction] = Future()
        self._room.acquire()
        self._waiting.put(future)
        with contextlib.suppress(OSError):  # the process has ended: the receiver sets the errors
            self._connection.send((nbest, waveform))
        return future

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        """Correct each list (see `Corrector.correct`)."""
        sounds = waveforms if waveforms is not None else [np.zeros(0, np.float32)] * len(lists)
        return [future.result() for future in [self.submit(*pair) for pair in zip(lists, sounds, strict=True)]]

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _receive(self) -> None:
        """Set the futures in order of submission; if the process ends, the remaining ones get that error."""
        future: Future[Any] = self._loaded
        while True:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                answer = self._gone()
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
            if future is not self._loaded:
                self._room.release()
            future = self._waiting.get()

    def _gone(self) -> AudioLLMError:
        self._process.join(1.0)
        remedy = "give the same command again; if memory is short, close other programs"
        return AudioLLMError(f"the corrector's process ended with status {self._process.exitcode}", remedy=remedy)


def load_in_process(
    asr: str,
    words: Sequence[str],
    name: str,
    model: str | None,
    decode: str | None,
    device: str,
    hypotheses: int,
) -> CorrectorProcess:
    """Start a corrector process for a recognizer with its default model; arguments as for `load_transcriber`.

    Args:
        hypotheses: Result of `list_length`.
    """
    load = functools.partial(_load, asr, tuple(words), name, model, decode, device)
    return CorrectorProcess(load, name, hypotheses)


def _load(asr: str, words: tuple[str, ...], name: str, model: str | None, decode: str | None, device: str) -> Corrector:
    """Load the corrector and the recognizer that its decoding may need."""
    from audio_llm.asr.engines import load_recognizer
    from audio_llm.pipeline.correct import load_corrector

    recognizer = load_recognizer(asr)
    if words:
        recognizer.prefer(words)
    return load_corrector(name, model, recognizer, decode, device)


def _serve(connection: Connection, load: Callable[[], Corrector]) -> None:
    """Send None, or the error of loading; then the correction or error of every received list, in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process receives it too and ends this one
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) - 1))
    )  # one core is left to the recognizer
    inbox: queue.SimpleQueue[tuple[NBest, np.ndarray] | None] = queue.SimpleQueue()
    threading.Thread(target=_drain, args=(connection, inbox), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the parent process has closed the connection
        try:
            corrector = load()
        except Exception as error:
            connection.send(error)
            return
        connection.send(None)
        while (job := inbox.get()) is not None:
            connection.send(_answer(corrector, *job))


def _answer(corrector: Corrector, nbest: NBest, waveform: np.ndarray) -> Correction | Exception:
    try:
        return corrector.correct([nbest], [waveform])[0]
    except Exception as error:
        return error


def _drain(connection: Connection, inbox: queue.SimpleQueue[tuple[NBest, np.ndarray] | None]) -> None:
    """Receive lists immediately, so that the sender does not wait; end with the sender."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        inbox.put(None)
