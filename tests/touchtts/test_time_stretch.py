"""Speech faster and slower."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.touchtts.time_stretch import TimeStretch


@given(st.floats(0.5, 2.0), st.lists(st.integers(0, 7), min_size=1, max_size=12))
def test_chunks_equal_the_whole(speed: float, sizes: list[int]) -> None:
    mel = torch.randn(1, sum(sizes), 3, generator=torch.Generator().manual_seed(0))
    stretcher = TimeStretch(speed)
    pieces = torch.cat([stretcher.step(piece) for piece in mel.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(pieces, TimeStretch(speed).step(mel))


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_a_line_stays_a_line(speed: float) -> None:
    line = torch.arange(40.0)[None, :, None]
    output = TimeStretch(speed).step(line)[0, :, 0]
    torch.testing.assert_close(output, torch.arange(len(output)) * speed)
    assert 39.0 - speed < float(output[-1]) <= 39.0


def test_speed_1_changes_nothing() -> None:
    mel = torch.randn(1, 9, 80)
    assert torch.equal(TimeStretch(1.0).step(mel), mel)
