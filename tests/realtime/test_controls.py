"""Keys, on a terminal of their own: none is lost, the terminal comes back, and a background job is not stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

PROJECT = Path(__file__).resolve().parents[2] / "realtime"
BEGIN = """
import fcntl, os, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from audio_llm_realtime.controls import Requests, capture_controls, read_keys
requests = Requests()
"""
LISTEN = """
with capture_controls(requests):
    print("listening", flush=True)
    until = time.monotonic() + 30
    while not requests.quit and time.monotonic() < until:
        read_keys(requests)
        time.sleep(0.01)
print(requests.bypass, requests.quit)
"""
BACKGROUND = """
job = os.fork()
if not job:
    os.setpgid(0, 0)
    with capture_controls(requests):
        read_keys(requests)
    os._exit(0)
_, status = os.waitpid(job, os.WUNTRACED)
print("stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
if os.WIFSTOPPED(status):
    os.kill(job, 9)
"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Return both ends of a terminal: the keyboard's and the program's."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def start(script: str, end: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + script],
        stdin=end,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


@pytest.mark.parametrize(
    "end, message",
    [
        (lambda keyboard, process: os.write(keyboard, b"bq"), "True True"),
        (lambda keyboard, process: process.send_signal(signal.SIGTERM), "False True"),
    ],
)
def test_keys_typed_together_and_sigterm_end_it_and_the_terminal_comes_back(
    terminal: tuple[int, int], end: Callable[[int, subprocess.Popen[str]], object], message: str
) -> None:
    keyboard, screen = terminal
    before = termios.tcgetattr(screen)
    with start(LISTEN, screen) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        assert not termios.tcgetattr(screen)[3] & termios.ICANON
        end(keyboard, process)
        assert process.stdout.read() == message + "\n"
    assert process.returncode == 0
    assert termios.tcgetattr(screen) == before


def test_job_in_the_background_is_not_stopped(terminal: tuple[int, int]) -> None:
    keyboard, screen = terminal
    os.write(keyboard, b"q\n")
    with start(BACKGROUND, screen) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "0\n"
