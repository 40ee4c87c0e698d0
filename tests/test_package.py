"""The package as a whole: a light import, arrows that point one way, no network, no printing library."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import numpy as np
import pytest

import audio_llm
from audio_llm import audio, doctor, hub

ROOT = Path(audio_llm.__file__).parent
PROJECT = ROOT.parent
HEAVY = ("torch", "transformers", "scipy", "soundfile", "soxr", "pocketsphinx", "jiwer", "huggingface_hub", "numpy")

_BASE = [
    *("errors", "audio", "features", "text", "nbest", "manifest", "hub", "metrics", "training"),
    *("align", "correction", "doctor", "gate", "list_metrics", "sound_metrics", "onnx_file"),
    *("registry", "installed", "download", "atomic"),
    *("audio_channels", "audio_containers", "audio_soundfile", "audio_stream", "waveforms"),
]
_PARTS = ["nn", "quantizers", "simulation", "asr", "tts", "tokenizer", "codec", "lm"]
_SYSTEMS = ["ger", "dlm", "gense", "touchtts", "tse"]
RANKS = {
    **dict.fromkeys(_BASE, 0),
    **dict.fromkeys(_PARTS, 1),
    **dict.fromkeys(_SYSTEMS, 2),
    "pipeline": 3,
    "api": 4,
    "__init__": 5,  # which offers names of all parts, each loaded when it is used
    "cli": 4,
    "__main__": 5,
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the dotted name and the syntax tree of every module."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("audio_llm", *path.relative_to(ROOT).with_suffix("").parts))
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield the full names of what a module imports, wherever in it."""
    package = name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name: str) -> str:
    """Return the second component of `audio_llm.x.y`; names of the package itself count as `__init__`."""
    second = name.split(".")[1]
    return second if (ROOT / second).is_dir() or (ROOT / f"{second}.py").is_file() else "__init__"


def test_every_module_has_a_layer_in_the_architecture() -> None:
    assert {part(name) for name, _ in modules()} <= RANKS.keys()


def test_arrows_point_one_way() -> None:
    wrong = []
    for name, tree in modules():
        for target in imports(name, tree):
            if not target.startswith("audio_llm.") or target == "audio_llm.__version__":
                continue
            source_part, target_part = part(name), part(target)
            if source_part == target_part:
                continue
            upwards = RANKS[target_part] > RANKS[source_part]
            between_systems = source_part in _SYSTEMS and target_part in _SYSTEMS
            if upwards or between_systems:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    """Imports within functions count; those for type checkers do not."""
    names = {name.removesuffix(".__init__"): tree for name, tree in modules()}
    graph = {}
    for name, tree in names.items():
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
        targets = set()
        for target in imports(name, tree):
            module = target if target in names else target.rpartition(".")[0]
            if module in names and module not in (name, "audio_llm"):
                targets.add(module)
        graph[name] = targets
    while free := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in free}
    circular = {name for name in graph if _reaches(graph, name)}
    assert circular == set()


def _reaches(graph: dict[str, set[str]], start: str) -> bool:
    """Return whether a module leads back to itself."""
    waiting, seen = list(graph[start]), set()
    while waiting:
        name = waiting.pop()
        if name == start:
            return True
        if name not in seen and name in graph:
            seen.add(name)
            waiting += graph[name]
    return False


def test_nothing_in_the_package_imports_its_users() -> None:
    outside = ("recipes", "tests", "audio_llm_export", "audio_llm_realtime")
    assert [n for n, tree in modules() for t in imports(n, tree) if t.split(".")[0] in outside] == []


def imported_by(folder: Path) -> set[str]:
    """Return the first names of everything that the modules of a folder import."""
    trees = [ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(folder.rglob("*.py"))]
    assert trees
    return {target.split(".")[0] for tree in trees for target in imports("", tree)}


def test_the_device_knows_nothing_of_the_library() -> None:
    found = imported_by(PROJECT / "realtime" / "audio_llm_realtime") - sys.stdlib_module_names
    assert found <= {"audio_llm_realtime", "numpy", "onnxruntime", "soundfile", "sounddevice"}


def test_export_knows_the_library_alone() -> None:
    found = imported_by(PROJECT / "export" / "audio_llm_export") - sys.stdlib_module_names
    assert found <= {"audio_llm", "audio_llm_export", "numpy", "onnx", "onnxruntime", "torch"}


def test_only_the_command_line_prints() -> None:
    printing = [
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert {part(name) for name in printing} <= {"cli"}


def test_pickles_are_loaded_nowhere() -> None:
    found = []
    for name, tree in modules():
        # they read tensors alone, out of ESPnet's checkpoints and Resemblyzer's, which their tests show
        if name in ("audio_llm.asr.espnet_files", "audio_llm.download.resemblyzer"):
            continue
        found += [name for target in imports(name, tree) if target.split(".")[0] in ("pickle", "dill", "joblib")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.hub.load"):
                found.append(name)
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                found += [name] if ast.unparse(node.value) != "False" else []
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "import audio_llm",
        "import audio_llm.cli; audio_llm.cli.main(['--help'])",
        "import audio_llm.cli; audio_llm.cli.main(['transcribe', '--help'])",
    ],
)
def test_import_and_help_stay_light(statement: str) -> None:
    script = f"import sys\n{statement}\nprint('\\nHEAVY', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_doctor_knows_the_requirements_of_the_package() -> None:
    pyproject = PROJECT / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("not run from the source tree")
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    assert list(doctor.CORE_REQUIREMENTS) == project["dependencies"]
    for name, requirements in doctor.EXTRAS.items():
        assert list(requirements) == project["optional-dependencies"][name]
    assert project["version"] == audio_llm.__version__


def test_doctor_finds_what_is_installed() -> None:
    diagnosis = doctor.diagnose()
    assert diagnosis.healthy
    versions = {package.name: package.version for package in diagnosis.packages}
    assert versions["numpy"] == np.__version__
    assert diagnosis.devices[0].name == "cpu"
    for extra in diagnosis.extras:
        assert all(name in extra.remedy for name in extra.missing)


_BLOCKED = """
import socket, sys

def refuse(*args, **kwargs):
    raise SystemExit("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from audio_llm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("correct", ["none", "dlm"])
def test_main_job_opens_no_connection(tmp_path: Path, correct: str) -> None:
    if correct == "dlm" and not (hub.PRETRAINED / "dlm-small" / "config.json").is_file():
        pytest.skip("dlm-small is not in this tree")
    generator = np.random.default_rng(0)
    time_s = np.arange(16_000) / 16_000
    buzz = sum(np.sin(2 * np.pi * 140 * k * time_s) / k for k in range(1, 20)) * (1 - np.cos(2 * np.pi * 3 * time_s))
    waveform = 0.1 * buzz + 0.001 * generator.standard_normal(len(time_s))
    audio.write(tmp_path / "a.wav", waveform.astype(np.float32), 16_000)
    command = [sys.executable, "-c", _BLOCKED, "transcribe", str(tmp_path / "a.wav"), "--correct", correct]
    environment = {**os.environ, "AUDIO_LLM_CACHE": str(tmp_path / "no-models")}
    done = subprocess.run(
        [*command, "--offline"], capture_output=True, text=True, cwd=PROJECT, timeout=100, env=environment
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
