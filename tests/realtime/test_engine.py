"""The engine: exact delay, state that is carried and reset, finite output, a limit of the level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from audio_llm_realtime.counters import Count, Counters
from audio_llm_realtime.errors import RealtimeError
from audio_llm_realtime.sanitize import Sanitizer

CHUNK, LOOKAHEAD = 128, 64


def chunks(sound: np.ndarray) -> list[np.ndarray]:
    return [sound[:, n : n + CHUNK] for n in range(0, sound.shape[1], CHUNK)]


def run(engine: Any, sound: np.ndarray) -> np.ndarray:
    return np.concatenate([engine.process(chunk) for chunk in chunks(sound)], axis=1)


def late(sound: np.ndarray) -> np.ndarray:
    return np.pad(sound, ((0, 0), (LOOKAHEAD, 0)))[:, : sound.shape[1]]


def test_sound_is_64_samples_late_to_the_bit(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    np.testing.assert_array_equal(run(make_engine(), sound), late(sound))


def test_ping_pong_equals_states_passed_by_hand(
    make_engine: Callable[..., Any], contract: Any, sound: np.ndarray
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(contract.stream.path, providers=["CPUExecutionProvider"])
    names = [port.name for port in contract.stream.outputs]
    states = {s.input.name: np.zeros(s.input.sizes, np.float32) for s in contract.stream.states}
    expected = []
    for chunk in chunks(sound):
        condition = {"enrolled": np.array([[0.5, 0.3, 0, 0]], np.float32)}
        output, *after = session.run(names, {"chunk": chunk[None], **condition, **states})
        expected.append(output[0])
        states = dict(zip(states, after, strict=True))
    np.testing.assert_array_equal(run(make_engine(0.5, 0.3), sound), np.concatenate(expected, axis=1))


def test_two_interleaved_engines_equal_two_alone(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    sounds = (sound, sound[:, ::-1].copy())
    alone = [run(make_engine(0.7, 0.2), one) for one in sounds]
    engines = [make_engine(0.7, 0.2) for _ in sounds]
    turns = [
        [e.process(c) for e, c in zip(engines, pair, strict=True)] for pair in zip(*map(chunks, sounds), strict=True)
    ]
    for number in (0, 1):
        np.testing.assert_array_equal(np.concatenate([turn[number] for turn in turns], axis=1), alone[number])


def test_reset_equals_fresh(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    fresh = run(make_engine(1.0, 0.4), sound)
    used = make_engine(1.0, 0.4)
    run(used, sound[:, ::-1].copy())
    used.reset()
    np.testing.assert_array_equal(run(used, sound), fresh)


def test_chunk_is_not_changed_and_result_is_kept(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    engine, chunk = make_engine(), sound[:, :CHUNK].copy()
    chunk[0, 3] = np.nan
    before = chunk.copy()
    first = engine.process(chunk)
    copied = first.copy()
    engine.process(sound[:, CHUNK : 2 * CHUNK])
    np.testing.assert_array_equal(chunk, before)
    np.testing.assert_array_equal(first, copied)


def test_non_finite_and_denormal_samples_count_as_zero(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    broken, clean = sound.copy(), sound.copy()
    for index, value in ((5, np.nan), (200, np.inf), (201, -np.inf)):
        broken[0, index], clean[0, index] = value, 0.0
    for index, bits in ((300, 0x00012345), (301, 0x80000001)):  # a processor may flush what is written as a number
        broken.view(np.uint32)[0, index], clean[0, index] = bits, 0.0
    engine = make_engine(1.0, 0.1)
    np.testing.assert_array_equal(run(engine, broken), run(make_engine(1.0, 0.1), clean))
    assert (engine.counters[Count.NOT_FINITE_IN], engine.counters[Count.DENORMAL_IN]) == (3, 2)


def test_peak_of_a_block_is_that_of_the_remaining_samples() -> None:
    counters = Counters()
    sanitizer = Sanitizer(2, 8, counters)
    block = np.array([[0.25, -0.5, np.inf], [0.0, np.nan, 0.125]], np.float32)
    assert sanitizer.sanitize(block) == 0.5
    np.testing.assert_array_equal(block, [[0.25, -0.5, 0.0], [0.0, 0.0, 0.125]])
    tiny = np.zeros((2, 4), np.float32)
    tiny.view(np.uint32)[1, 2] = 7
    assert sanitizer.sanitize(tiny) == 0.0
    assert not tiny.view(np.uint32).any()
    assert sanitizer.sanitize(tiny[:, :0]) == 0.0
    assert (counters[Count.NOT_FINITE_IN], counters[Count.DENORMAL_IN]) == (2, 1)


def test_network_with_non_finite_output_is_reset_and_the_dry_signal_is_returned(
    make_engine: Callable[..., Any], sound: np.ndarray
) -> None:
    engine = make_engine(3e38)
    loud = np.full((2, CHUNK), 2.0, np.float32)
    out = [engine.process(chunk) for chunk in (0 * loud, loud, loud)]
    assert engine.counters[Count.NOT_FINITE_OUT] == 2
    assert engine.failed
    np.testing.assert_array_equal(out[1], late(np.concatenate([0 * loud, loud], axis=1))[:, CHUNK:])
    np.testing.assert_array_equal(out[2], loud)
    np.testing.assert_array_equal(engine.process(0 * loud)[:, :LOOKAHEAD], 0 * loud[:, :LOOKAHEAD])  # tail was reset
    assert not engine.failed


def test_output_is_never_louder_than_the_limit(make_engine: Callable[..., Any], sound: np.ndarray) -> None:
    engine = make_engine(100.0, 0.0, limit_db=6.0)
    sound = sound * np.linspace(1.0, 0.0, sound.shape[1], dtype=np.float32)
    out = run(engine, sound)
    assert np.abs(out).max() <= np.abs(sound).max() * 10 ** (6 / 20) * (1 + 1e-6)
    assert engine.counters[Count.LIMITED] > 100
    quiet = make_engine(1.9)
    np.testing.assert_array_equal(run(quiet, sound), np.float32(1.9) * late(sound))
    assert quiet.counters[Count.LIMITED] == 0


def test_limit_forgets_peaks_after_a_second(make_engine: Callable[..., Any]) -> None:
    engine = make_engine(100.0, limit_db=0.0)
    engine.process(np.ones((2, CHUNK), np.float32))
    for _ in range(125):
        out = engine.process(np.full((2, CHUNK), 0.01, np.float32))
    assert out.max() == np.float32(0.01)


def test_another_speaker_fades_in_over_one_chunk_and_the_state_continues(
    make_engine: Callable[..., Any], sound: np.ndarray
) -> None:
    engine = make_engine(1.0, 0.3)
    before = run(engine, sound[:, : 4 * CHUNK])
    engine.set_conditions(np.array([[0.25, 0.3, 0, 0]], np.float32))
    after = run(engine, sound[:, 4 * CHUNK :])
    one, other = run(make_engine(1.0, 0.3), sound), run(make_engine(0.25, 0.3), sound)
    np.testing.assert_array_equal(before, one[:, : 4 * CHUNK])
    ramp = np.arange(1, CHUNK + 1) / CHUNK
    fade = slice(4 * CHUNK, 5 * CHUNK)
    np.testing.assert_allclose(after[:, :CHUNK], (1 - ramp) * one[:, fade] + ramp * other[:, fade], atol=1e-6)
    np.testing.assert_array_equal(after[:, CHUNK:], other[:, 5 * CHUNK :])


@pytest.mark.parametrize("vector", [[1.0, 0, 0], [[[1.0, 0, 0, 0]]], [1.0, np.nan, 0, 0]])
def test_conditions_of_another_form_are_refused(make_engine: Callable[..., Any], vector: list[Any]) -> None:
    with pytest.raises(RealtimeError, match="'enrolled'"):
        make_engine().set_conditions(np.array(vector, np.float32))


def test_chunk_of_another_size_is_refused(make_engine: Callable[..., Any]) -> None:
    with pytest.raises(RealtimeError, match=r"\(2, 128\), not \(2, 64\)"):
        make_engine().process(np.zeros((2, 64), np.float32))
