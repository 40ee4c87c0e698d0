"""What the listener asks for while the loop runs: keys on a terminal, signals from elsewhere."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any


class Requests:
    """What was asked for and is not done yet.

    Attributes:
        enrol: Enrol anew.
        bypass: Switch the bypass.
        quit: End.
    """

    def __init__(self) -> None:
        self.enroll = False
        self.bypass = False
        self.quit = False

    def press(self, key: str) -> None:
        """Note a key: e, b or q; others mean nothing."""
        self.enroll |= key == "e"
        self.bypass |= key == "b"
        self.quit |= key == "q"


@contextlib.contextmanager
def capture_controls(requests: Requests) -> Iterator[None]:
    """Note SIGUSR1 (enrol anew), SIGUSR2 (bypass) and SIGTERM (end), and have a terminal give keys one by one."""
    with contextlib.ExitStack() as undo:
        for name, key in (("SIGUSR1", "e"), ("SIGUSR2", "b"), ("SIGTERM", "q")):
            number = getattr(signal, name, None)  # other systems have none
            if number is not None:
                before = signal.signal(number, lambda *_, key=key: requests.press(key))
                undo.callback(signal.signal, number, before)
        terminal = _terminal()
        if terminal is not None:
            import termios
            import tty

            undo.callback(_restore, termios.tcgetattr(terminal))
            tty.setcbreak(terminal)
        yield


def read_keys(requests: Requests) -> None:
    """Note the keys that were pressed on the terminal; never waits."""
    terminal = _terminal()
    if terminal is None:
        return
    while select.select([terminal], [], [], 0.0)[0]:
        typed = os.read(terminal, 64)  # not through `sys.stdin`, which would keep keys where `select` sees none
        if not typed:
            return
        for key in typed.decode("ascii", errors="replace"):
            requests.press(key)


def _terminal() -> int | None:
    """Return the terminal's file descriptor, or None where there is none, or it belongs to another job.

    A process in the background that changes or reads its terminal is stopped by the system.
    """
    if sys.stdin is None or not hasattr(os, "tcgetpgrp"):
        return None
    try:
        number = sys.stdin.fileno()
        return number if os.tcgetpgrp(number) == os.getpgrp() else None
    except (OSError, ValueError):  # a file, a pipe, closed
        return None


def _restore(settings: list[Any]) -> None:
    terminal = _terminal()
    if terminal is not None:
        import termios

        termios.tcsetattr(terminal, termios.TCSADRAIN, settings)
