"""Diagnosis of the installation: versions, devices, programs and missing extras."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib import metadata

from audio_llm import __version__
from audio_llm.errors import MissingDependencyError, UsageError

CORE_REQUIREMENTS = (
    "safetensors>=0.5",
    "numpy>=2",
    "soundfile>=0.13",
    "soxr>=0.5",
    "av>=14",
    "pocketsphinx>=5.1,<6",
    "rapidfuzz>=3.9",
    "num2words>=0.5.13",
    "PyYAML>=6",
    "regex>=2024.5.10",
    "tqdm>=4.66",
    "huggingface_hub>=1",
    "onnxruntime>=1.20",
    "ctranslate2>=4.5,<5",
    "tokenizers>=0.20",
    "filelock>=3.12",
)
EXTRAS: dict[str, tuple[str, ...]] = {  # as in pyproject.toml, without those of the tests
    "torch": ("torch>=2.6,<2.14", "transformers>=5,<6", "scipy>=1.14", "wetext>=0.1.8,<0.2"),
    "train": ("audio-llm[torch]", "accelerate>=1.10,<2", "peft>=0.18,<1"),
    "plot": ("matplotlib>=3.10",),
    "ray": ("ray[data]>=2.50,<3",),
    "export": ("onnx>=1.17", "onnxruntime>=1.20"),
}
PROGRAMS: dict[str, tuple[str, str]] = {
    "flite": ("speech for `audio-llm train dlm`", "apt install flite"),
    "festival": (
        "more voices for it",
        "apt install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts",
    ),
    "ffmpeg": ("turning what is not read here into wav by hand", "apt install ffmpeg"),
}


@dataclass(frozen=True)
class Package:
    """A required package.

    Attributes:
        name: Its name.
        version: None where it is not installed.
        remedy: The pip command that installs it.
    """

    name: str
    version: str | None
    remedy: str


@dataclass(frozen=True)
class Extra:
    """An optional group of packages.

    Attributes:
        name: Name of the extra.
        missing: Its packages that are not installed.
        remedy: The pip command that installs them.
    """

    name: str
    missing: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Program:
    """An optional program.

    Attributes:
        name: Name of the command.
        path: Its path, or None.
        purpose: What it is for.
        remedy: The command that installs it on Debian or Ubuntu.
    """

    name: str
    path: str | None
    purpose: str
    remedy: str


@dataclass(frozen=True)
class Device:
    """A device for neural networks and its description."""

    name: str
    description: str


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`.

    Attributes:
        python: Version and platform.
        packages: This package and its requirements.
        extras: Optional groups.
        programs: Optional programs.
        devices: Devices, the CPU first.
        notes: Known problems of this combination, with remedies.
    """

    python: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    programs: tuple[Program, ...]
    devices: tuple[Device, ...]
    notes: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether all requirements are installed."""
        return all(package.version is not None for package in self.packages)


def missing_extra(error: ImportError) -> MissingDependencyError | None:
    """Return what to tell a user whose installation lacks an extra; None where the error has another reason."""
    module = (error.name or "").partition(".")[0]
    for extra, requirements in EXTRAS.items():
        if module in map(_name, requirements) and importlib.util.find_spec(module) is None:
            return MissingDependencyError(f"{module} is not installed", remedy=f"pip install 'audio-llm[{extra}]'")
    return None


def resolve_device(device: str) -> str:
    """Return `cpu` or a CUDA device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: The device has an unknown name, or CUDA is asked for where there is none.
    """
    if device == "cpu":
        return "cpu"
    if device not in ("auto", "cuda") and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise UsageError(f"unknown device {device!r}", remedy="use auto, cpu or cuda")
    if device == "auto" and importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if int(device[5:] or 0) >= count:
        raise UsageError(f"there is no device {device}: torch sees {count} CUDA devices", remedy="use --device cpu")
    return device


def diagnose() -> Diagnosis:
    """Diagnose the installation and the machine."""
    packages = [Package("audio-llm", __version__, "pip install .")]
    packages += [Package(_name(line), _version(line), _pip((line,))) for line in CORE_REQUIREMENTS]
    extras = []
    for name, requirements in EXTRAS.items():
        missing = tuple(requirement for requirement in requirements if _version(requirement) is None)
        extras.append(Extra(name, tuple(map(_name, missing)), _pip(missing)))
    programs = [Program(name, shutil.which(name), *PROGRAMS[name]) for name in PROGRAMS]
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return Diagnosis(python, tuple(packages), tuple(extras), tuple(programs), tuple(_devices()), tuple(_notes()))


def _devices() -> list[Device]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = [Device("cpu", f"{cores} cores")]
    try:
        import torch
    except (ImportError, OSError):
        return devices
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory_gb = properties.total_memory / 2**30
            devices.append(Device(f"cuda:{index}", f"{properties.name}, {memory_gb:.0f} GB"))
    return devices


def _notes() -> list[str]:
    notes = []
    if importlib.util.find_spec("torchaudio") and "+cpu" in (_version("torch") or ""):
        notes.append("torchaudio beside a CPU build of torch breaks transformers: pip uninstall torchaudio")
    return notes


def _version(requirement: str) -> str | None:
    try:
        return metadata.version(_name(requirement))
    except metadata.PackageNotFoundError:
        return None


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


def _pip(requirements: tuple[str, ...]) -> str:
    return f"pip install {' '.join(map(shlex.quote, requirements))}"
