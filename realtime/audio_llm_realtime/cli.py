"""The command line `audio-llm-hear`: extract one speaker live or from a file; list devices; measure a model."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from audio_llm_realtime import __version__
from audio_llm_realtime.bench import CORE_FRACTIONS, BenchSettings, bench
from audio_llm_realtime.contract import load_contract
from audio_llm_realtime.device import list_devices
from audio_llm_realtime.errors import RealtimeError, UsageError
from audio_llm_realtime.report import Report
from audio_llm_realtime.run import RunSettings, run_devices, run_file
from audio_llm_realtime.schedule import SchedulingOptions

INTERRUPTED = 130
_EPILOG = "exit status: 0 all done, 1 an input or device failed, 2 usage, 3 model missing or wrong, 130 interrupted"
_ENROLLMENT_S = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after `audio-llm-hear`; None takes those of the process.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"devices": (_devices_parser, _devices), "bench": (_bench_parser, _bench)}
    make_parser, run = commands.get(argv[0] if argv else "", (_run_parser, _run))
    try:
        arguments = make_parser().parse_args(argv[1:] if run is not _run else argv)
    except SystemExit as stop:  # --help, --version, or a usage error that argparse has reported
        return int(stop.code or 0)
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _notify("interrupted")
        return INTERRUPTED
    except RealtimeError as error:
        _notify(f"error: {error}")
        return error.exit_status
    except OSError as error:
        _notify(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        return 1
    except Exception as error:
        if arguments.verbose:
            traceback.print_exc()
        hint = "" if arguments.verbose else " (this should not happen; -v shows where)"
        _notify(f"error: unexpected {type(error).__name__}: {' '.join(str(error).split())}{hint}")
        return 1


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an unexpected error")

    def error(self, message: str) -> NoReturn:
        _notify(f"error: {message} (see `{self.prog} --help`)")
        raise SystemExit(2)


def _run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="audio-llm-hear",
        description="Extract one speaker in real time: binaural audio in, the enrolled speaker out. "
        "Other commands: `devices`, `bench`.",
        epilog=f"While it runs on devices: e or SIGUSR1 enrolls, b or SIGUSR2 toggles the bypass, q or SIGTERM quits. "
        f"{_EPILOG}",
    )
    parser.add_argument("--version", action="version", version=f"audio-llm-hear {__version__}")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of an exported model")
    speaker = parser.add_argument_group("speaker")
    speaker.add_argument("--enroll", type=Path, metavar="FILE", help="binaural recording made while facing the speaker")
    speaker.add_argument(
        "--enroll-live",
        type=_number(0.0, None),
        metavar="SECONDS",
        help=f"record the enrollment at the start (for a file: its first seconds); "
        f"with --enroll, the duration of later enrollments (default {_ENROLLMENT_S:g})",
    )
    files = parser.add_argument_group("input and output")
    files.add_argument("--input-device", type=int, metavar="N", help="microphones (default: the system's)")
    files.add_argument("--output-device", type=int, metavar="N", help="headphones (default: the system's)")
    files.add_argument("--input-file", type=Path, metavar="IN", help="a binaural recording instead of devices")
    files.add_argument("--output-file", type=Path, metavar="OUT", help="output file, as long as IN and aligned to it")
    files.add_argument("--overwrite", action="store_true", help="overwrite an existing OUT")
    files.add_argument("--realtime", action="store_true", help="process a file in real time, with deadline misses")
    parser.add_argument(
        "--mix", type=_number(0.0, 1.0), default=0.0, metavar="0..1", help="0: only the speaker; 1: the input"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write times, counts and latencies as JSON")
    _add_schedule(parser)
    return parser


def _bench_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="audio-llm-hear bench", description="Measure a model on this machine.", epilog=_EPILOG)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of an exported model")
    parser.add_argument("--compare", type=Path, metavar="DIR2", help="another model, run alternately")
    parser.add_argument("--chunks", type=_count(1), default=5000, metavar="N", help="chunks per model (default 5000)")
    parser.add_argument("--paced", action="store_true", help="one chunk every 8 ms; otherwise back to back")
    parser.add_argument(
        "--share",
        type=float,
        choices=CORE_FRACTIONS,
        default=1.0,
        help="fraction of a core that a competing load leaves (needs --paced)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    _add_schedule(parser)
    return parser


def _devices_parser() -> argparse.ArgumentParser:
    return _Parser(prog="audio-llm-hear devices", description="List the audio devices.", epilog=_EPILOG)


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spare", type=_count(0), default=0, metavar="N", help="delay the output by N more chunks, for a slow machine"
    )
    group = parser.add_argument_group("scheduling (missing privileges are reported; it runs anyway)")
    group.add_argument("--fifo", action="store_true", help="SCHED_FIFO for the thread that processes the chunks")
    group.add_argument("--cpu", type=int, metavar="N", help="run this thread on core N only")
    group.add_argument("--lock-memory", action="store_true", help="keep memory from being swapped out")
    group.add_argument("--no-gc", action="store_true", help="disable garbage collection; 0.5 ms thread switch interval")


def _run(arguments: argparse.Namespace) -> int:
    files = (arguments.input_file, arguments.output_file)
    if (files[0] is None) != (files[1] is None):
        raise UsageError("--input-file and --output-file go together")
    if files[0] is not None and (arguments.input_device is not None or arguments.output_device is not None):
        raise UsageError("files and devices exclude each other")
    if arguments.realtime and files[0] is None:
        raise UsageError("--realtime is for files; devices always run in real time")
    if arguments.overwrite and files[0] is None:
        raise UsageError("--overwrite is for files; devices write none")
    if arguments.fifo and files[0] is not None and not arguments.realtime:
        raise UsageError("SCHED_FIFO without pauses is stopped by the kernel", remedy="add --realtime")
    settings = RunSettings(
        enrollment=arguments.enroll,
        live_enrollment_s=arguments.enroll_live if arguments.enroll_live is not None else _ENROLLMENT_S,
        record_first=arguments.enroll is None and arguments.enroll_live is not None,
        wet=1.0 - arguments.mix,
        extra_chunks=arguments.spare,
        scheduling=_scheduling(arguments),
        report=arguments.report,
        overwrite=arguments.overwrite,
    )
    contract = load_contract(arguments.model)
    if files[0] is not None:
        progress = _show if sys.stderr.isatty() else None
        report = run_file(contract, settings, files[0], files[1], arguments.realtime, _notify, progress)
    else:
        report = run_devices(contract, settings, arguments.input_device, arguments.output_device, _notify)
    _notify(_summary(report))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    settings = BenchSettings(
        arguments.chunks, arguments.paced, arguments.share, arguments.spare, _scheduling(arguments)
    )
    contract = load_contract(arguments.model)
    other = None if arguments.compare is None else load_contract(arguments.compare)
    progress = partial(_show, total=arguments.chunks) if sys.stderr.isatty() else None
    result = bench(contract, other, settings, progress)
    for line in result.report.refused:
        _notify(f"warning: {line}")
    if arguments.json:
        print(json.dumps(result.to_json()))
        return 0
    for report in (result.report, result.other):
        if report is not None:
            print(f"{report.model}: {_summary(report)}")
            print(f"  ms per chunk: {_times(report)}")
    if result.cpu_ratio is not None and result.other is not None:
        print(f"{result.other.model} takes {result.cpu_ratio:.2f} times the CPU time of {result.report.model}")
    print(f"memory grew by {result.memory_growth_bytes / 1e6:.2f} MB; core sharing: {result.core_sharing}")
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    del arguments
    for device in list_devices():
        print(f"{device.number:3d}  {device.inputs} in  {device.outputs} out  {device.sample_rate} Hz  {device.name}")
    return 0


def _scheduling(arguments: argparse.Namespace) -> SchedulingOptions:
    return SchedulingOptions(arguments.fifo, arguments.cpu, arguments.lock_memory, arguments.no_gc)


def _summary(report: Report) -> str:
    counts = report.counts
    text = (
        f"{counts['chunks']} chunks, {counts['misses']} deadline misses ({counts['stalls']} stalls, "
        f"{counts['skipped']} skipped); CPU time per chunk {report.cpu_ms.p50:.3f} ms; "
        f"latency {report.latency.total_ms:.1f} ms, algorithmic {report.latency.algorithmic_ms:g} ms"
    )
    odd = ("not_finite_in", "denormal_in", "not_finite_out", "limited", "input_overflows", "output_underflows")
    return text + "".join(f"; {name.replace('_', ' ')}: {counts[name]}" for name in odd if counts[name])


def _times(report: Report) -> str:
    times = report.compute_ms
    return (
        f"median {times.p50:.3f}, 95 % {times.p95:.3f}, 99 % {times.p99:.3f}, 99.9 % {times.p999:.3f}, "
        f"maximum {times.max:.3f}"
    )


def _show(done: int, total: int) -> None:
    print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _number(least: float, most: float | None) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not value >= least or (most is not None and value > most):
            raise ValueError(text)
        return value

    return number


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError(text)
        return value

    return count


def _notify(line: str) -> None:
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # erase the progress line
    print(f"{clear}audio-llm-hear: {line}", file=sys.stderr, flush=True)
