"""Audio files: long ones, and sample formats that the output format cannot or should not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from audio_llm_realtime.soundfile_io import read_sound, write_sound

soundfile = pytest.importorskip("soundfile")
RATE = 16_000
LONG = """
import sys, numpy
from pathlib import Path
from audio_llm_realtime.soundfile_io import write_sound
noise = numpy.random.default_rng(0).uniform(-0.1, 0.1, (2, 2_000_000)).astype(numpy.float32)
write_sound(Path(sys.argv[1]), noise, 16_000, "PCM_16")
"""


def test_long_file_is_written_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "long.ogg"
    project = Path(__file__).resolve().parents[2] / "realtime"
    done = subprocess.run([sys.executable, "-c", LONG, str(path)], env={"PYTHONPATH": str(project)})  # it may crash
    assert done.returncode == 0
    assert (soundfile.info(path).frames, soundfile.info(path).subtype) == (2_000_000, "VORBIS")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["long.ogg"]


@pytest.mark.parametrize(
    "subtype, ending, stored",
    [
        ("MPEG_LAYER_III", "wav", "PCM_16"),
        ("MPEG_LAYER_III", "mp3", "MPEG_LAYER_III"),
        ("PCM_24", "wav", "PCM_24"),
        ("FLOAT", "wav", "FLOAT"),
        ("FLOAT", "flac", "PCM_16"),
        ("PCM_24", "flac", "PCM_24"),
        ("PCM_U8", "wav", "PCM_16"),
        ("VORBIS", "wav", "PCM_16"),
    ],
)
def test_samples_are_stored_as_before_where_that_loses_nothing(
    tmp_path: Path, sound: np.ndarray, subtype: str, ending: str, stored: str
) -> None:
    path = tmp_path / f"out.{ending}"
    assert write_sound(path, sound, RATE, subtype) == 0
    stored_file = read_sound(path)
    assert (stored_file.subtype, stored_file.sample_rate) == (stored, RATE)
    if stored != "MPEG_LAYER_III":
        np.testing.assert_allclose(stored_file.waveform, sound, atol=1e-4)


@pytest.mark.parametrize("subtype, clipped", [("PCM_16", 3), ("FLOAT", 0)])
def test_clipped_samples_are_counted(tmp_path: Path, subtype: str, clipped: int) -> None:
    waveform = np.array([[0.5, 1.25, -2.0], [1.0, -1.0, 3.0]], np.float32)
    assert write_sound(tmp_path / "out.wav", waveform, RATE, subtype) == clipped
