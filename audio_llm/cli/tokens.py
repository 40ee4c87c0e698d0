"""`audio-llm tokenize` and `detokenize`: sound files to tokens, codes to sound files."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from audio_llm.atomic import replacing
from audio_llm.errors import AudioLLMError, UsageError

_TOKENIZE = """Write the tokens of sound files as JSON lines, one line per file: semantic tokens of a tokenizer
(content, 25 per second) or acoustic codes of a codec (waveform, 100 per second)."""
_DETOKENIZE = """Decode acoustic codes to 16 kHz wav files, one for each line of TOKENS."""

logger = logging.getLogger(__name__)


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands to the parser's commands."""
    parser = commands.add_parser("tokenize", parents=[common], help="sound files to tokens", description=_TOKENIZE)
    parser.add_argument("inputs", nargs="+", metavar="IN", help="sound file, folder, glob, or - for standard input")
    parser.add_argument("-o", "--output", metavar="TOKENS", required=True, help="JSON lines to write")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", metavar="NAME|DIR", help="semantic tokens: a model, or an S3Tokenizer .onnx file")
    which.add_argument("--codec", metavar="NAME|DIR", help="acoustic codes: a model such as codec-small")
    parser.add_argument("--ssl", metavar="DIR", help="speech model of an ssl-kmeans tokenizer")
    parser.add_argument("--variant", metavar="NAME", help="S3Tokenizer variant of an .onnx file, such as v2_25hz")
    parser.set_defaults(run=run_tokenize)
    parser = commands.add_parser(
        "detokenize", parents=[common], help="acoustic codes to sound", description=_DETOKENIZE
    )
    parser.add_argument("tokens", metavar="TOKENS", help="output of `tokenize --codec`")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder of the sound files")
    parser.add_argument("--codec", metavar="NAME|DIR", help="codec (default: the one that the file names)")
    parser.set_defaults(run=run_detokenize)


def run_tokenize(arguments: argparse.Namespace) -> int:
    """Tokenize; return the exit status."""
    from audio_llm.cli.console import Progress, total_seconds
    from audio_llm.codec.codec import SpeechCodec
    from audio_llm.doctor import resolve_device
    from audio_llm.pipeline.batch import FileResult, one_line
    from audio_llm.pipeline.files import find_audio
    from audio_llm.pipeline.tokens import tokenize
    from audio_llm.tokenizer.base import SemanticTokenizer
    from audio_llm.tokenizer.load import load_tokenizer

    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise UsageError("already exists", path=output, remedy="add --overwrite to replace it")
    inputs = find_audio(arguments.inputs)
    name, device = arguments.codec or arguments.tokenizer, resolve_device(arguments.device)
    model: SpeechCodec | SemanticTokenizer
    if arguments.codec:
        model = SpeechCodec.load(name, device)
    else:
        model = load_tokenizer(name, device, arguments.ssl, arguments.variant)
    failed = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    total_s = total_seconds(inputs) if sys.stderr.isatty() and not arguments.quiet else None
    shown = (len(inputs), total_s, arguments.quiet, arguments.verbose > 0)
    with (
        replacing(output) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
        Progress(*shown, False) as bar,
    ):
        for item in inputs:
            try:
                file.write(tokenize(item.path, model, name, bar.advance).to_line() + "\n")
            except AudioLLMError as error:
                failed += 1
                bar.finished(FileResult(item.path, "failed", reason=one_line(error), error=error))
    bar.summary(len(inputs) - failed, 0, failed)
    print(output)
    return 1 if failed else 0


def run_detokenize(arguments: argparse.Namespace) -> int:
    """Decode; return the exit status."""
    from audio_llm.codec.codec import SpeechCodec
    from audio_llm.doctor import resolve_device
    from audio_llm.pipeline.tokens import detokenize, read_tokens, write_sound

    rows = read_tokens(arguments.tokens)
    folder, taken, failed = Path(arguments.output), set[str](), 0
    if folder.is_dir() and any(folder.iterdir()) and not arguments.overwrite:
        raise UsageError("is not empty", path=folder, remedy="give --overwrite or another folder")
    codecs: dict[str, SpeechCodec] = {}
    for row in rows:
        name = arguments.codec or row.model
        try:
            if row.kind == "acoustic" and name not in codecs:
                codecs[name] = SpeechCodec.load(name, resolve_device(arguments.device))
            print(write_sound(folder, row, detokenize(row, codecs.get(name)), taken))
        except AudioLLMError as error:
            failed += 1
            logger.error("%s", error)
    return 1 if failed else 0
