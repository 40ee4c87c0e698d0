"""Scheduling of a thread: a real-time class, a fixed core, locked memory, no garbage collection.

All of it is optional: what the system does not grant is reported, and the loop runs without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

FIFO_PRIORITY = 40
_SWITCH_INTERVAL_S = 0.0005  # how long another Python thread may hold the interpreter; 5 ms by default
_LOCK_NOW_AND_LATER = 3


@dataclass(frozen=True)
class SchedulingOptions:
    """Requested scheduling of a thread.

    Attributes:
        fifo: Run under SCHED_FIFO. Such a thread must sleep in every chunk, or the kernel stops it for 50 ms a second.
        cpu: Run on this core only; None for any core.
        lock_memory: Keep all memory of the process from being swapped out.
        no_gc: Disable garbage collection, and switch Python threads every 0.5 ms.
    """

    fifo: bool = False
    cpu: int | None = None
    lock_memory: bool = False
    no_gc: bool = False


@contextlib.contextmanager
def apply_scheduling(scheduling: SchedulingOptions, refused: list[str]) -> Iterator[None]:
    """Schedule the calling thread as requested, and restore its scheduling afterwards.

    Args:
        scheduling: The requested options.
        refused: Receives a message for each option that the system did not grant.
    """
    with contextlib.ExitStack() as undo:
        if scheduling.cpu is not None:
            _attempt(refused, f"running on core {scheduling.cpu} only", partial(_pin, scheduling.cpu, undo))
        if scheduling.fifo:
            _attempt(refused, "SCHED_FIFO", partial(_fifo, undo))
        if scheduling.lock_memory:
            _attempt(refused, "locked memory", partial(_lock, undo))
        if scheduling.no_gc:
            _disable_gc(undo)
        yield


def _attempt(refused: list[str], what: str, ask: Callable[[], None]) -> None:
    try:
        ask()
    except (OSError, AttributeError) as error:  # AttributeError: a system without this call
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not supported by this system"
        refused.append(f"{what} was not granted: {reason}")


def _pin(cpu: int, undo: contextlib.ExitStack) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    undo.callback(os.sched_setaffinity, 0, before)


def _fifo(undo: contextlib.ExitStack) -> None:
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    undo.callback(os.sched_setscheduler, 0, policy, parameters)


def _lock(undo: contextlib.ExitStack) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(_LOCK_NOW_AND_LATER):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    undo.callback(library.munlockall)


def _disable_gc(undo: contextlib.ExitStack) -> None:
    undo.callback(sys.setswitchinterval, sys.getswitchinterval())
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    if gc.isenabled():
        gc.freeze()
        gc.disable()
        undo.callback(gc.enable)
        undo.callback(gc.unfreeze)
