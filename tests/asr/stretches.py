"""What holds of the stretches of every recording."""

from __future__ import annotations

from collections.abc import Sequence

from audio_llm.asr.base import Stretch


def assert_times(stretches: Sequence[Stretch], duration_s: float) -> None:
    """Fail where stretches or their words are out of order, have no length, or lie outside of the recording."""
    before_s = word_s = 0.0
    for stretch in stretches:
        assert before_s <= stretch.start_s < stretch.end_s <= duration_s
        before_s = stretch.end_s
        for word in stretch.nbest.words:
            assert word_s <= word.start_s + 1e-9
            assert stretch.start_s <= word.start_s < word.end_s <= stretch.end_s
            word_s = word.end_s
