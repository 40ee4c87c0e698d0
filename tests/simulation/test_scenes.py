"""Scenes: pure functions of their seed whose parts add up, with levels, times and talkers as drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from audio_llm.errors import DataError
from audio_llm.simulation.heads import SAMPLE_RATE, Head, HeadVariation, level_difference_db, load_head
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources, Voice, plan_scene
from audio_llm.simulation.scenes import make_scene

SHORT = SceneConfig(seconds=1.5, enrollment_seconds=1.0)


def voice(number: int, utterances: int = 3, seconds: float = 0.8) -> Voice:
    """Return a speaker whose utterances are different noises, which correlation distinguishes."""
    rng = np.random.default_rng(number)
    sounds = tuple(0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32) for _ in range(utterances))
    return Voice(f"v{number}", "made", "F", sounds)


@pytest.fixture(scope="module")
def sources() -> SceneSources:
    rng = np.random.default_rng(99)
    noises = tuple(rng.standard_normal(size).astype(np.float32) for size in (9000, 50_000))
    return SceneSources(tuple(voice(number) for number in range(6)), (load_head(),), noises)


def power_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(waveform.astype(np.float64) ** 2) + 1e-30))


def test_a_scene_depends_on_seed_and_index_alone(sources: SceneSources) -> None:
    one, same = make_scene(sources, SHORT, 5, 8), make_scene(sources, SHORT, 5, 8)
    assert one.plan == same.plan
    for name in ("mixture", "target", "interferers", "enrollment", "enrollment_target", "clean"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    without = make_scene(sources, SHORT, 5, 8, with_enrollment=False)
    np.testing.assert_array_equal(without.mixture, one.mixture)
    assert without.enrollment.shape == without.enrollment_target.shape == (2, 0)
    for other in (make_scene(sources, SHORT, 5, 9), make_scene(sources, SHORT, 6, 8)):
        assert not np.array_equal(one.mixture, other.mixture)


def test_shapes_and_parts_add_up(sources: SceneSources) -> None:
    for index in range(12):
        scene = make_scene(replace(sources, noises=()), SHORT, 0, index)
        assert scene.mixture.shape == scene.target.shape == (2, 24_000)
        assert scene.enrollment.shape == scene.enrollment_target.shape == (2, 16_000)
        assert scene.clean.shape == (16_000,)
        assert len(scene.interferers) == len(scene.plan.talkers) - 1 in (1, 2)
        np.testing.assert_allclose(scene.target + scene.interferers.sum(axis=0), scene.mixture, atol=1e-5)
        assert max(np.abs(scene.mixture).max(), np.abs(scene.enrollment).max()) < 1.0


def test_levels_are_as_drawn(sources: SceneSources) -> None:
    config = replace(SHORT, absent_prob=0.0, fully_absent_prob=0.0, overlap=(1.0, 1.0))
    levels, ratios = [], []
    for index in range(20):
        scene = make_scene(sources, config, 1, index)
        for other, talker in zip(scene.interferers, scene.plan.talkers[1:], strict=True):
            level = power_db(other) - power_db(scene.target)
            assert level == pytest.approx(talker.level_db, abs=0.1)
            levels.append(level)
        noise = scene.mixture - scene.target - scene.interferers.sum(axis=0)
        ratios.append(power_db(scene.target) - power_db(noise))
        assert ratios[-1] == pytest.approx(scene.plan.snr_db, abs=0.1)
    assert -5.1 <= min(levels) < -3 < 3 < max(levels) <= 5.1
    assert -0.1 <= min(ratios) < 3 < 12 < max(ratios) <= 15.1


def test_talkers_are_active_as_long_as_drawn_and_targets_may_be_silent(sources: SceneSources) -> None:
    config = replace(SHORT, rt60_s=(0.0, 0.0), absent_prob=0.4, fully_absent_prob=0.3)
    silent = partly = 0
    for index in range(40):
        scene = make_scene(sources, config, 2, index)
        for sound, talker in zip((scene.target, *scene.interferers), scene.plan.talkers, strict=True):
            outside = sound.copy()
            outside[:, int(talker.starts_s * SAMPLE_RATE) : int(talker.ends_s * SAMPLE_RATE) + 200] = 0.0
            assert np.abs(outside).max() < 1e-6
        for talker in scene.plan.talkers[1:]:
            assert 0.5 * 1.5 <= talker.ends_s - talker.starts_s + 1e-9 <= 1.5 + 1e-9
        assert scene.plan.absent == (not scene.target.any())
        silent += scene.plan.absent
        partly += not scene.plan.absent and scene.plan.talkers[0].ends_s - scene.plan.talkers[0].starts_s < 1.5
    assert 5 <= silent <= 20
    assert 8 <= partly <= 24


def test_the_enrollment_has_other_words_and_its_target_is_frontal(sources: SceneSources) -> None:
    config = replace(SHORT, rt60_s=(0.0, 0.0), moving_prob=0.0, tone_db=0.0, head=HeadVariation(0, 0, 0, 0))
    for index in range(15):
        scene = make_scene(sources, config, 3, index)
        assert abs(scene.plan.enrollment[0].azimuth) <= 18.0
        assert scene.plan.enrollment[0].voice == scene.plan.talkers[0].voice
        for other in scene.plan.enrollment[1:]:
            assert 15.0 <= other.azimuth <= 345.0
            assert other.voice != scene.plan.enrollment[0].voice
        assert abs(level_difference_db(scene.enrollment_target)) < 9.0
        recordings = sources.voices[scene.plan.enrollment[0].voice].utterances
        in_enrollment = [u for u in recordings if _is_in(u, scene.clean)]
        assert in_enrollment
        if not scene.plan.absent:
            mixture = scene.target.mean(axis=0)
            assert max(_similarity(u, mixture) for u in recordings if not any(u is s for s in in_enrollment)) > 0.2
            assert max(_similarity(u, mixture) for u in in_enrollment) < 0.1


def test_a_silent_enrollment_target_changes_nothing_else(sources: SceneSources) -> None:
    for index in range(4):
        scene, silent_target = (make_scene(sources, replace(SHORT, no_speaker_prob=x), 0, index) for x in (0.0, 1.0))
        assert scene.enrollment_target.any()
        assert not silent_target.enrollment_target.any()
        np.testing.assert_array_equal(silent_target.mixture, scene.mixture)
        np.testing.assert_array_equal(silent_target.clean, scene.clean)
        assert power_db(silent_target.enrollment) > -60.0
    present = [
        make_scene(sources, replace(SHORT, no_speaker_prob=0.5), 0, n).enrollment_target.any() for n in range(12)
    ]
    assert 2 <= sum(present) <= 10


def test_speeds_are_of_those_who_move(sources: SceneSources) -> None:
    config = replace(SHORT, seconds=4.0, moving_prob=0.5)
    speeds = []
    for index in range(8):
        scene = make_scene(sources, config, 0, index, with_enrollment=False)
        assert len(scene.speeds_deg_s) == len(scene.plan.talkers)
        assert all(
            talker.moving or not speed for talker, speed in zip(scene.plan.talkers, scene.speeds_deg_s, strict=True)
        )
        speeds += [speed for talker, speed in zip(scene.plan.talkers, scene.speeds_deg_s, strict=True) if talker.moving]
    assert 5.0 < np.mean(speeds) < 90.0
    assert max(speeds) <= 90.0


def test_a_single_recording_is_cut_in_two(sources: SceneSources) -> None:
    alone = replace(sources, voices=tuple(voice(number, 1, 3.0) for number in range(3)))
    scene = make_scene(alone, replace(SHORT, fully_absent_prob=0.0, absent_prob=0.0), 0, 1)
    assert scene.plan.one_recording
    (only,) = alone.voices[scene.plan.enrollment[0].voice].utterances
    middle = round(only.size * 1.0 / 2.5)
    assert _similarity(only[:middle], scene.clean) > 0.5
    assert _similarity(only[middle:], scene.clean) < 0.1
    assert not make_scene(sources, SHORT, 0, 1).plan.one_recording


def test_a_measured_room_sounds_as_it_is(sources: SceneSources) -> None:
    kemar = load_head()
    front = np.abs(np.mod(kemar.azimuths + 180, 360) - 180) <= 90
    room = Head("room", kemar.azimuths[front], np.pad(kemar.responses[front], ((0, 0), (0, 0), (0, 800))))
    there = replace(sources, measured_rooms=(room,))
    config = replace(SHORT, measured_room_prob=1.0)
    scene = make_scene(there, config, 0, 0)
    assert scene.plan.measured_room == 0
    assert all(abs(talker.azimuth) <= 90 and not talker.moving for talker in scene.plan.talkers)
    assert plan_scene(there, replace(config, measured_room_prob=0.0), 0, 0).measured_room is None


def test_too_few_speakers() -> None:
    with pytest.raises(DataError, match="2 voices and 1 heads"):
        plan_scene(SceneSources((voice(0), voice(1)), (load_head(),)), SHORT, 0, 0)


def _similarity(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the highest correlation of the two at any delay, over both powers."""
    size = part.size + whole.size
    spectrum = np.fft.rfft(whole, size) * np.conj(np.fft.rfft(part, size))
    return float(np.fft.irfft(spectrum, size).max() / np.sqrt(np.sum(part**2) * np.sum(whole**2)))


def _is_in(part: np.ndarray, whole: np.ndarray) -> bool:
    return _similarity(part, whole) > 0.3
