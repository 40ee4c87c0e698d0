"""`audio-llm doctor`: versions, devices, programs and missing extras."""

from __future__ import annotations

import argparse
from typing import Any

from audio_llm.errors import MissingDependencyError


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    doctor = commands.add_parser("doctor", parents=[common], help="versions, devices, programs and missing extras")
    doctor.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
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
        state = program.path or f"missing; for {program.purpose}: {program.remedy}"
        print(f"  {program.name:<18} {state}")
    print("Extras (optional)")
    for extra in diagnosis.extras:
        missing = f"missing {', '.join(extra.missing)}: {extra.remedy}" if extra.missing else "complete"
        print(f"  {extra.name:<18} {missing}")
    for note in diagnosis.notes:
        print(f"Note: {note}")
    if not diagnosis.healthy:
        raise MissingDependencyError("a package that audio-llm needs is missing", remedy="see MISSING above")
    return 0
