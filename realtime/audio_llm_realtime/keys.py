"""What the listener asks for while the loop runs: keys on a terminal, signals from elsewhere."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
from collections.abc import Iterator


class Requests:
    """What was asked for and is not done yet.

    Attributes:
        enrol: Enrol anew.
        bypass: Switch the bypass.
        quit: End.
    """

    def __init__(self) -> None:
        self.enrol = False
        self.bypass = False
        self.quit = False

    def press(self, key: str) -> None:
        """Note a key: e, b or q; others mean nothing."""
        self.enrol |= key == "e"
        self.bypass |= key == "b"
        self.quit |= key == "q"


@contextlib.contextmanager
def listening(requests: Requests) -> Iterator[None]:
    """Note SIGUSR1 (enrol anew) and SIGUSR2 (bypass), and have a terminal give keys one by one."""
    with contextlib.ExitStack() as undo:
        for name, key in (("SIGUSR1", "e"), ("SIGUSR2", "b")):
            number = getattr(signal, name, None)  # other systems have none
            if number is not None:
                before = signal.signal(number, lambda *_, key=key: requests.press(key))
                undo.callback(signal.signal, number, before)
        if sys.stdin is not None and sys.stdin.isatty():
            import termios
            import tty

            settings = termios.tcgetattr(sys.stdin)
            undo.callback(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, settings)
            tty.setcbreak(sys.stdin)
        yield


def read_keys(requests: Requests) -> None:
    """Note the keys that were pressed on the terminal; never waits."""
    if sys.stdin is None or not sys.stdin.isatty():
        return
    while select.select([sys.stdin], [], [], 0.0)[0]:
        key = sys.stdin.read(1)
        if not key:
            return
        requests.press(key)
