"""Tests of pocketsphinx's own n-gram model."""

from __future__ import annotations

from audio_llm.lm.pocketsphinx_lm import PocketsphinxLm


def test_likely_words_in_a_likely_order_are_preferred() -> None:
    lm = PocketsphinxLm()
    likely, unlikely, unknown = (text.split() for text in ("the cat sat", "sat the cat", "the zzxq sat"))
    logs = lm.log_probs([likely, unlikely, unknown])
    assert logs[0] > logs[1] > logs[2]
    assert -60 < logs[2] < -20
    assert lm.log_prob([]) > logs[0]
