"""Blocks through another rate, in whole chunks and with a delay: in all as many samples, and aligned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.audio_stream import process_at_rate, process_in_chunks, resampled, with_sentinel


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, channels)).astype(np.float32)


def tone(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray:
    """Return (T, 1): a tone that swells and fades, so that every place is unlike the others."""
    time_s = np.arange(round(rate * seconds)) / rate
    return (np.sin(2 * np.pi * hertz * time_s) * np.sin(np.pi * time_s / seconds)).astype(np.float32)[:, None]


def cut(sound: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """Yield blocks of these sizes over and over."""
    place = 0
    for size in itertools.cycle(sizes):
        if place >= len(sound):
            return
        yield sound[place : place + size]
        place += size


def delaying(delay: int, channels: int, chunk: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a step that gives back its input so many samples later, and refuses what is no whole chunk."""
    held = np.zeros((delay, channels), np.float32)

    def step(block: np.ndarray) -> np.ndarray:
        nonlocal held
        assert len(block) % chunk == 0
        assert len(block)
        both = np.concatenate([held, block])
        held = both[len(block) :]
        return both[: len(block)]

    return step


@given(
    samples=st.integers(1, 300),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    chunk=st.integers(1, 40),
    delay=st.integers(0, 100),
)
def test_a_delay_is_taken_back_whatever_the_sizes(samples: int, sizes: list[int], chunk: int, delay: int) -> None:
    sound = noise(samples, 2)
    found = list(process_in_chunks(cut(sound, sizes), chunk, delay, delaying(delay, 2, chunk)))
    assert all(len(block) for block in found)
    np.testing.assert_array_equal(np.concatenate(found), sound)


def test_samples_come_out_as_soon_as_they_can() -> None:
    taken = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal taken
        for block in cut(noise(1000), [50]):
            taken += len(block)
            yield block

    given_back = 0
    for block in process_in_chunks(blocks(), 20, 60, delaying(60, 1, 20)):
        given_back += len(block)
        assert taken - given_back < 60 + 20 + 50 or given_back == 1000
    assert given_back == 1000


def test_nothing_in_is_nothing_out() -> None:
    assert list(process_in_chunks([], 20, 60, delaying(60, 1, 20))) == []
    assert list(resampled([], 8000, 16_000)) == []
    assert list(process_at_rate([], 8000, 16_000, lambda blocks: blocks)) == []


@pytest.mark.parametrize("rates", [(8000, 16_000), (44_100, 16_000), (16_000, 48_000), (16_000, 16_000)])
@pytest.mark.parametrize("sizes", [[100_000], [1, 777, 4096], [160]])
def test_resampling_blocks_equals_resampling_the_whole(rates: tuple[int, int], sizes: list[int]) -> None:
    sound = tone(rates[0], 0.4)
    found = np.concatenate(list(resampled(cut(sound, sizes), *rates)))
    wanted = tone(rates[1], 0.4)
    assert abs(len(found) - len(wanted)) <= 1
    size = min(len(found), len(wanted))
    np.testing.assert_allclose(found[:size], wanted[:size], atol=2e-3)


def test_resampling_keeps_channels_apart() -> None:
    sound = np.concatenate([tone(8000, 0.3), 0 * tone(8000, 0.3), tone(8000, 0.3, 900.0)], axis=1)
    found = np.concatenate(list(resampled(cut(sound, [333]), 8000, 16_000)))
    assert found.shape == (4800, 3)
    assert np.abs(found[:, 1]).max() < 1e-6
    for channel, hertz in ((0, 440.0), (2, 900.0)):
        np.testing.assert_allclose(found[:, [channel]], tone(16_000, 0.3, hertz), atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("samples", [1, 2, 441, 5001])
@pytest.mark.parametrize("sizes", [[7, 500], [100_000]])
def test_as_many_samples_come_out_as_went_in(rate: int, samples: int, sizes: list[int]) -> None:
    sound = noise(samples, 2)
    blocks = list(process_at_rate(cut(sound, sizes), rate, 16_000, lambda own: own, 0.5))
    assert sum(len(block) for block in blocks) == samples
    assert all(block.shape[1] == 2 for block in blocks)
    assert np.isfinite(np.concatenate(blocks)).all()


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_what_is_processed_is_aligned_with_what_came(rate: int) -> None:
    sound = tone(rate, 0.5)

    def halved(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        return (0.5 * block for block in process_in_chunks(blocks, 256, 512, delaying(512, 1, 256)))

    found = np.concatenate(list(process_at_rate(cut(sound, [1000, 3]), rate, 16_000, halved)))
    np.testing.assert_allclose(found, 0.5 * sound, atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_mix_of_one_is_what_came_to_the_last_bit(rate: int) -> None:
    sound = noise(3333, 2)
    found = np.concatenate(
        list(process_at_rate(cut(sound, [100, 999]), rate, 16_000, lambda own: (0 * b for b in own), 1))
    )
    np.testing.assert_array_equal(found, sound)


def test_a_mix_blends_both() -> None:
    sound = tone(8000, 0.5)
    found = np.concatenate(list(process_at_rate(cut(sound, [700]), 8000, 16_000, lambda own: (-b for b in own), 0.25)))
    np.testing.assert_allclose(found, -0.5 * sound, atol=2e-3)


def test_the_rate_of_the_model_needs_no_resampling() -> None:
    sound = noise(999)
    seen: list[np.ndarray] = []

    def process(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            seen.append(block)
            yield block

    found = np.concatenate(list(process_at_rate(cut(sound, [100]), 16_000, 16_000, process)))
    np.testing.assert_array_equal(found, sound)
    np.testing.assert_array_equal(np.concatenate(seen), sound)


def test_the_end_is_marked_once() -> None:
    blocks = [noise(1), noise(2)]
    found = list(with_sentinel(blocks))
    assert found[:2] == blocks
    assert found[2:] == [None]
    assert list(with_sentinel([])) == [None]
