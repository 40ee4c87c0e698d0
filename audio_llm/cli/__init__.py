"""The command line: verbs only, each calling one public function; results to stdout, the rest to stderr."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from audio_llm import __version__
from audio_llm.cli import (
    correct,
    doctor,
    enhance,
    export,
    extract,
    models,
    prepare,
    score,
    speak,
    tokens,
    train,
    transcribe,
)
from audio_llm.cli.aliases import with_current_names
from audio_llm.cli.options import whole_number
from audio_llm.doctor import missing_extra
from audio_llm.errors import AudioLLMError

INTERRUPTED = 130

_COMMANDS = (transcribe, correct, enhance, extract, speak, tokens, prepare, score, train, export, models, doctor)
_EPILOG = "exit status: 0 all done, 1 some inputs failed, 2 usage, 3 model missing, 4 no audio found, 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `audio-llm`; None takes those of the process.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that is not valid Unicode must not end the program
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parse(argv)
    except SystemExit as stop:  # --help, --version, or a wrong option that argparse has reported
        return int(stop.code or 0)
    try:
        with _log_to_stderr(arguments):
            _prepare(arguments)
            status = int(arguments.run(arguments))
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print("audio-llm: interrupted; finished outputs are kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AudioLLMError as error:
        return _report(arguments, str(error), error.exit_status)
    except ImportError as error:
        missing = missing_extra(error)
        if missing is not None:
            return _report(arguments, str(missing), missing.exit_status)
        return _unexpected(arguments, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _report(arguments, f"{where}{error.strerror or error}", 1)
    except Exception as error:
        return _unexpected(arguments, error)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each command stores its function in `run`."""
    parser = _Parser(
        prog="audio-llm",
        description="Sound in; corrected transcripts, clean speech, or one speaker's voice, out. Text in; speech out.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"audio-llm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for command in _COMMANDS:
        command.add_parser(commands, _common_options())
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments, rest = parser.parse_known_args(with_current_names(sys.argv[1:] if argv is None else argv))
    if rest and hasattr(arguments, "words_anywhere"):  # argparse accepts positional words in one group only
        getattr(arguments, arguments.words_anywhere).extend(word for word in rest if not word.startswith("-"))
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"audio-llm: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def _common_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("options of every command")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device for neural models")
    group.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="CPU threads for neural models (default: PyTorch's)"
    )
    group.add_argument("--offline", action="store_true", help="download nothing and open no connection")
    group.add_argument("--overwrite", action="store_true", help="overwrite existing outputs")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    loudness.add_argument("-v", "--verbose", action="count", default=0, help="verbose; show tracebacks of errors")
    return options


@contextlib.contextmanager
def _log_to_stderr(arguments: argparse.Namespace) -> Iterator[None]:
    logger = logging.getLogger("audio_llm")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("audio-llm: %(levelname)s: %(message)s"))
    before = logger.level
    usual = getattr(arguments, "log_level", logging.WARNING)
    logger.setLevel(logging.ERROR if arguments.quiet else max(usual - 10 * arguments.verbose, logging.DEBUG))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _prepare(arguments: argparse.Namespace) -> None:
    """Apply the options that every command has."""
    if arguments.offline:
        from audio_llm.hub import set_offline

        set_offline(True)
    if arguments.device == "cuda" and importlib.util.find_spec("torch"):  # an error before the first file
        from audio_llm.doctor import resolve_device

        resolve_device("cuda")
    if arguments.threads is not None:
        _set_threads(arguments.threads)


def _set_threads(count: int) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported, most often later
        os.environ[variable] = str(count)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)  # type: ignore[attr-defined]


def _report(arguments: argparse.Namespace, message: str, status: int) -> int:
    if arguments.verbose:
        traceback.print_exc()
    print(f"audio-llm: error: {message}", file=sys.stderr)
    return status


def _unexpected(arguments: argparse.Namespace, error: Exception) -> int:
    hint = "" if arguments.verbose else " (this should not happen; -v shows where)"
    return _report(arguments, f"unexpected {type(error).__name__}: {' '.join(str(error).split())}{hint}", 1)
