"""Cutting at pauses: nothing said is lost, nothing depends on the blocks, quiet and hiss give nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from audio_llm.asr.segment import Segment, segments

RATE = 16_000


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Return something like speech: harmonics of a moving pitch in syllables, (T,) float32."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 20 * np.sin(2 * np.pi * 0.7 * time_s + rng.uniform(0, 6))) / RATE
    voice = sum(np.exp(-abs(k * 130 - 600) / 500) * np.sin(k * phase) for k in range(1, 25))
    voice *= 0.55 - 0.45 * np.cos(2 * np.pi * 4 * time_s)
    return (0.3 * voice / np.abs(voice).max()).astype(np.float32)


def quiet(seconds: float, level: float = 3e-4, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def cut(*parts: np.ndarray, max_s: float = 30.0) -> list[Segment]:
    return list(segments([np.concatenate(parts)], max_s))


def spans(found: list[Segment]) -> list[tuple[float, float]]:
    return [(s.start_s, s.start_s + len(s.waveform) / RATE) for s in found]


def blocks_of(sound: np.ndarray, seconds: float) -> Iterator[np.ndarray]:
    size = round(seconds * RATE)
    return (sound[start : start + size] for start in range(0, len(sound), size))


def test_long_pauses_divide_and_context_is_kept() -> None:
    found = spans(cut(quiet(2), babble(3), quiet(1.5), babble(2), quiet(2)))
    assert len(found) == 2
    for (start_s, end_s), (true_start_s, true_end_s) in zip(found, [(2.0, 5.0), (6.5, 8.5)], strict=True):
        assert 0.1 <= true_start_s - start_s <= 0.4
        assert 0.1 <= end_s - true_end_s <= 0.6


def test_short_pauses_do_not_divide() -> None:
    assert len(cut(quiet(1), babble(2), quiet(0.4), babble(2), quiet(0.4), babble(2), quiet(1))) == 1


def test_waveforms_are_the_very_samples() -> None:
    sound = np.concatenate([quiet(1), babble(3), quiet(1.2), babble(45), quiet(1.2), babble(2)])
    found = list(segments([sound]))
    assert len(found) >= 4
    for segment in found:
        start = segment.start_s * RATE
        assert start == int(start)
        np.testing.assert_array_equal(segment.waveform, sound[int(start) : int(start) + len(segment.waveform)])
        assert segment.waveform.dtype == np.float32
    ends = spans(found)
    assert all(end_s <= start_s for (_, end_s), (start_s, _) in itertools.pairwise(ends))


@pytest.mark.parametrize("max_s", [5.0, 12.5, 30.0])
def test_endless_speech_is_cut_without_loss(max_s: float) -> None:
    sound = babble(70)
    found = list(segments([sound], max_s))
    assert max(len(segment.waveform) for segment in found) <= max_s * RATE
    assert min(len(segment.waveform) for segment in found[:-1]) >= max_s * RATE * 0.6
    np.testing.assert_array_equal(np.concatenate([segment.waveform for segment in found]), sound)


def test_endless_speech_is_cut_at_the_quietest_place() -> None:
    sound = babble(40)
    sound[24 * RATE : 24 * RATE + 4_000] *= 0.01  # a quarter of a second, too short for a pause
    first = next(segments([sound]))
    assert 24.0 <= len(first.waveform) / RATE <= 24.25


def test_cut_after_the_last_word() -> None:
    """A cut in a pause that then goes on must not leave an empty segment."""
    for length in np.arange(9.2, 10.2, 0.09):
        found = cut(babble(length), np.zeros(3 * RATE, np.float32), babble(1), max_s=10.0)
        assert all(len(segment.waveform) > 0.3 * RATE for segment in found)
        assert sum(len(segment.waveform) for segment in found) >= length * RATE


@pytest.mark.parametrize("block_s", [1.0, 0.37, 30.0, 0.0101])
def test_block_sizes_do_not_matter(block_s: float) -> None:
    sound = np.concatenate([quiet(1), babble(3), quiet(1.2), babble(40), quiet(0.9), babble(2.513)])
    expected = list(segments([sound]))
    found = list(segments(blocks_of(sound, block_s)))
    assert spans(found) == spans(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)


def test_segments_come_before_the_sound_is_over() -> None:
    given = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal given
        for seed in range(50):
            given += 1
            yield np.concatenate([babble(2, seed), quiet(1)])

    next(segments(blocks()))
    assert given <= 2


@pytest.mark.parametrize("seconds", [0.0, 1 / RATE, 0.01, 0.5, 40.0])
def test_silence_gives_nothing(seconds: float) -> None:
    assert cut(np.zeros(round(seconds * RATE), np.float32)) == []
    assert list(segments([])) == []


@pytest.mark.parametrize("level_db", [-70, -50, -30, -20, -10])
@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])  # white, pink, brown
def test_steady_noise_gives_nothing(level_db: float, tilt: float) -> None:
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(70 * RATE))
    noise = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 20.0) ** tilt)
    assert cut(10 ** (level_db / 20) * noise / noise.std()) == []


def test_clicks_give_nothing() -> None:
    sound = quiet(20)
    sound[RATE :: 2 * RATE] = 0.9
    assert cut(sound) == []


@pytest.mark.parametrize("gain_db", [0, -20, -30])
def test_short_word_is_found_even_in_a_faint_recording(gain_db: float) -> None:
    for seconds in (0.2, 0.25):
        gain = 10 ** (gain_db / 20)
        ((start_s, end_s),) = spans(cut(gain * quiet(3), gain * babble(seconds), gain * quiet(3)))
        assert start_s < 3 < 3 + seconds < end_s


def test_a_phrase_in_loud_noise_is_kept() -> None:
    noise = quiet(28, 0.05)
    noise[10 * RATE : 11 * RATE] += babble(1)
    assert any(start_s <= 10 and end_s >= 11 for start_s, end_s in spans(cut(noise)))


def test_hiss_that_begins_after_speech_does_not_join_segments() -> None:
    parts = [np.concatenate([babble(3, seed), quiet(1.5, 5e-4, seed)]) for seed in range(4)]
    assert len(cut(*parts)) == 4


def test_too_short_a_limit() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        next(segments([], 1.0))
