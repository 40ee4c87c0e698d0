"""The ring: frames keep their positions around the end, and a reader learns what is not stored."""

from __future__ import annotations

import numpy as np
import pytest
from audio_llm_realtime.ring import Ring


def frames(begin: int, end: int) -> np.ndarray:
    return np.stack([np.arange(begin, end), -np.arange(begin, end)]).astype(np.float32)


def test_frames_come_back_around_the_end() -> None:
    ring, generator = Ring(2, 100), np.random.default_rng(0)
    read = 0
    while ring.written < 2000:
        ring.write(frames(ring.written, ring.written + int(generator.integers(0, 40))))
        length = int(generator.integers(0, 40))
        out = np.zeros((2, length), np.float32)
        if ring.read(read, out):
            np.testing.assert_array_equal(out, frames(read, read + length))
            read += length
        read = max(read, ring.written - 60)
    assert read > 1900


def test_reader_learns_what_is_not_written_yet_or_overwritten() -> None:
    ring, out = Ring(2, 10), np.zeros((2, 4), np.float32)
    ring.write(frames(0, 6))
    assert not ring.read(3, out)
    assert ring.read(2, out)
    ring.write(frames(6, 13))
    assert not ring.read(2, out)
    assert ring.read(3, out)
    np.testing.assert_array_equal(out, frames(3, 7))


def test_before_the_first_frame_there_is_silence() -> None:
    ring, out = Ring(2, 10), np.ones((2, 4), np.float32)
    ring.write(frames(1, 3))
    assert ring.read(-2, out)
    np.testing.assert_array_equal(out[0], [0, 0, 1, 2])


def test_jump_keeps_positions() -> None:
    ring, out = Ring(2, 10), np.zeros((2, 3), np.float32)
    ring.write(frames(0, 3))
    ring.jump(105)
    ring.write(frames(105, 108))
    assert ring.written == 108
    assert ring.read(105, out)
    np.testing.assert_array_equal(out, frames(105, 108))
    assert not ring.read(0, out)


@pytest.mark.parametrize("length", [0, 10])
def test_block_of_nothing_and_of_everything(length: int) -> None:
    ring, out = Ring(2, 10), np.zeros((2, length), np.float32)
    ring.write(frames(0, 7))
    ring.write(frames(7, 7 + length))
    assert ring.read(7, out)
    np.testing.assert_array_equal(out, frames(7, 7 + length))
