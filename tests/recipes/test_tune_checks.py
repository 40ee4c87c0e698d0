"""The limits of the quality checks, tuned on rows whose limits are known."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from audio_llm.gense.checks import Limits
from audio_llm.lm.sampling import GREEDY, MEDIAN

BETTER = ("pesq_wb", "stoi", "estoi", "si_sdr_db", "sig", "bak", "ovrl")


@pytest.fixture
def tune_checks(recipe_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return recipe_module("gense", "tune_checks")


def rows(gain: float = 0.5) -> list[dict[str, Any]]:
    """A hundred stretches, 0 to 19.8 dB, half of them nearer to the clean speech than the noisy ones."""
    stretches = []
    for number in range(100):
        snr_db, good = 0.2 * number, number % 2 == 0
        evidence = dict.fromkeys(("longest_run", "tone_db"), number / 100.0)
        evidence |= dict.fromkeys(("pitch_octaves", "invented", "lost"), number / 1000.0)
        evidence |= {"level_distance": number / 200.0, "input_distance": 0.4 + number / 100.0}
        evidence |= {"snr_db": snr_db, "confidence": -2.0 - number / 100.0}
        figures = {name: dict.fromkeys(BETTER, 1.0) | {"token_distance": 0.6} for name in ("noisy", "mask")}
        spoken = dict.fromkeys(BETTER, 1.0 + gain) | {"token_distance": 0.5 if good else 0.7}
        stretches.append({"snr_db": snr_db, "own": evidence, "other": 1.2, "spoken": spoken, **figures})
    return stretches


def tuned_on(tune_checks: ModuleType, evidence_rows: list[dict[str, Any]], clean_db: list[float]) -> Any:
    return tune_checks.tune(tune_checks.Arm("noisy", MEDIAN, GREEDY, 0.25), evidence_rows, clean_db)


def test_limits_let_nearly_all_good_stretches_pass_and_no_other_words(tune_checks: ModuleType) -> None:
    tuned = tuned_on(tune_checks, [{**row, "other": 0.8} for row in rows()], [25.0, 14.0])
    assert tuned.limits.level_distance == pytest.approx(0.47)  # of 0, 0.01 .. 0.49, the 48th
    assert tuned.limits.tone_db == pytest.approx(0.94)
    assert tuned.limits.pitch_octaves == pytest.approx(0.094)
    assert tuned.limits.input_distance == pytest.approx(0.9 * 0.8)  # not 0.9, which other words would pass as well
    assert tuned.limits.good_db == pytest.approx(14.55)  # which 95 of 100 clean stretches reach
    assert tuned.limits.least_confidence == pytest.approx(-2.931, abs=0.001)


def test_the_arm_with_tokens_nearest_to_the_clean_speech_is_chosen(tune_checks: ModuleType) -> None:
    worse = [{**row, "spoken": {**row["spoken"], "token_distance": 0.9}} for row in rows()]
    assert tune_checks.best_arm({"noisy": worse, "masked": rows()}) == "masked"
    assert tune_checks.best_arm({"noisy": rows(), "masked": worse}) == "noisy"
    tuned = tuned_on(tune_checks, rows(), [10.0])
    assert (tuned.chain.acoustic, tuned.semantic_sampling, tuned.sampling) == ("noisy", MEDIAN, GREEDY)
    assert tuned.copy_weight == 0.25


def test_limits_of_voices_are_never_wider_than_the_defaults(tune_checks: ModuleType) -> None:
    an_octave_off = [{**row, "own": {**row["own"], "pitch_octaves": 1.0, "tone_db": 20.0}} for row in rows()]
    tuned = tuned_on(tune_checks, an_octave_off, [10.0])
    assert (tuned.limits.pitch_octaves, tuned.limits.tone_db) == (Limits().pitch_octaves, Limits().tone_db)


def test_bypassed_stretches_do_not_raise_the_threshold_of_balanced(tune_checks: ModuleType) -> None:
    worse_low = [{**row, "spoken": {**row["spoken"], "estoi": 0.5 if row["snr_db"] < 10.0 else 9.0}} for row in rows()]
    tuned = tuned_on(tune_checks, worse_low, [10.0])
    assert tuned.limits.good_db == 10.0
    assert tuned.balanced_below_db is None


def test_balanced_generates_only_where_no_measure_is_worse(tune_checks: ModuleType) -> None:
    assert tuned_on(tune_checks, rows(gain=0.5), [10.0]).balanced_below_db == 20.0
    one_is_worse = [{**row, "spoken": {**row["spoken"], "si_sdr_db": 0.9}} for row in rows()]
    assert tuned_on(tune_checks, one_is_worse, [10.0]).balanced_below_db is None
    only_low = [{**row, "spoken": {**row["spoken"], "estoi": 0.0 if row["snr_db"] >= 5.0 else 1.5}} for row in rows()]
    assert tuned_on(tune_checks, only_low, [10.0]).balanced_below_db == 5.0


def test_a_pitch_that_is_missing_or_cannot_be_measured_is_no_limit(tune_checks: ModuleType) -> None:
    stretches = rows()
    stretches[0]["own"]["pitch_octaves"], stretches[2]["own"]["pitch_octaves"] = np.inf, np.nan
    assert np.isfinite(tuned_on(tune_checks, stretches, [10.0]).limits.pitch_octaves)


def test_with_too_few_good_stretches_the_defaults_stay(
    tune_checks: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [row for row in rows() if row["spoken"]["token_distance"] > 0.6] + rows()[:4]
    tuned = tuned_on(tune_checks, bad, [10.0])
    assert "only 2 of 54 segments are good" in caplog.text
    assert tuned.limits.tone_db == Limits().tone_db
    assert tuned.limits.level_distance == Limits().level_distance
    assert tuned.limits.good_db == 10.0
