"""`audio-llm models` and `audio-llm doctor`: what is there, and whether it is sound."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from audio_llm.errors import AudioLLMError, MissingDependencyError

if TYPE_CHECKING:
    from audio_llm.asr.engines import EngineReport


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add both commands to the parser's commands."""
    models = commands.add_parser("models", help="list, describe, check or download models")
    actions = models.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="models at hand, and the recognisers")
    listing.set_defaults(run=run_list)
    info = actions.add_parser("info", parents=[common], help="a model's card and origin, or what a recogniser gives")
    info.add_argument("name", metavar="NAME|DIR", help="a model, or a recogniser such as sphinx")
    info.set_defaults(run=run_info)
    verify = actions.add_parser("verify", parents=[common], help="check the files of models against their hashes")
    verify.add_argument("names", nargs="*", metavar="NAME|DIR", help="models (default: all)")
    verify.set_defaults(run=run_verify)
    get = actions.add_parser("get", parents=[common], help="download a model from the Hugging Face hub")
    get.add_argument("repo_id", metavar="OWNER/NAME", help="its name on the hub")
    get.add_argument("--revision", help="branch, tag or commit")
    get.set_defaults(run=run_get)
    doctor = commands.add_parser("doctor", parents=[common], help="versions, devices, programs and missing extras")
    doctor.set_defaults(run=run_doctor)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the models and the recognisers."""
    from audio_llm.asr.engines import describe_engines
    from audio_llm.hub import cache_folder, list_models

    models = list_models()
    print("Models" if models else f"Models: none shipped, none in {cache_folder()}")
    for model in models:
        state = f"  PROBLEM: {model.problem}" if model.problem else ""
        print(f"  {model.name:<24} {model.kind or '?':<24} {model.size_bytes / 1e6:7.1f} MB  {model.path}{state}")
    print("Recognisers")
    for engine in describe_engines():
        print(f"  {engine.name:<24} {engine.summary}{f'  ({engine.problem})' if engine.problem else ''}")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Print what is known of one model or recogniser."""
    from audio_llm.asr.engines import ENGINES, describe_engine
    from audio_llm.hub import CARD_NAME, model_info

    if arguments.name in ENGINES:
        _print_engine(describe_engine(arguments.name))
        return 0
    model = model_info(arguments.name)
    print(f"{model.name}: {model.kind or 'unreadable'}, {model.size_bytes / 1e6:.1f} MB, {model.path}")
    if model.problem:
        print(f"  problem: {model.problem}")
    for key, value in model.provenance.items():
        print(f"  {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    card = model.path / CARD_NAME
    if card.is_file():
        print(f"\n{card.read_text(encoding='utf-8', errors='replace').rstrip()}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check models; every one is looked at, also behind a broken one."""
    from audio_llm.hub import list_models, verify_model

    names = arguments.names or [m.name for m in list_models() if not m.kind.startswith("transformers:")]
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


def run_get(arguments: argparse.Namespace) -> int:
    """Download a model and print where it lies."""
    from audio_llm.hub import get_model

    print(get_model(arguments.repo_id, arguments.revision, arguments.overwrite))
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print what the machine offers; fail where something needed is missing."""
    from audio_llm.doctor import diagnose

    diagnosis = diagnose()
    print(diagnosis.python)
    print("Packages")
    for package in diagnosis.packages:
        print(f"  {package.name:<18} {package.version or f'MISSING: {package.remedy}'}")
    print("Devices")
    for device in diagnosis.devices:
        print(f"  {device.name:<18} {device.description}")
    print("Programs (optional)")
    for program in diagnosis.programs:
        found = program.path or f"missing; for {program.purpose}: {program.remedy}"
        print(f"  {program.name:<18} {found}")
    print("Extras (optional)")
    for extra in diagnosis.extras:
        missing = f"missing {', '.join(extra.missing)}: {extra.remedy}" if extra.missing else "complete"
        print(f"  {extra.name:<18} {missing}")
    for note in diagnosis.notes:
        print(f"Note: {note}")
    if not diagnosis.healthy:
        raise MissingDependencyError("a package that audio-llm needs is missing", remedy="see MISSING above")
    return 0


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
