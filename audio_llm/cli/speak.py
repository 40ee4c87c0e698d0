"""`audio-llm speak`: text to speech, into a file or as a stream."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.cli.options import whole_number
from audio_llm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from audio_llm.touchtts.speech import Chunk

DEFAULT_MODEL = "touchtts-small"
_DESCRIPTION = """Synthesize English speech at 16 kHz, sentence by sentence. The file's metadata mark it as synthetic.
With a recording as --voice the output resembles it only roughly: the model was trained on few speakers and does
not clone voices."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("speak", parents=[common], help="text to speech", description=_DESCRIPTION)
    parser.add_argument(
        "text", nargs="?", metavar="TEXT|FILE|-", help="text to synthesize, a text file, or - for stdin"
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="sound file to write, such as speech.wav")
    parser.add_argument("--model", metavar="NAME|DIR", default=DEFAULT_MODEL, help=f"model (default: {DEFAULT_MODEL})")
    parser.add_argument("--voice", metavar="NAME|REF", help="a voice of the model, or a recording of the target voice")
    parser.add_argument("--list-voices", action="store_true", help="print the model's voices and exit")
    parser.add_argument("--speed", type=_speed, default=1.0, metavar="X", help="speaking rate, 0.5 to 2 (default: 1)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--stream", action="store_true", help="synthesize in chunks, before the tokens of the sentence are complete"
    )
    parser.add_argument("--raw", action="store_true", help="stream 16-bit PCM to standard output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Speak; return the exit status."""
    from audio_llm import audio
    from audio_llm.doctor import resolve_device
    from audio_llm.hub import find_model
    from audio_llm.touchtts.speech import CHUNK, TouchTTS

    output = _checked_output(arguments)
    text = "" if arguments.list_voices else _text(arguments.text)
    speech = TouchTTS.load(arguments.model, resolve_device(arguments.device))
    if arguments.list_voices:
        print("\n".join(speech.voices))
        return 0
    chunk = CHUNK if arguments.stream or arguments.raw else None
    chunks = speech.stream(text, arguments.voice, arguments.speed, arguments.seed, chunk)
    waveforms = _shown(chunks, arguments.quiet)
    if arguments.raw:
        for waveform in waveforms:
            sys.stdout.buffer.write((waveform * 32767.0).round().astype("<i2").tobytes())
            sys.stdout.buffer.flush()
        return 0
    assert output is not None
    output.parent.mkdir(parents=True, exist_ok=True)
    comment = f"synthetic speech by audio-llm, model {find_model(arguments.model).resolve().name}"
    audio.write_blocks(output, waveforms, speech.sample_rate, comment=comment, keep_part=True)
    print(output)
    return 0


def _checked_output(arguments: argparse.Namespace) -> Path | None:
    """Return the file to write, if there is one; raises where the options contradict each other."""
    if arguments.list_voices:
        return None
    if arguments.text is None:
        raise UsageError("there is no text", remedy="give a text, a file, or - for standard input")
    if arguments.raw == (arguments.output is not None):
        raise UsageError("no output is named, or two", remedy="give either -o OUT or --raw")
    if arguments.raw:
        return None
    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise UsageError("already exists", path=output, remedy="add --overwrite to replace it")
    return output


def _text(source: str) -> str:
    """Return the text itself, of a file, or of standard input."""
    if source == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    try:
        is_file = Path(source).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null in it
        return source
    if not is_file:
        return source
    return _decoded(Path(source).read_bytes(), source)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", path=name, remedy="give a text file") from None


def _shown(chunks: Iterator[Chunk], quiet: bool) -> Iterator[np.ndarray]:
    """Yield the waveforms of chunks; show the progress on a terminal."""
    from tqdm import tqdm

    with tqdm(unit="s", desc="speech", disable=quiet or not sys.stderr.isatty()) as bar:
        for chunk in chunks:
            yield chunk.waveform
            bar.update(round(chunk.waveform.size / 16_000, 2))


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0.5 to 2") from None
    if not 0.5 <= value <= 2.0:
        raise argparse.ArgumentTypeError(f"{text} is not 0.5 to 2")
    return value
