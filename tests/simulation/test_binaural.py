"""Binaural rendering: a fixed source is a convolution, a moving source follows its path."""

from __future__ import annotations

import numpy as np
import pytest

from audio_llm.simulation.binaural import STEP_S, draw_path, path_steps, render, render_moving
from audio_llm.simulation.heads import SAMPLE_RATE, level_difference_db, load_head, time_difference_s
from audio_llm.simulation.rooms import Room, respond

HEAD = load_head()
ROOM = Room((5.0, 4.0, 2.7), 0.3, (2.2, 1.8, 1.5), 30.0)
NOTHING = Room((5.0, 4.0, 2.7), 0.0, (2.2, 1.8, 1.5))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)


def test_rendering_is_the_convolution_cut_to_length() -> None:
    waveform = noise(0.3)
    response = respond(HEAD, ROOM, 40.0, 1.0, np.random.default_rng(0)).whole
    rendered = render(waveform, response)
    assert rendered.shape == (2, waveform.size)
    for ear in range(2):
        expected = np.convolve(waveform, response[ear])[: waveform.size]
        np.testing.assert_allclose(rendered[ear], expected, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 8000])
def test_a_path_without_motion_is_a_place_that_stays(samples: int) -> None:
    waveform = noise(1.0)[:samples]
    azimuths = np.full(path_steps(samples), 25.0)
    moving = render_moving(waveform, HEAD, ROOM, azimuths, 1.2, np.random.default_rng(3))
    still = render(waveform, respond(HEAD, ROOM, 25.0, 1.2, np.random.default_rng(3)).whole)
    assert moving.shape == still.shape == (2, samples)
    np.testing.assert_allclose(moving, still, atol=2e-4)


def test_cues_follow_the_path() -> None:
    waveform = noise(3.0)
    azimuths = np.clip(np.arange(path_steps(waveform.size)) * STEP_S * 45.0 - 45.0, -60, 60)  # 45 degrees a second
    rendered = render_moving(waveform, HEAD, NOTHING, azimuths, 1.0, np.random.default_rng(0))
    for second, azimuth in ((0.5, -22.5), (1.0, 0.0), (2.0, 45.0)):
        middle = int(second * SAMPLE_RATE)
        piece = rendered[:, middle - 800 : middle + 800]
        assert time_difference_s(piece) == pytest.approx(float(time_difference_s(HEAD.at(azimuth))), abs=40e-6)
        white = render(noise(0.5, 5), HEAD.at(azimuth))
        assert level_difference_db(piece) == pytest.approx(float(level_difference_db(white)), abs=1.5)


def test_paths_are_no_faster_than_asked_and_rest_in_between() -> None:
    speeds = []
    for seed in range(30):
        path = draw_path(np.random.default_rng(seed), 200, 10.0)
        assert path.shape == (200,)
        assert path[0] == 10.0
        speeds.append(np.abs(np.diff(path)) / STEP_S)
    every = np.concatenate(speeds)
    assert every.max() <= 90.0 + 1e-9
    assert every[every > 1e-9].min() >= 30.0 - 1e-9
    assert 0.25 < np.mean(every < 1e-9) < 0.75
    np.testing.assert_array_equal(
        draw_path(np.random.default_rng(1), 50, 0.0), draw_path(np.random.default_rng(1), 50, 0.0)
    )
