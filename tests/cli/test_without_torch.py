"""An installation without PyTorch: what needs none works, and the rest is one line with the command that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
SPEECH = str(SAMPLES / "speech" / "kathleen-arctic-a0014-1592748281.ogg")
BINARY = {name: str(SAMPLES / "binaural" / f"{name}.flac") for name in ("mixture", "enrollment")}
LISTS = str(SAMPLES / "nbest" / "sphinx.jsonl")
_RUN = """
import sys
for name in ("torch", "transformers", "scipy", "accelerate"):
    sys.modules[name] = None  # as if it were not installed
from audio_llm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _RUN, *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ["transcribe", SPEECH, "--recognizer", "sphinx"],
        ["transcribe", SPEECH, "--correct", "phrase"],
        ["correct", LISTS, "--with", "phrase", "-o", "corrected.jsonl"],
        ["score", LISTS, "--help"],
        ["models", "list"],
        ["models", "info", "mask-small"],
        ["doctor"],
    ],
    ids=lambda words: " ".join(words[:1] + words[2:]),
)
def test_what_needs_no_network_works(words: list[str], tmp_path: Path) -> None:
    done = run(*words, folder=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or words == ["doctor"], done.stderr
    assert done.stdout or (tmp_path / "corrected.jsonl").stat().st_size


@pytest.mark.parametrize(
    "words",
    [
        ["correct", LISTS, "--with", "dlm"],
        ["transcribe", SPEECH, "--recognizer", "ctc"],
        ["transcribe", SPEECH, "--recognizer", "sphinx", "--enhance", "mask-small"],
        ["enhance", SPEECH, "-o", "out"],
        ["extract", BINARY["mixture"], "--enroll", BINARY["enrollment"], "-o", "speaker.wav"],
        ["speak", "Good morning.", "-o", "morning.wav"],
        ["tokenize", SPEECH, "-o", "codes.jsonl", "--codec", "codec-small"],
        ["prepare", SPEECH, "-o", "corpus"],
        ["train", "mask", ".", "--tuning", ".", "-o", "model"],
    ],
    ids=lambda words: " ".join(words[:1] + words[2:]),
)
def test_what_needs_a_network_names_the_extra_in_one_line(words: list[str], tmp_path: Path) -> None:
    done = run(*words, folder=tmp_path)
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "is not installed (pip install 'audio-llm[torch]')" in line
    assert "Traceback" not in done.stderr
