"""`audio-llm export`: a trained model as ONNX files with a JSON contract, for a device."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from audio_llm.errors import MissingDependencyError

_DESCRIPTION = """Write tse.onnx (one 8 ms chunk), enrolment.onnx (enrollment recording to speaker vector) and tse.json
(names, shapes, hashes). The graphs are compared with the trained network before they are moved into the folder. Needs
the package in export/."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "export", parents=[common], help="a model as ONNX files for a device", description=_DESCRIPTION
    )
    parser.add_argument("system", choices=("tse",), help="what to export: target speaker extraction")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--model", metavar="NAME|DIR", default="tse-small", help="model (default: tse-small)")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write tse.int8.onnx, which the contract then names; smaller, less accurate",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export; return the exit status."""
    try:
        exporter = importlib.import_module("audio_llm_export")
    except ModuleNotFoundError as error:
        if error.name not in ("audio_llm_export", "onnx", "onnxruntime"):
            raise
        raise MissingDependencyError(f"{error.name} is not installed", remedy="pip install ./export") from None
    done = exporter.export_tse(arguments.model, arguments.output, arguments.int8, arguments.overwrite)
    if not arguments.quiet:
        if not done.lossless:
            line = "weights were rounded to half precision before the comparison"
            print(f"audio-llm: warning: {line}", file=sys.stderr)
        print(f"{done.size_bytes / 1e6:.2f} MB of graphs; {_differences(done)}", file=sys.stderr)
    for name in done.files:
        print(done.folder / name)
    return 0


def _differences(done: Any) -> str:
    parts = [f"largest difference from the network: sound {done.stream.sound:.1e} in {done.stream.compared} chunks"]
    if done.enrollment is not None:
        parts.append(f"enrollment {done.enrollment.sound:.1e} in {done.enrollment.compared} recordings")
    if done.int8 is not None:
        parts.append(f"with 8-bit weights, sound {done.int8.sound:.1e}")
    return ", ".join(parts)
