"""A thief of CPU time: keeps one core busy for a part of every 10 ms, so that a benchmark gets the rest.

Run as a file of its own: `python competitor.py CORE BUSY_SHARE`. It asks for SCHED_FIFO above the benchmark's, prints
the class it got, and ends with the process that started it.
"""

from __future__ import annotations

import os
import sys
import time

PRIORITY = 60
_PERIOD_NS = 10_000_000


def main(core: int, busy_fraction: float) -> None:
    """Burn until the parent process is gone."""
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        print("fifo", flush=True)
    except OSError:
        print("equal", flush=True)
    begin = time.perf_counter_ns()
    while os.getppid() == parent:
        while time.perf_counter_ns() - begin < busy_fraction * _PERIOD_NS:
            pass
        begin += _PERIOD_NS
        wait_ns = begin - time.perf_counter_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        else:
            begin = time.perf_counter_ns()  # held up itself; it does not make up for it


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
