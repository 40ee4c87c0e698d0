"""Options of the layout of srt and vtt subtitles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from audio_llm.cli.options import whole_number
from audio_llm.errors import UsageError

if TYPE_CHECKING:
    from audio_llm.pipeline.subtitles import SubtitleOptions

_OPTIONS = {"subtitles": "style", "line_width": "line_width", "max_lines": "max_lines"}  # option to field


def add_subtitle_options(parser: argparse.ArgumentParser) -> None:
    """Add `--subtitles`, `--line-width` and `--max-lines`."""
    group = parser.add_argument_group("subtitles (srt and vtt)")
    group.add_argument(
        "--subtitles",
        choices=("lines", "words", "karaoke"),
        help="whole lines (default), one cue per word, or lines with a vtt timestamp for every word",
    )
    group.add_argument(
        "--line-width",
        type=whole_number(10, 500),
        metavar="N",
        help="columns per line; East Asian wide characters take two (42)",
    )
    group.add_argument("--max-lines", type=whole_number(1, 20), metavar="N", help="lines per cue (2)")


def subtitle_options(arguments: argparse.Namespace, formats: Sequence[str]) -> SubtitleOptions:
    """Return the layout that the options ask for.

    Raises:
        UsageError: An option was given that has no effect on any of the output formats.
    """
    from audio_llm.pipeline.subtitles import SubtitleOptions

    given = subtitle_settings(arguments)
    option = next(("--" + name.replace("_", "-") for name in given), "")
    if given and not {"srt", "vtt"} & set(formats):
        raise UsageError(f"{option} belongs to srt and vtt", remedy="add -f srt or -f vtt")
    if arguments.subtitles == "karaoke" and "vtt" not in formats:
        raise UsageError("--subtitles karaoke belongs to vtt", remedy="add -f vtt, or use --subtitles words")
    return SubtitleOptions(**{_OPTIONS[name]: value for name, value in given.items()})


def subtitle_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given; a file with other subtitle options is done again."""
    return {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
