"""`audio-llm prepare`: recordings to clips with verified texts, as training data of speech synthesis."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_llm.errors import DataError, UsageError

if TYPE_CHECKING:
    from audio_llm.asr.base import Recognizer
    from audio_llm.pipeline.files import AudioInput
    from audio_llm.touchtts.prepare import PrepareConfig, Recording
    from audio_llm.touchtts.prepare_filters import AsrAgreement

FIRST, SECOND, VERIFIER = "ctc", "sphinx", "ctc"
_LONGEST_NAME = 100  # characters
_DESCRIPTION = """Cut recordings at silence into clips and keep those whose text is verified. A text is given as
NAME.txt next to the sound file or in a manifest (JSON lines with audio_filepath and text); its recording becomes one
clip, and a recognizer verifies the text by its probability. Without a text two recognizers transcribe the clip and must
agree. Noise is not removed. DIR gets clips/*.flac at 16 kHz, manifest.jsonl and dropped.jsonl with the reasons. To
resume an interrupted run, give the same command again."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "prepare", parents=[common], help="recordings to training clips", description=_DESCRIPTION
    )
    parser.add_argument("inputs", nargs="+", metavar="RAW", help="sound file, folder, glob, or manifest .jsonl")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="output folder")
    parser.add_argument(
        "--report", metavar="FILE", help="write a report that accounts for every second, as .html or .json"
    )
    parser.add_argument("--recognizer", metavar="NAME", help=f"first recognizer where no text is given ({FIRST})")
    parser.add_argument("--model", metavar="NAME|DIR", help="model of --recognizer (default: its own)")
    help_ = f"recognizer that verifies the text ({VERIFIER} for a given text, else {SECOND})"
    parser.add_argument("--second-recognizer", metavar="NAME", help=help_)
    parser.add_argument("--second-model", metavar="NAME|DIR", help="model of --second-recognizer (default: its own)")
    parser.add_argument(
        "--max-disagreement",
        type=float,
        metavar="X",
        help="maximum disagreement to keep a clip (default: 2.0 nats per character if ctc scores a given text, "
        "otherwise a character error rate of 0.3)",
    )
    parser.add_argument("--min-s", type=float, default=2.0, metavar="S", help="shortest clip in seconds (2)")
    parser.add_argument("--max-s", type=float, default=30.0, metavar="S", help="longest clip in seconds (30)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prepare; return the exit status."""
    from audio_llm.cli.console import Progress
    from audio_llm.pipeline.batch import FileResult, write_whole
    from audio_llm.touchtts.prepare import PrepareConfig, prepare
    from audio_llm.touchtts.prepare_report import account, to_html, to_json, to_lines

    config = PrepareConfig(arguments.min_s, arguments.max_s, arguments.max_disagreement)
    report = Path(arguments.report) if arguments.report else None
    if report is not None and report.suffix not in (".html", ".json"):
        raise UsageError("no report of that kind", path=report, remedy="name it .html or .json")
    recordings = _recordings(arguments.inputs, Path(arguments.output))
    engines = _engines(arguments, recordings)
    settings = _settings(engines, config)
    count: Counter[str] = Counter()
    results, began = [], time.monotonic()
    total_s = _total_seconds(recordings) if sys.stderr.isatty() and not arguments.quiet else None
    with Progress(len(recordings), total_s, arguments.quiet, arguments.verbose > 0, lines=True) as progress:
        stamp = json.dumps(settings, sort_keys=True)
        for result in prepare(
            recordings,
            _verification(engines, arguments),
            arguments.output,
            config,
            stamp,
            progress.advance,
            arguments.overwrite,
        ):
            results.append(result)
            count[result.status] += 1
            path, elapsed_s, began = result.recording.path, time.monotonic() - began, time.monotonic()
            progress.finished(FileResult(path, result.status, result, (), elapsed_s, result.error))
    total = account(results, config)
    for line in to_lines(total):
        progress.show(line)
    if report is not None:
        write_whole(report, (to_html if report.suffix == ".html" else to_json)(total, settings))
    progress.summary(count["done"], count["skipped"], count["failed"])
    return 1 if count["failed"] else 0


def _recordings(inputs: Sequence[str], output: Path) -> list[Recording]:
    """Return the recordings of the inputs with unique names, without the clips in the output folder."""
    from audio_llm.pipeline.batch import output_stems
    from audio_llm.pipeline.files import AudioInput, find_audio

    manifests = [name for name in inputs if name.endswith(".jsonl")]
    sounds = [name for name in inputs if not name.endswith(".jsonl")]
    items: list[tuple[AudioInput, Recording]] = []
    output_prefix = os.path.realpath(output) + os.sep
    for item in find_audio(sounds) if sounds else ():
        if not os.path.realpath(item.path).startswith(output_prefix):
            items.append((item, _with_sidecar(item)))
    for name in manifests:
        items += _of_manifest(Path(name))
    stems = output_stems([AudioInput(item.path, _flat(item.relative)) for item, _ in items])
    return [replace(recording, name=stem) for (_, recording), stem in zip(items, stems, strict=True)]


def _flat(relative: Path) -> Path:
    """Return a path joined to one name that is valid on any file system."""
    plain = "__".join(part for part in relative.parts if part != "..")
    return Path(os.fsencode(plain).decode("utf-8", errors="replace").lstrip(".")[-_LONGEST_NAME:])


def _with_sidecar(item: AudioInput) -> Recording:
    from audio_llm.touchtts.prepare import Recording

    sidecar = item.path.with_suffix(".txt")
    if not sidecar.is_file():
        return Recording(item.path, "")
    try:
        return Recording(item.path, "", sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        return Recording(item.path, "", problem=f"{sidecar}: cannot be read as text: {error} (save it as UTF-8)")


def _of_manifest(path: Path) -> list[tuple[AudioInput, Recording]]:
    from audio_llm.manifest import read_manifest
    from audio_llm.pipeline.files import AudioInput
    from audio_llm.touchtts.prepare import Recording

    items = []
    for utterance in read_manifest(path):
        sound = utterance.audio_filepath
        if utterance.extra.get("offset"):
            remedy = "cut the sound first, or give whole files"
            raise DataError(f"{sound.name} begins at an offset, which is not supported", path=path, remedy=remedy)
        relative = sound.relative_to(path.parent) if sound.is_relative_to(path.parent) else Path(sound.name)
        items.append((AudioInput(sound, relative), Recording(sound, "", utterance.text, utterance.speaker)))
    return items


@dataclass(frozen=True)
class _Engines:
    """Recognizers by name and model; None where one is not needed."""

    verifier: tuple[str, str | None] | None
    first: tuple[str, str | None] | None
    second: tuple[str, str | None] | None


def _engines(arguments: argparse.Namespace, recordings: Sequence[Recording]) -> _Engines:
    """Return the recognizers that transcribe these recordings or verify their texts.

    Raises:
        UsageError: An unknown name, an option without effect, one recognizer twice, or one limit for two measures.
    """
    from audio_llm.asr.engines import ENGINES

    for name in (arguments.recognizer, arguments.second_recognizer):
        if name is not None and name not in ENGINES:
            raise UsageError(f"no recognizer is named {name!r}", remedy=f"use one of {', '.join(ENGINES)}")
    transcribed = any(recording.text is not None for recording in recordings)
    untranscribed = any(recording.text is None and not recording.problem for recording in recordings)
    if not untranscribed and (arguments.recognizer or arguments.model):
        remedy = "leave out --recognizer and --model; --second-recognizer verifies the texts"
        raise UsageError("every recording has its text, so there is nothing to transcribe", remedy=remedy)
    first = (arguments.recognizer or FIRST, arguments.model)
    second = (arguments.second_recognizer or (SECOND if first[0] != SECOND else FIRST), arguments.second_model)
    verifier = (arguments.second_recognizer or VERIFIER, arguments.second_model)
    if untranscribed and first == second:
        remedy = "name another with --recognizer or --second-recognizer"
        raise UsageError(f"{first[0]} cannot verify its own transcripts", remedy=remedy)
    if arguments.second_model and not arguments.second_recognizer:
        raise UsageError("--second-model needs a recognizer", remedy="name it with --second-recognizer")
    if transcribed and untranscribed and verifier[0] == VERIFIER and arguments.max_disagreement is not None:
        remedy = "prepare recordings with and without texts separately, or leave out --max-disagreement"
        raise UsageError("--max-disagreement would limit two different measures", remedy=remedy)
    return _Engines(
        verifier if transcribed else None, first if untranscribed else None, second if untranscribed else None
    )


def _settings(engines: _Engines, config: PrepareConfig) -> dict[str, Any]:
    """Return the settings that decide the clips; with other settings the clips are made again."""
    from audio_llm.asr.engines import ENGINES
    from audio_llm.hub import model_stamp

    chosen = {"judge": engines.verifier, "first": engines.first, "second": engines.second}
    named = {
        who: " ".join(filter(None, (pair[0], model_stamp(pair[1] or ENGINES[pair[0]].default_model))))
        for who, pair in chosen.items()
        if pair is not None
    }
    return {**named, **asdict(config)}


def _verification(engines: _Engines, arguments: argparse.Namespace) -> AsrAgreement:
    from audio_llm.asr.engines import load_recognizer
    from audio_llm.touchtts.prepare_filters import AsrAgreement

    @cache
    def load(name: str, model: str | None) -> Recognizer:
        return load_recognizer(name, model, arguments.device, arguments.offline)

    def loader(pair: tuple[str, str | None] | None) -> Callable[[], Recognizer]:
        return partial(load, *(pair or (FIRST, None)))  # never called where the pair is None

    return AsrAgreement(loader(engines.first), loader(engines.second), loader(engines.verifier))


def _total_seconds(recordings: Sequence[Recording]) -> float | None:
    from audio_llm.cli.console import total_seconds
    from audio_llm.pipeline.files import AudioInput

    return total_seconds([AudioInput(recording.path, recording.path) for recording in recordings])
