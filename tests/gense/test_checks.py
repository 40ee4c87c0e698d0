"""What the quality checks of a generated chunk reject, and what they let pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from audio_llm.gense import measures
from audio_llm.gense.checks import TOKEN_REASONS, Evidence, Limits, longest_run, rejection_reasons, sound_evidence

RATE = 16_000
GOOD = Evidence(
    snr_db=5.0,
    level_distance=0.1,
    input_distance=0.2,
    confidence=-0.5,
    longest_run=0.1,
    tone_db=1.0,
    pitch_octaves=0.0,
    invented=0.0,
    lost=0.0,
)


def voice(pitch_hz: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return a voiced sound with pauses: bursts of harmonics that fall off."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    phases = np.random.default_rng(seed).uniform(0.0, 6.28, 20)
    sound = sum(np.sin(6.2832 * pitch_hz * n * time_s + phases[n - 1]) / n for n in range(1, 20))
    return (0.05 * sound * (np.sin(6.2832 * 2.0 * time_s) > -0.3)).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_a_good_chunk_is_not_rejected() -> None:
    assert rejection_reasons(GOOD, Limits()) == ()


@pytest.mark.parametrize(
    "name, value",
    [
        ("level_distance", 2.0),
        ("input_distance", 2.0),
        ("confidence", -9.0),
        ("longest_run", 1.0),
        ("tone_db", 30.0),
        ("pitch_octaves", 1.0),
        ("pitch_octaves", float("inf")),
        ("invented", 0.9),
        ("lost", 0.9),
    ],
)
def test_each_measure_rejects_by_itself(name: str, value: float) -> None:
    assert len(rejection_reasons(replace(GOOD, **{name: value}), Limits())) == 1


def test_what_cannot_be_measured_rejects_nothing() -> None:
    assert rejection_reasons(replace(GOOD, pitch_octaves=float("nan")), Limits()) == ()


def test_rejections_by_tokens_are_known_as_such() -> None:
    bad = replace(GOOD, input_distance=9.0, confidence=-9.0, longest_run=1.0)
    assert rejection_reasons(bad, Limits()) == TOKEN_REASONS


def test_a_report_is_plain_json() -> None:
    rounded = replace(GOOD, pitch_octaves=float("inf"), tone_db=float("nan")).rounded()
    assert rounded["pitch_octaves"] is None
    assert rounded["tone_db"] is None
    assert rounded["level_distance"] == 0.1


def test_a_sound_agrees_with_itself() -> None:
    result = sound_evidence(voice(150.0), voice(150.0))
    assert result == {"tone_db": 0.0, "pitch_octaves": 0.0, "invented": 0.0, "lost": 0.0}


def test_another_pitch_is_measured_in_octaves() -> None:
    result = sound_evidence(voice(220.0), voice(110.0))
    assert result["pitch_octaves"] == pytest.approx(1.0, abs=0.05)


def test_a_voice_that_is_gone_is_infinitely_far() -> None:
    speech = voice(150.0)
    assert sound_evidence(noise(len(speech)), speech)["pitch_octaves"] == float("inf")
    assert np.isnan(sound_evidence(speech, noise(len(speech)))["pitch_octaves"])


def test_invented_and_lost_speech_are_fractions() -> None:
    whole = voice(150.0, 2.0)
    half = whole.copy()
    half[RATE:] = 0.0
    assert sound_evidence(whole, half)["invented"] > 0.25
    assert sound_evidence(half, whole)["lost"] == pytest.approx(0.5, abs=0.1)
    assert sound_evidence(half, whole)["invented"] == 0.0


def test_a_steady_residue_is_no_speech() -> None:
    speech = voice(150.0, 2.0)
    residue = 0.1 * noise(len(speech))  # 20 dB below, all the time
    assert sound_evidence(speech, residue)["invented"] > 0.3
    assert sound_evidence(residue, residue)["invented"] == 0.0


@pytest.mark.parametrize("samples", [0, 100, 1000, 2000])
def test_the_shortest_sounds_have_evidence_too(samples: int) -> None:
    result = sound_evidence(noise(samples), noise(samples))
    assert result["invented"] == result["lost"] == 0.0


@pytest.mark.parametrize("pitch_hz", [80.0, 110.0, 150.0, 220.0, 300.0])
def test_pitch_is_not_a_fraction_of_itself(pitch_hz: float) -> None:
    assert measures.pitch_hz(voice(pitch_hz)) == pytest.approx(pitch_hz, rel=0.03)


def test_snr_is_retained_over_removed_power() -> None:
    speech = voice(150.0)
    noisy = speech + noise(len(speech)) * np.float32(np.sqrt(np.mean(speech**2)) / 0.05 / 10.0**0.5)
    assert measures.snr_db(noisy, speech) == pytest.approx(10.0, abs=0.3)


@pytest.mark.parametrize("tokens, fraction", [([], 0.0), ([3], 1.0), ([1, 1, 2, 1], 0.5), ([1, 2, 3, 4], 0.25)])
def test_longest_run(tokens: list[int], fraction: float) -> None:
    assert longest_run(np.array(tokens, dtype=np.int64)) == fraction
