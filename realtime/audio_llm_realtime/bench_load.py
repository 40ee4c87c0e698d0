"""A competing CPU load: keeps one core busy for a fraction of every 10 ms, so that a benchmark gets the rest.

Run as a script: `python bench_load.py CORE BUSY_FRACTION`. It requests SCHED_FIFO with a higher priority than the
benchmark's, prints the scheduling class that it got, and exits when its parent process exits.
"""

from __future__ import annotations

import os
import sys
import time

PRIORITY = 60
_PERIOD_NS = 10_000_000


def main(core: int, busy_fraction: float) -> None:
    """Keep the core busy until the parent process exits."""
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
            begin = time.perf_counter_ns()  # this process was delayed itself; the lost time is not made up


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
