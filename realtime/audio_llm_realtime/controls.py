"""Controls while the loop runs: keys on a terminal, and signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any


class Requests:
    """Pending requests of the user.

    Attributes:
        enroll: Enroll a speaker again.
        bypass: Toggle the bypass.
        quit: Stop the loop.
    """

    def __init__(self) -> None:
        self.enroll = False
        self.bypass = False
        self.quit = False

    def press(self, key: str) -> None:
        """Register a key: e (enroll), b (bypass) or q (quit); other keys are ignored."""
        self.enroll |= key == "e"
        self.bypass |= key == "b"
        self.quit |= key == "q"


@contextlib.contextmanager
def capture_controls(requests: Requests) -> Iterator[None]:
    """Register SIGUSR1 (enroll), SIGUSR2 (bypass) and SIGTERM (quit), and read a terminal key by key."""
    with contextlib.ExitStack() as undo:
        for name, key in (("SIGUSR1", "e"), ("SIGUSR2", "b"), ("SIGTERM", "q")):
            number = getattr(signal, name, None)  # not on every system
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
    """Register the keys that were pressed on the terminal; never waits."""
    terminal = _terminal()
    if terminal is None:
        return
    while select.select([terminal], [], [], 0.0)[0]:
        typed = os.read(terminal, 64)  # not through `sys.stdin`, whose buffer `select` does not see
        if not typed:
            return
        for key in typed.decode("ascii", errors="replace"):
            requests.press(key)


def _terminal() -> int | None:
    """Return the terminal's file descriptor, or None if there is none or another job owns it.

    The system stops a background process that changes or reads its terminal.
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
