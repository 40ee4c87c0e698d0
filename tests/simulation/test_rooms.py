"""Rooms against geometry and room acoustics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from audio_llm.errors import UsageError
from audio_llm.simulation.heads import SAMPLE_RATE, level_difference_db, load_head, time_difference_s
from audio_llm.simulation.rooms import SPEED_OF_SOUND, Room, images, respond

HEAD = load_head()


def make_room(rt60_s: float = 0.4, facing_deg: float = 30.0) -> Room:
    return Room((5.0, 4.0, 2.7), rt60_s, (2.2, 1.8, 1.5), facing_deg)


def test_images_are_where_mirrors_put_them() -> None:
    room = Room((5.0, 4.0, 3.0), 0.4, (2.0, 2.0, 1.5), 0.0)
    sources = images(room, 90.0, 1.0)  # the source is at (2, 3, 1.5)
    assert (sources.azimuths[0], sources.delays_s[0], sources.gains[0]) == (90.0, 0.0, 1.0)
    behind = np.argmin(np.abs(sources.azimuths - 90.0) + 100 * np.abs(sources.delays_s - 2.0 / SPEED_OF_SOUND))
    assert sources.delays_s[behind] == pytest.approx(2.0 / SPEED_OF_SOUND)  # the wall at y = 4: image at y = 5
    away = np.array([-2.0 - 2.0, 1.0])  # the wall at x = 0: image at x = -2
    distance = np.hypot(*away)
    index = np.argmin(np.abs(sources.delays_s - (distance - 1.0) / SPEED_OF_SOUND))
    assert sources.delays_s[index] == pytest.approx((distance - 1.0) / SPEED_OF_SOUND)
    assert np.mod(sources.azimuths[index], 360) == pytest.approx(np.degrees(np.arctan2(away[1], away[0])))
    assert sources.gains[index] == pytest.approx(room.reflection / distance / np.sqrt(2.0))


def test_turning_the_head_turns_every_image() -> None:
    one, other = images(make_room(facing_deg=0.0), 50.0, 1.0), images(make_room(facing_deg=20.0), 30.0, 1.0)
    np.testing.assert_allclose(np.mod(one.azimuths, 360), np.mod(other.azimuths + 20.0, 360), atol=1e-6)
    np.testing.assert_allclose(one.delays_s, other.delays_s, atol=1e-9)


@pytest.mark.parametrize("rt60_s", [0.2, 0.4, 0.6])
def test_sound_decays_as_asked_and_far_sources_have_more_of_it(rt60_s: float) -> None:
    low = butter(4, 1000.0, fs=SAMPLE_RATE, output="sos")
    ratios = []
    for distance_m in (0.7, 1.4):
        response = respond(HEAD, make_room(rt60_s), 20.0, distance_m, np.random.default_rng(0))
        energy = np.sum(sosfilt(low, response.whole.astype(np.float64)) ** 2, axis=0)
        decay = 10 * np.log10(np.cumsum(energy[::-1])[::-1] / energy.sum() + 1e-12)
        seconds = (np.argmax(decay < -30.0) - np.argmax(decay < -10.0)) / SAMPLE_RATE
        assert 3.0 * seconds == pytest.approx(rt60_s, rel=0.2)
        direct = np.sum(response.direct.astype(np.float64) ** 2)
        ratios.append(10 * np.log10(direct / (np.sum(response.whole.astype(np.float64) ** 2) - direct)))
    assert ratios[0] - ratios[1] == pytest.approx(6.0, abs=1.5)


def test_the_direct_sound_keeps_its_cues_and_the_tail_has_none() -> None:
    response = respond(HEAD, make_room(0.5), 60.0, 1.0, np.random.default_rng(1))
    np.testing.assert_array_equal(response.direct, HEAD.at(60.0))
    onset = response.whole[:, :48]  # before the first reflection
    np.testing.assert_allclose(onset, response.direct[:, :48], atol=1e-6)
    late = response.whole[:, 1600:]
    assert abs(level_difference_db(late)) < 2.0  # the direct sound has 13 dB
    low, high = (butter(4, band, "bandpass", fs=SAMPLE_RATE, output="sos") for band in ((100, 300), (2000, 6000)))
    coherence = [np.corrcoef(sosfilt(band, late.astype(np.float64)))[0, 1] for band in (low, high)]
    assert coherence[0] > 0.6
    assert abs(coherence[1]) < 0.25


def test_no_room_is_the_head_alone_and_draws_are_repeated() -> None:
    nothing = respond(HEAD, make_room(0.0), -30.0, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(nothing.whole, HEAD.at(-30.0))
    assert time_difference_s(nothing.whole) > 0
    one, same, other = (respond(HEAD, make_room(), 0.0, 1.0, np.random.default_rng(seed)).whole for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_source_and_head_are_inside_the_walls() -> None:
    room = make_room()
    for azimuth in range(0, 360, 15):
        position = room.source(azimuth, 100.0)
        assert (position > 0).all()
        assert (position < np.array(room.size_m)).all()
    with pytest.raises(UsageError, match="outside the room"):
        Room((5.0, 4.0, 2.7), 0.3, (5.5, 1.0, 1.0))
