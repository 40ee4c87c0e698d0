"""`audio-llm transcribe`: sound files in, transcripts out."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.cli.options import clock, whole_number
from audio_llm.cli.recognition import add_recognizer_options, whisper_options
from audio_llm.cli.subtitles import add_subtitle_options, subtitle_options, subtitle_settings
from audio_llm.errors import UsageError

if TYPE_CHECKING:
    from audio_llm.asr.engines import ResolvedRecognizer
    from audio_llm.asr.whisper import WhisperOptions
    from audio_llm.audio_channels import Excerpt
    from audio_llm.cli.console import Progress
    from audio_llm.pipeline.formats import Transcript
    from audio_llm.pipeline.preprocess import Preprocessor
    from audio_llm.pipeline.subtitles import SubtitleOptions
    from audio_llm.pipeline.transcribe import Transcriber
    from audio_llm.pipeline.unfinished import UnfinishedFolder

FORMATS = ("txt", "srt", "vtt", "tsv", "json", "nbest")
_ONE_AFTER_ANOTHER = ("txt", "json", "nbest")  # formats in which several files can follow each other on stdout
_DESCRIPTION = """Transcribe files, folders, globs or standard input (-): wav, flac, mp3, ogg, m4a, webm ..., and video.
Without -o the text goes to stdout. To resume an interrupted run with -o, even within a recording, give the same command
again."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "transcribe", parents=[common], help="sound files in, transcripts out", description=_DESCRIPTION
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="sound file, folder, glob, or - for standard input")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder for <stem>.<format>, mirroring the input tree")
    parser.add_argument(
        "-f", "--format", metavar="LIST", type=_format_list, help=f"output formats: {','.join(FORMATS)} (default: txt)"
    )
    parser.add_argument(
        "--nbest",
        type=whole_number(1, 100),
        metavar="N",
        help="hypotheses per speech segment (default: 5 with a corrector or format nbest, else 1)",
    )
    add_recognizer_options(parser)
    parser.add_argument("--corrector", choices=("none", "dlm", "ger", "phrase"), default="none", help="corrector")
    parser.add_argument("--corrector-model", metavar="NAME|DIR", help="the corrector's model")
    parser.add_argument(
        "--decoding",
        choices=("greedy", "dsr", "dlm-sum", "free", "list", "slots"),
        help="decoding; dlm: greedy, dsr, dlm-sum (default: dsr with sphinx, else dlm-sum); ger: free, list, slots",
    )
    preprocessing = parser.add_mutually_exclusive_group()
    preprocessing.add_argument(
        "--enhance", metavar="NAME|DIR", help="denoise first, e.g. with mask-small; often raises the WER"
    )
    preprocessing.add_argument(
        "--extract",
        metavar="ENROLLMENT",
        help="transcribe only one enrolled speaker of a binaural recording: see `extract`",
    )
    parser.add_argument(
        "--channel",
        default="mix",
        metavar="C",
        help="mix (default), left, right, a number from 1, or each: a labeled transcript per channel",
    )
    parser.add_argument("--start", type=clock, default=0.0, metavar="TIME", help="where to start: seconds or HH:MM:SS")
    parser.add_argument(
        "--end", type=clock, metavar="TIME", help="where to stop; times in the output are those of the file"
    )
    add_subtitle_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Transcribe the inputs; return the exit status."""
    from audio_llm.cli.console import Progress, total_seconds
    from audio_llm.pipeline.batch import run_batch, write_transcript
    from audio_llm.pipeline.files import find_audio
    from audio_llm.pipeline.unfinished import UnfinishedFolder

    if arguments.corrector == "none" and (arguments.corrector_model or arguments.decoding):
        raise UsageError("--corrector-model and --decoding belong to a corrector", remedy="add --corrector dlm")
    excerpt = _excerpt(arguments)
    options = whisper_options(arguments)
    words = _read_words(arguments.words) if arguments.words else []
    inputs = find_audio(arguments.inputs)
    formats = arguments.format or ["txt"]
    subtitles = subtitle_options(arguments, formats)
    if arguments.output is None:
        _check_stdout(formats, len(inputs))
    total_s = total_seconds(inputs) if sys.stderr.isatty() and not arguments.quiet else None
    lines = arguments.output is not None
    live = len(inputs) == 1 and not arguments.format and arguments.corrector == "none"
    live = live and arguments.output is None and arguments.channel != "each"
    settings = _settings(arguments, options, words)
    unfinished = UnfinishedFolder(Path(arguments.output), settings) if arguments.output is not None else None
    count: Counter[str] = Counter()
    with Progress(len(inputs), total_s, arguments.quiet, arguments.verbose > 0, lines) as progress:
        for result in run_batch(
            inputs,
            lambda: _load(arguments, options, words, progress, excerpt, live, unfinished),
            arguments.output,
            formats,
            settings,
            arguments.overwrite,
            progress.advance,
            partial(write_transcript, subtitles=subtitles),
        ):
            count[result.status] += 1
            progress.finished(result)
            if unfinished is not None and result.status == "done":
                unfinished.remove(result.path)
            if live:
                progress.end_parts(failed=result.status == "failed")
            elif arguments.output is None and result.transcript is not None:
                _show(progress, result.transcript, arguments, subtitles, alone=len(inputs) == 1)
    progress.summary(count["done"], count["skipped"], count["failed"])
    return 1 if count["failed"] else 0


def _show(
    progress: Progress,
    transcript: Transcript,
    arguments: argparse.Namespace,
    subtitles: SubtitleOptions,
    alone: bool,
) -> None:
    """Print one transcript in the requested format, or as text with the corrected words marked."""
    from audio_llm.cli.console import mark_changes, use_colors
    from audio_llm.pipeline.formats import labeled_text, render

    if arguments.format:
        progress.show(render(transcript, arguments.format[0], subtitles).rstrip("\n"))
    elif arguments.corrector == "none":
        text = labeled_text(transcript)
        progress.show(text if alone else "\n  ".join([transcript.name, *text.split("\n")]))
    else:
        colors = use_colors(sys.stdout)
        marked = " ".join(mark_changes(part.nbest.best, part.text, colors) for part in transcript.segments)
        progress.show(f"{transcript.name}\n  recognized: {transcript.recognized}\n  corrected:  {marked}")


def _excerpt(arguments: argparse.Namespace) -> Excerpt:
    from audio_llm.audio_channels import Excerpt, parse_channel

    if arguments.extract and arguments.channel != "mix":
        raise UsageError("--extract needs all channels", remedy="leave --channel out")
    return Excerpt(parse_channel(arguments.channel), arguments.start, arguments.end)


def _hypotheses(arguments: argparse.Namespace) -> int | None:
    count: int | None = arguments.nbest
    return 5 if count is None and "nbest" in (arguments.format or ()) else count


def _load(
    arguments: argparse.Namespace,
    options: WhisperOptions,
    words: list[str],
    progress: Progress,
    excerpt: Excerpt,
    live: bool,
    unfinished: UnfinishedFolder | None,
) -> Transcriber:
    """Load the models; with `live` every stretch of speech is printed as soon as it is recognized."""
    from audio_llm.pipeline.load import load_transcriber

    preprocessor = _preprocessor(arguments)
    for warning in preprocessor.warnings if preprocessor is not None and not arguments.quiet else ():
        progress.report(f"audio-llm: warning: {warning}")
    transcriber = load_transcriber(
        arguments.recognizer,
        arguments.model,
        arguments.corrector,
        arguments.corrector_model,
        arguments.decoding,
        _hypotheses(arguments),
        words,
        arguments.device,
        arguments.offline,
        separate_process=True,
        preprocessor=preprocessor,
        options=options,
        compute=arguments.compute,
    )
    transcriber.excerpt = excerpt
    transcriber.unfinished = unfinished
    if live:
        transcriber.on_segment = lambda segment: progress.show_part(segment.text)
    if transcriber.refused and not arguments.quiet:
        refused, engine = ", ".join(transcriber.refused), _resolved(arguments, options).engine
        progress.report(f"audio-llm: warning: {arguments.words}: {engine} cannot prefer: {refused}")
    return transcriber


def _preprocessor(arguments: argparse.Namespace) -> Preprocessor | None:
    from audio_llm.pipeline.preprocess import EnhancePreprocessor, ExtractPreprocessor

    if arguments.enhance:
        return EnhancePreprocessor(arguments.enhance, arguments.device)
    return ExtractPreprocessor(arguments.extract, device=arguments.device) if arguments.extract else None


def _resolved(arguments: argparse.Namespace, options: WhisperOptions) -> ResolvedRecognizer:
    """Return the recognizer that will be loaded."""
    from audio_llm.asr.engines import AUTO, resolve_recognizer

    name = arguments.recognizer
    if arguments.corrector != "none" and name == AUTO and arguments.model is None:
        name = "sphinx"
    return resolve_recognizer(name, arguments.model, options)


def _settings(arguments: argparse.Namespace, options: WhisperOptions, words: list[str]) -> dict[str, Any]:
    """Return the settings that decide the text; a file that was done with other settings is done again."""
    from audio_llm.hub import model_stamp
    from audio_llm.pipeline.correct import CORRECTORS

    resolved = _resolved(arguments, options)
    settings: dict[str, Any] = {"asr": resolved.engine, "nbest": _hypotheses(arguments), "words": words}
    settings["model"] = model_stamp(resolved.model)
    recognition = asdict(options)
    recognition["decode"]["guards"] = recognition["decode"].pop("checks")  # the key that earlier journals hashed
    settings["recognition"] = [recognition, arguments.compute]
    if arguments.enhance:
        settings["enhance"] = model_stamp(arguments.enhance)
    if arguments.extract:
        settings["extract"] = os.path.abspath(arguments.extract)
    if arguments.channel != "mix" or arguments.start or arguments.end is not None:
        settings["excerpt"] = [arguments.channel, arguments.start, arguments.end]
    settings |= subtitle_settings(arguments)
    if arguments.corrector != "none":
        model = arguments.corrector_model or CORRECTORS[arguments.corrector].default_model
        settings |= {"correct": arguments.corrector, "decode": arguments.decoding or "default"}
        settings["correct_model"] = model_stamp(model)
    return settings


def _check_stdout(formats: list[str], files: int) -> None:
    if len(formats) > 1:
        raise UsageError("several formats do not fit on stdout", remedy="give -o DIR")
    if files > 1 and formats[0] not in _ONE_AFTER_ANOTHER:
        raise UsageError(f"the {formats[0]} of {files} files does not fit on stdout", remedy="give -o DIR")


def _read_words(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", path=path, remedy="check --words") from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", path=path, remedy="give one word or term per line") from None
    words = [" ".join(line.split()) for line in lines]
    return list(dict.fromkeys(word for word in words if word and not word.startswith("#")))


def _format_list(text: str) -> list[str]:
    formats = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no format is named {unknown[0]!r}: use {', '.join(FORMATS)}")
    return formats
