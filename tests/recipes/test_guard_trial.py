"""The guards' limits, found in rows of which it is known what must come out."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from audio_llm.gense.guards import Limits
from audio_llm.lm.sampling import GREEDY, MEDIAN

BETTER = ("pesq_wb", "stoi", "estoi", "si_sdr_db", "sig", "bak", "ovrl")


@pytest.fixture
def trial(recipe_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return recipe_module("gense", "trial")


def rows(gain: float = 0.5) -> list[dict[str, Any]]:
    """A hundred stretches, 0 to 19.8 dB, half of them nearer to the clean speech than the noisy ones."""
    found = []
    for number in range(100):
        snr_db, good = 0.2 * number, number % 2 == 0
        evidence = dict.fromkeys(("longest_run", "tone_db"), number / 100.0)
        evidence |= dict.fromkeys(("pitch_octaves", "invented", "lost"), number / 1000.0)
        evidence |= {"level_distance": number / 200.0, "input_distance": 0.4 + number / 100.0}
        evidence |= {"snr_db": snr_db, "confidence": -2.0 - number / 100.0}
        figures = {name: dict.fromkeys(BETTER, 1.0) | {"token_distance": 0.6} for name in ("noisy", "mask")}
        spoken = dict.fromkeys(BETTER, 1.0 + gain) | {"token_distance": 0.5 if good else 0.7}
        found.append({"snr_db": snr_db, "own": evidence, "other": 1.2, "spoken": spoken, **figures})
    return found


def found_in(trial: ModuleType, own: list[dict[str, Any]], clean_db: list[float]) -> Any:
    return trial.find(trial.Arm("noisy", MEDIAN, GREEDY, 0.25), own, clean_db)


def test_limits_let_nearly_all_good_stretches_pass_and_no_other_words(trial: ModuleType) -> None:
    found = found_in(trial, [{**row, "other": 0.8} for row in rows()], [25.0, 14.0])
    assert found.limits.level_distance == pytest.approx(0.47)  # of 0, 0.01 .. 0.49, the 48th
    assert found.limits.tone_db == pytest.approx(0.94)
    assert found.limits.pitch_octaves == pytest.approx(0.094)
    assert found.limits.input_distance == pytest.approx(0.9 * 0.8)  # not 0.9, which other words would pass as well
    assert found.limits.good_db == pytest.approx(14.55)  # which 95 of 100 clean stretches reach
    assert found.limits.least_confidence == pytest.approx(-2.931, abs=0.001)


def test_what_nears_the_clean_speech_is_told(trial: ModuleType) -> None:
    worse = [{**row, "spoken": {**row["spoken"], "token_distance": 0.9}} for row in rows()]
    assert trial.choose({"noisy": worse, "masked": rows()}) == "masked"
    assert trial.choose({"noisy": rows(), "masked": worse}) == "noisy"
    found = found_in(trial, rows(), [10.0])
    assert (found.chain.acoustic, found.semantic_sampling, found.sampling) == ("noisy", MEDIAN, GREEDY)
    assert found.heard_share == 0.25


def test_limits_of_voices_are_never_wider_than_the_defaults(trial: ModuleType) -> None:
    an_octave_off = [{**row, "own": {**row["own"], "pitch_octaves": 1.0, "tone_db": 20.0}} for row in rows()]
    found = found_in(trial, an_octave_off, [10.0])
    assert (found.limits.pitch_octaves, found.limits.tone_db) == (Limits().pitch_octaves, Limits().tone_db)


def test_what_is_left_as_it_is_does_not_make_balanced_speak(trial: ModuleType) -> None:
    worse_low = [{**row, "spoken": {**row["spoken"], "estoi": 0.5 if row["snr_db"] < 10.0 else 9.0}} for row in rows()]
    found = found_in(trial, worse_low, [10.0])
    assert found.limits.good_db == 10.0
    assert found.balanced_below_db is None


def test_balanced_speaks_only_where_no_measure_is_worse(trial: ModuleType) -> None:
    assert found_in(trial, rows(gain=0.5), [10.0]).balanced_below_db == 20.0
    one_is_worse = [{**row, "spoken": {**row["spoken"], "si_sdr_db": 0.9}} for row in rows()]
    assert found_in(trial, one_is_worse, [10.0]).balanced_below_db is None
    only_low = [{**row, "spoken": {**row["spoken"], "estoi": 0.0 if row["snr_db"] >= 5.0 else 1.5}} for row in rows()]
    assert found_in(trial, only_low, [10.0]).balanced_below_db == 5.0


def test_a_pitch_that_is_gone_or_cannot_be_told_is_no_limit(trial: ModuleType) -> None:
    own = rows()
    own[0]["own"]["pitch_octaves"], own[2]["own"]["pitch_octaves"] = np.inf, np.nan
    assert np.isfinite(found_in(trial, own, [10.0]).limits.pitch_octaves)


def test_with_too_few_good_stretches_the_defaults_stay(trial: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    bad = [row for row in rows() if row["spoken"]["token_distance"] > 0.6] + rows()[:4]
    found = found_in(trial, bad, [10.0])
    assert "only 2 of 54 stretches are good" in caplog.text
    assert found.limits.tone_db == Limits().tone_db
    assert found.limits.level_distance == Limits().level_distance
    assert found.limits.good_db == 10.0
