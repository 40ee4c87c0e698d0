"""Options of commands that recognize speech."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from audio_llm.cli.options import whole_number

if TYPE_CHECKING:
    from audio_llm.asr.whisper import WhisperOptions

_COMPUTE = ("auto", "int8", "float32", "float16")


def add_recognizer_options(parser: Any) -> None:
    """Add the options that choose and configure the recognizer."""
    group = parser.add_argument_group("recognition")
    group.add_argument(
        "--recognizer",
        default="auto",
        metavar="NAME",
        help="auto (the best Whisper installed, else sphinx), whisper-base, tiny.en, any Whisper by name or folder; "
        "or sphinx, ctc, touchtts, espnet",
    )
    group.add_argument("--model", metavar="NAME|DIR", help="the recognizer's model, for those that need one")
    group.add_argument(
        "--language", default="auto", metavar="CODE", help="spoken language, such as en, or auto (default)"
    )
    group.add_argument("--multilingual", action="store_true", help="detect the language of every 30 s of speech")
    group.add_argument(
        "--task", choices=("transcribe", "translate"), default="transcribe", help="translate: output English text"
    )
    group.add_argument("--words", metavar="FILE", help="file of names and terms to prefer, one per line")
    group.add_argument(
        "--prompt", default="", metavar="TEXT", help="context text for every window: style, spelling, topic"
    )
    group.add_argument("--beam", type=whole_number(1, 100), default=5, metavar="N", help="beam size (5)")
    group.add_argument("--compute", choices=_COMPUTE, default="auto", help="number format (auto: int8 on a CPU)")
    group.add_argument(
        "--batch-size", type=whole_number(1, 256), default=1, metavar="N", help="windows decoded together (1)"
    )
    group.add_argument(
        "--vad",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="recognize only detected speech (default: on)",
    )
    group.add_argument("--vad-threshold", type=float, metavar="P", help="probability at which speech begins (0.5)")
    group.add_argument(
        "--vad-min-silence", type=float, metavar="S", help="pause that ends a speech segment, seconds (0.6)"
    )
    group.add_argument("--vad-pad", type=float, metavar="S", help="padding around each segment, seconds (0.5)")


def whisper_options(arguments: argparse.Namespace) -> WhisperOptions:
    """Return the options of Whisper.

    Raises:
        UsageError: A value is out of range.
    """
    from dataclasses import replace

    from audio_llm.asr.vad import VadOptions
    from audio_llm.asr.whisper import WhisperOptions
    from audio_llm.asr.whisper_decode import DecodeOptions

    vad = VadOptions()
    if arguments.vad_threshold is not None:
        threshold = arguments.vad_threshold
        vad = replace(vad, threshold=threshold, neg_threshold=min(vad.neg_threshold, 0.7 * threshold))
    if arguments.vad_min_silence is not None:
        vad = replace(vad, min_silence_s=arguments.vad_min_silence)
    if arguments.vad_pad is not None:
        vad = replace(vad, pad_s=arguments.vad_pad)
    return WhisperOptions(
        language=None if arguments.language == "auto" else arguments.language,
        multilingual=arguments.multilingual,
        task=arguments.task,
        prompt=arguments.prompt,
        decode=DecodeOptions(beam_size=arguments.beam),
        batch_size=arguments.batch_size,
        vad=arguments.vad,
        vad_options=vad,
    )
