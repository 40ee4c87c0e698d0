"""Rendered rooms: the same for the same seed, and resumed; scenes mixed of them are what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audio_llm.errors import ConfigError, DataError
from audio_llm.simulation.heads import load_head
from audio_llm.simulation.rendered import RenderConfig, RenderedScenes, finish_shards, render_shard
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources, Voice

ROOMS = SceneConfig(rt60_s=(0.1, 0.2), moving_prob=0.3)
CONFIG = RenderConfig(seconds=1.024, talkers=3, rows_per_shard=2, scenes=ROOMS)
SCENES = SceneConfig(seconds=0.512, talkers=(2, 3), overlap=(0.5, 0.6), snr_db=(10.0, 10.0), level_db=(-5.0, 5.0))


def sources(voices: int = 4) -> SceneSources:
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal(16_000)).astype(np.float32) for _ in range(voices + 1)]
    speakers = tuple(Voice(f"v{n}", "none", "", (sound,)) for n, sound in enumerate(sounds[1:]))
    return SceneSources(speakers, (load_head(),), (sounds[0],))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> RenderedScenes:
    folder = tmp_path_factory.mktemp("rendered")
    for number in range(2):
        render_shard(sources(), CONFIG, folder, number)
    assert finish_shards(CONFIG, folder) == 4
    return RenderedScenes(folder)


def test_a_shard_is_a_function_of_its_number(tmp_path: Path) -> None:
    first = render_shard(sources(), CONFIG, tmp_path / "a", 0)
    again = render_shard(sources(), CONFIG, tmp_path / "b", 0)
    other = render_shard(sources(), CONFIG, tmp_path / "b", 1)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    first.write_bytes(b"kept")
    assert render_shard(sources(), CONFIG, tmp_path / "a", 0).read_bytes() == b"kept"


def test_a_mixture_is_its_talkers_and_noise_at_the_ratio_asked_for(rooms: RenderedScenes) -> None:
    counts = set()
    for index in range(8):
        scene = rooms.draw(SCENES, 1, index)
        counts.add(len(scene.talkers))
        assert scene.mixture.shape == (2, 8192)
        assert scene.talkers.shape[1:] == (2, 8192)
        noise = scene.mixture - scene.talkers.sum(axis=0)
        ratio = np.mean(scene.talkers[0] ** 2) / np.mean(noise**2)
        assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.2)
        silent = np.mean(np.all(scene.talkers[1] == 0.0, axis=0))
        assert 0.39 < silent < 0.51
    assert counts == {2, 3}


def test_scenes_are_the_same_for_the_same_seed_and_differ_for_others(rooms: RenderedScenes) -> None:
    np.testing.assert_array_equal(rooms.draw(SCENES, 1, 5).mixture, rooms.draw(SCENES, 1, 5).mixture)
    assert not np.array_equal(rooms.draw(SCENES, 1, 5).mixture, rooms.draw(SCENES, 2, 5).mixture)
    assert not np.array_equal(rooms.draw(SCENES, 1, 5).mixture, rooms.draw(SCENES, 1, 6).mixture)


def test_what_was_not_rendered_is_refused(rooms: RenderedScenes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 talkers"):
        rooms.draw(SceneConfig(seconds=2.0, talkers=(2, 2)), 1, 0)
    with pytest.raises(ConfigError, match="4 talkers"):
        rooms.draw(SceneConfig(seconds=0.5, talkers=(2, 4)), 1, 0)
    with pytest.raises(DataError, match="2 voices"):
        render_shard(sources(2), CONFIG, tmp_path, 0)
