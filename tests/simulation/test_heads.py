"""Heads against measured cues, and what interpolation and variation may do to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audio_llm.errors import DataError
from audio_llm.simulation.filters import shifted
from audio_llm.simulation.heads import (
    SAMPLE_RATE,
    Head,
    HeadVariation,
    level_difference_db,
    load_head,
    onset_delays,
    time_difference_s,
    vary,
)

# Cues of KEMAR with its normal pinna as measured on the published responses: azimuth, ITD in microseconds, ILD in dB.
CUES = ((0, 0, 0.0), (15, -141, 4.5), (30, -273, 8.2), (45, -434, 10.2), (60, -605, 13.0), (90, -699, 8.8))


@pytest.fixture(scope="module")
def kemar() -> Head:
    return load_head()


@pytest.mark.parametrize(("azimuth", "itd_us", "ild_db"), CUES)
def test_cues_of_kemar_and_its_mirror_image(kemar: Head, azimuth: int, itd_us: float, ild_db: float) -> None:
    for side in (1, -1):
        response = kemar.at(side * azimuth)
        assert 1e6 * time_difference_s(response) == pytest.approx(side * itd_us, abs=30)
        assert level_difference_db(response) == pytest.approx(side * ild_db, abs=1.0)


def test_behind_is_like_in_front(kemar: Head) -> None:
    assert time_difference_s(kemar.at(180)) == pytest.approx(0.0, abs=5e-6)
    assert level_difference_db(kemar.at(180)) == pytest.approx(0.0, abs=0.3)


def test_measured_directions_come_out_as_measured(kemar: Head) -> None:
    np.testing.assert_array_equal(kemar.table(kemar.azimuths), kemar.responses)
    np.testing.assert_array_equal(kemar.at(-90.0), kemar.at(270.0))
    np.testing.assert_array_equal(kemar.at(360.0 + 45.0), kemar.at(45.0))


def test_interpolation_finds_directions_that_are_left_out(kemar: Head) -> None:
    half = Head("half", kemar.azimuths[::2], kemar.responses[::2])
    expected = kemar.responses[1::2]
    interpolated = half.table(kemar.azimuths[1::2])

    def errors_db(responses: np.ndarray) -> np.ndarray:
        return 10 * np.log10(np.sum((responses - expected) ** 2, axis=(1, 2)) / np.sum(expected**2, axis=(1, 2)))

    assert errors_db(interpolated).mean() < -25.0
    assert errors_db(half.responses).mean() > -15.0  # the nearest direction instead
    assert np.abs(time_difference_s(interpolated) - time_difference_s(expected)).max() < 15e-6
    near_front = np.abs(np.mod(kemar.azimuths[1::2] + 180, 360) - 180) < 75
    assert np.abs(level_difference_db(interpolated) - level_difference_db(expected))[near_front].max() < 1.0


def test_the_fast_way_is_near_the_exact_one(kemar: Head) -> None:
    azimuths = np.array([-200.0, -0.25, 0.0, 12.5, 45.0, 89.75, 359.9, 725.0])
    exact, fast = kemar.table(azimuths), kemar.near(azimuths)
    np.testing.assert_array_equal(exact[[2, 4, 7]], fast[[2, 4, 7]])
    assert np.sum((exact - fast) ** 2) < 1e-4 * np.sum(exact**2)


def test_delays_follow_a_shift_exactly(kemar: Head) -> None:
    responses = np.pad(kemar.responses, ((0, 0), (0, 0), (16, 40))).astype(np.float64)
    before = onset_delays(responses)
    for delay in (3.0, 7.25):
        moved = shifted(responses, np.full(responses.shape[:2], delay))
        assert np.abs(onset_delays(moved) - before - delay).max() <= 1 / 16
        back = shifted(moved, np.full(responses.shape[:2], -delay))  # but for the highest frequency of all
        np.testing.assert_allclose(back, responses, atol=1e-3)


def test_varied_heads_keep_the_order_of_cues_but_not_their_symmetry(kemar: Head) -> None:
    itds, ilds = [], []
    for seed in range(12):
        head = vary(kemar, np.random.default_rng(seed))
        assert head.responses.shape == kemar.responses.shape
        front, side = head.at(0.0), head.at(60.0)
        assert not np.allclose(front[0], front[1], rtol=0.02)
        assert abs(level_difference_db(front)) < 5.0
        itds.append(time_difference_s(side) / time_difference_s(kemar.at(60.0)))
        ilds.append(level_difference_db(side))
    assert 0.85 < min(itds) < 0.97 < 1.03 < max(itds) < 1.15
    assert np.std(ilds) > 0.7
    same = vary(kemar, np.random.default_rng(3)), vary(kemar, np.random.default_rng(3))
    np.testing.assert_array_equal(same[0].responses, same[1].responses)
    none = vary(kemar, np.random.default_rng(0), HeadVariation(0.0, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(none.responses, kemar.responses, atol=0.03 * np.abs(kemar.responses).max())


def test_files_that_are_no_heads(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz"):
        load_head(tmp_path / "none.npz")
    path = tmp_path / "head.npz"
    good = {"ir": np.zeros((3, 2, 9)), "azimuth_deg": np.arange(3.0), "elevation_deg": np.zeros(3)}
    for bad in ({"sample_rate": 44_100}, {"sample_rate": SAMPLE_RATE, "ir": np.zeros((3, 1, 9))}, {}):
        np.savez(path, **{**good, **bad})
        with pytest.raises(DataError, match="head"):
            load_head(path)
    np.savez(path, **good, sample_rate=SAMPLE_RATE)
    assert load_head(path, "mine").name == "mine"
