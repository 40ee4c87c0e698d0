"""The loop: exact delay in blocks of any size, and the late-chunk policy counted to the chunk from a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime.clock import MeasuredClock, TraceClock
from audio_llm_realtime.counters import Count
from audio_llm_realtime.errors import UsageError
from audio_llm_realtime.loop import FileLoop, run_blocks
from audio_llm_realtime.resample import delay_frames
from audio_llm_realtime.worker import Worker

CHUNK, LOOKAHEAD = 128, 64
DELAY = CHUNK + LOOKAHEAD


def late(sound: np.ndarray, delay: int = DELAY) -> np.ndarray:
    return np.pad(sound, ((0, 0), (delay, 0)))[:, : sound.shape[1]]


def unit(number: int) -> slice:
    """Where chunk `number` is played."""
    return slice((number + 1) * CHUNK, (number + 2) * CHUNK)


def undisturbed(make_engine: Callable[..., Any], sound: np.ndarray, **options: Any) -> np.ndarray:
    return FileLoop(Worker(make_engine(**options)), MeasuredClock(instant=True)).run(sound)


def counted(worker: Worker) -> tuple[int, int, int, int, int]:
    whats = (Count.MISSES, Count.STALLS, Count.SKIPPED, Count.SETTLING, Count.DRY)
    return tuple(worker.counters[what] for what in whats)  # type: ignore[return-value]


def test_sound_is_192_samples_late_to_the_bit(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    out = undisturbed(make_engine, sound, gain=0.5)
    np.testing.assert_array_equal(out, np.float32(0.5) * late(sound))


def test_blocks_of_any_size_give_the_same_to_the_bit(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    expected = undisturbed(make_engine, sound, gain=0.5, memory=0.3)
    generator = np.random.default_rng(1)
    for sizes in ([1], [128], [441], [64, 300], list(map(int, generator.integers(1, 700, 97)))):
        out = run_blocks(Worker(make_engine(gain=0.5, memory=0.3)), sound[:, :8000], sizes)
        np.testing.assert_array_equal(out, expected[:, :8000])


@pytest.mark.parametrize("ratio", [2, 3, 6])
def test_blocks_of_any_size_at_the_rate_of_a_device(
    make_engine: Callable[..., Any], sound: np.ndarray, ratio: int
) -> None:
    rate = 16_000 * ratio
    whole = run_blocks(Worker(make_engine(0.5, 0.3), rate), sound, [CHUNK * ratio])
    np.testing.assert_array_equal(run_blocks(Worker(make_engine(0.5, 0.3), rate), sound, [17, 1000, 480]), whole)
    tone = np.sin(np.arange(8000) * 2 * np.pi * 500 / rate).astype(np.float32)[None].repeat(2, axis=0)
    worker = Worker(make_engine(), rate)
    assert worker.buffer.delay == DELAY * ratio + delay_frames(ratio)
    out = run_blocks(worker, tone, [480])
    np.testing.assert_allclose(out[:, 3000:], late(tone, worker.buffer.delay)[:, 3000:], atol=2e-3)


def test_rate_that_is_no_multiple_is_refused(make_engine: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="44100 Hz"):
        Worker(make_engine(), 44_100)


def test_dependency_reaches_back_a_chunk_and_the_lookahead(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    base = undisturbed(make_engine, sound)
    for at in (4000, 4095, 4096):
        changed = sound.copy()
        changed[:, at] += 0.25
        different = np.flatnonzero((undisturbed(make_engine, changed) != base).any(axis=0))
        assert different.tolist() == [at + DELAY]


def test_late_chunk_is_played_dry_and_still_run(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    trace = [1.0] * 125
    trace[40] = 10.0
    worker = Worker(make_engine(0.5, 0.3))
    out = FileLoop(worker, TraceClock(trace)).run(sound)
    expected = undisturbed(make_engine, sound, gain=0.5, memory=0.3)
    assert counted(worker) == (1, 0, 0, 0, 1)
    assert worker.counters[Count.CHUNKS] == 125
    np.testing.assert_array_equal(out[:, : unit(40).start], expected[:, : unit(40).start])
    ramp = 1 - np.arange(1, CHUNK + 1) / CHUNK
    backwards = expected[:, unit(39)][:, ::-1]
    np.testing.assert_allclose(out[:, unit(40)], ramp * backwards + (1 - ramp) * late(sound)[:, unit(40)], atol=1e-6)
    np.testing.assert_allclose(
        out[:, unit(41)], ramp * late(sound)[:, unit(41)] + (1 - ramp) * expected[:, unit(41)], atol=1e-6
    )
    np.testing.assert_array_equal(out[:, unit(42).start :], expected[:, unit(42).start :])  # the state had gone on


def test_ready_at_the_very_deadline_is_in_time(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    for ms, misses in ((8.0, 0), (8.000001, 124)):
        worker = Worker(make_engine())
        FileLoop(worker, TraceClock([ms])).run(sound)
        assert worker.counters[Count.MISSES] == misses


@pytest.mark.parametrize(
    "at_ms, misses",
    # ready 30 ms after it came: its turn and those of the two behind it are past; at 1 ms a chunk the rest catches up
    [(8.5, 1), (16.0, 2), (30.0, 4), (15.0, 1), (15.5, 2)],
)
def test_one_stall_delays_the_chunks_after_it(
    make_engine: Callable[..., Any], sound: np.ndarray, at_ms: float, misses: int
) -> None:
    trace = [1.0] * 125
    trace[60] = at_ms
    worker = Worker(make_engine())
    FileLoop(worker, TraceClock(trace, [1.0] * 125)).run(sound)
    assert counted(worker) == (misses, misses, 0, 0, misses)


def test_extra_chunks_give_time_and_add_delay(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    trace = [6.0] * 125
    trace[30] = trace[60] = 15.0
    misses = []
    for extra_chunks in (0, 1):
        worker = Worker(make_engine(0.5, 0.3), extra_chunks=extra_chunks)
        out = FileLoop(worker, TraceClock(trace)).run(sound)
        misses.append(worker.counters[Count.MISSES])
    assert misses == [8, 0]
    assert (worker.buffer.delay, worker.extra_chunks_ms) == (DELAY + CHUNK, 8.0)
    expected = undisturbed(make_engine, sound, gain=0.5, memory=0.3)
    np.testing.assert_array_equal(out[:, CHUNK:], expected[:, :-CHUNK])


def test_extra_chunks_bridge_a_stall_longer_than_the_backlog(
    make_engine: Callable[..., Any], sound: np.ndarray
) -> None:
    trace = [1.0] * 125
    trace[30] = 150.0
    worker = Worker(make_engine(0.5, 0.3), extra_chunks=20)
    out = FileLoop(worker, TraceClock(trace)).run(sound)
    assert counted(worker) == (0, 0, 0, 0, 0)
    assert worker.counters[Count.RESETS] == 0
    expected = undisturbed(make_engine, sound, gain=0.5, memory=0.3)
    np.testing.assert_array_equal(out[:, 20 * CHUNK :], expected[:, : -20 * CHUNK])


def test_slow_chunks_are_misses_but_no_stalls(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    worker = Worker(make_engine())
    generator = np.random.default_rng(5)
    trace = np.where(generator.random(125) < 0.1, 12.0, 2.0)
    trace[-1] = 2.0
    FileLoop(worker, TraceClock(trace.tolist())).run(sound)
    free, misses, stalls = 0.0, 0, 0
    for number, ms in enumerate(trace):  # the same by hand
        free = max(free, 8.0 * number) + ms
        misses += free > 8.0 * (number + 1)
        stalls += free > 8.0 * (number + 1) and ms < 4.0
    assert counted(worker) == (misses, stalls, 0, 0, misses)
    assert misses > stalls > 0


def test_far_behind_chunks_are_dropped_and_the_state_is_reset(
    make_engine: Callable[..., Any], sound: np.ndarray
) -> None:
    trace = [1.0] * 125
    trace[20] = 199.0  # chunk 20 is ready at 359 ms, when 21 to 44 wait
    worker = Worker(make_engine(0.5, 0.3), max_backlog=10)
    out = FileLoop(worker, TraceClock(trace, [1.0] * 125)).run(sound)
    # 20 came late; 21 to 43 are dropped; 44 is run from an empty state and played dry
    assert counted(worker) == (24, 24, 23, 1, 25)
    assert worker.counters[Count.RESETS] == 1
    assert worker.counters[Count.CHUNKS] == 125 - 23
    fresh = undisturbed(make_engine, sound[:, 44 * CHUNK :], gain=0.5, memory=0.3)
    dry = slice(unit(21).start, unit(44).stop)
    np.testing.assert_array_equal(out[:, dry], late(sound)[:, dry])
    np.testing.assert_array_equal(
        out[:, unit(46).start :], fresh[:, unit(2).start : unit(2).start + out[:, unit(46).start :].shape[1]]
    )


def test_stall_longer_than_the_stored_history_loses_only_time(
    make_engine: Callable[..., Any], sound: np.ndarray
) -> None:
    trace = [1.0] * 125
    trace[5] = 700.0
    worker = Worker(make_engine(), max_backlog=4)
    out = FileLoop(worker, TraceClock(trace)).run(sound)
    assert worker.counters[Count.SKIPPED] == 86  # 6 to 91: the first was ready at 740 ms, when 92 had come
    faded = unit(5)
    out[:, faded] = late(sound)[:, faded]
    np.testing.assert_array_equal(out, late(sound))


def test_network_with_non_finite_output_is_played_dry_with_a_fade(
    make_engine: Callable[..., Any], sound: np.ndarray
) -> None:
    sound = sound.copy()
    sound[:, 30 * CHUNK + 5] = 3.0
    worker = Worker(make_engine(3e38))
    out = FileLoop(worker, MeasuredClock(instant=True)).run(sound)
    assert np.isfinite(out).all()
    assert worker.counters[Count.RESETS] == worker.counters[Count.NOT_FINITE_OUT] == 1
    assert worker.counters[Count.SETTLING] == worker.counters[Count.DRY] == 2


@pytest.mark.parametrize("at, dry", [((10, 14), 4), ((10, 11), 3), ((10, 12), 4), ((10, 12, 14, 30), 8)])
def test_every_non_finite_chunk_is_played_dry_however_late(
    make_engine: Callable[..., Any], sound: np.ndarray, at: tuple[int, ...], dry: int
) -> None:
    sound = sound.copy()
    for number in at:
        sound[:, number * CHUNK + 5] = 3.0
    worker = Worker(make_engine(3e38), extra_chunks=6)
    FileLoop(worker, MeasuredClock(instant=True)).run(sound)
    assert worker.counters[Count.NOT_FINITE_OUT] == len(at)
    assert worker.counters[Count.SETTLING] == worker.counters[Count.DRY] == dry


def test_bypass_and_mix_fade(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    worker = Worker(make_engine(0.5), wet=0.25)
    loop = FileLoop(worker, MeasuredClock(instant=True))
    half = 8 * 1000 - 8000 % CHUNK
    first = loop.run(sound[:, :half])
    worker.buffer.mixer.bypass = True
    second = loop.run(sound[:, half:])
    mixed = 0.875 * late(sound)
    np.testing.assert_allclose(first[:, 2 * CHUNK :], mixed[:, 2 * CHUNK : half], atol=1e-6)
    np.testing.assert_array_equal(second[:, CHUNK:], late(sound)[:, half + CHUNK :])
    fade = np.arange(1, CHUNK + 1) / CHUNK
    expected = (1 - fade) * mixed[:, half : half + CHUNK] + fade * late(sound)[:, half : half + CHUNK]
    np.testing.assert_allclose(second[:, :CHUNK], expected, atol=1e-6)
    assert worker.counters[Count.DRY] == 0


def test_nothing_is_louder_than_the_limit_whatever_happens(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    trace = np.random.default_rng(2).choice([1.0, 9.0, 30.0, 150.0], 125, p=[0.9, 0.05, 0.04, 0.01]).tolist()
    worker = Worker(make_engine(50.0), max_backlog=6)
    out = FileLoop(worker, TraceClock(trace)).run(sound)
    assert worker.counters[Count.MISSES] > 5
    assert np.abs(out).max() <= np.abs(sound).max() * 10 ** (6 / 20) * (1 + 1e-6)
