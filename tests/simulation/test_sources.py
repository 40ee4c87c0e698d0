"""Packs of scene sources come back as they were; silence is cut where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audio_llm.simulation.heads import Head, load_head
from audio_llm.simulation.mono import SAMPLE_RATE, trim_silence
from audio_llm.simulation.scene_plan import SceneConfig, Voice
from audio_llm.simulation.scenes import make_scene
from audio_llm.simulation.sources import read_sources, write_sources


def noise(samples: int, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_packs_come_back_and_join(tmp_path: Path) -> None:
    voices = [Voice(f"v{n}", "corpus", "F", (noise(9000, n), noise(20_000, n + 50))) for n in range(4)]
    kemar = load_head()
    small = Head("small", np.array([0.0, 90.0, 270.0]), noise(3 * 2 * 50, 1).reshape(3, 2, 50))
    counts = write_sources(tmp_path / "one", voices[:3], [noise(5000, 9)], [kemar, small], [small])
    assert counts == {"speech": 6, "noise": 1, "heads": 2, "rooms": 1}
    write_sources(tmp_path / "two", voices[3:], [], [])
    sources = read_sources(tmp_path / "one", tmp_path / "two")
    assert [(v.name, v.corpus, v.gender, len(v.utterances)) for v in sources.voices] == [
        (f"v{n}", "corpus", "F", 2) for n in range(4)
    ]
    for voice, read in zip(voices, sources.voices, strict=True):
        for sound, pcm in zip(voice.utterances, read.utterances, strict=True):
            np.testing.assert_allclose(pcm / 32768.0, sound, atol=2e-5)
    np.testing.assert_array_equal(sources.heads[0].responses, kemar.responses)
    np.testing.assert_array_equal(sources.heads[1].responses, small.responses)
    assert (sources.heads[1].name, len(sources.measured_rooms), len(sources.noises)) == ("small", 1, 1)
    scene = make_scene(sources, SceneConfig(seconds=1.0, enrollment_seconds=0.5), 0, 0)
    assert 0.001 < np.abs(scene.mixture).max() < 1.0


def test_silence_is_cut_at_the_ends_and_pauses_are_shortened() -> None:
    speech = noise(SAMPLE_RATE, 0)
    quiet = 1e-4 * noise(2 * SAMPLE_RATE, 1)
    trimmed = trim_silence(np.concatenate([quiet, speech, quiet, speech, quiet]))
    assert abs(trimmed.size - 2.3 * SAMPLE_RATE) <= 4 * 320
    assert np.abs(trimmed[:320]).max() > 0.01
    assert np.abs(trimmed[-320:]).max() > 0.01
    short_pause = np.concatenate([speech, quiet[:1600], speech])
    assert trim_silence(short_pause).size == short_pause.size
    for nothing in (np.zeros(0, np.float32), np.zeros(100, np.float32), np.zeros(9000, np.float32)):
        assert trim_silence(nothing).size == 0
