"""Hard sound from clean sound: exact ratios and levels, nothing shifted, everything repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from audio_llm.simulation import mono

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0, level: float = 0.2) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def hiss(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def power_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(waveform.astype(np.float64) ** 2)))


def main_frequency(waveform: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform * np.hanning(waveform.size))).argmax() * RATE / waveform.size)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.3, 40.0])
@pytest.mark.parametrize("noise_samples", [RATE // 3, RATE, 5 * RATE], ids=["shorter", "equal", "longer"])
def test_the_snr_is_exact(snr_db: float, noise_samples: int) -> None:
    clean = tone(440)
    rng = np.random.default_rng(1)
    envelope = np.linspace(0.0, 1.0, noise_samples) * rng.uniform(0.5, 1.5)  # a part of it is quieter than the whole
    noise = (hiss(noise_samples, 2) * envelope).astype(np.float32)
    noisy = mono.add_noise(clean, noise, snr_db)
    assert noisy.dtype == np.float32
    assert noisy.shape == clean.shape
    assert power_db(clean) - power_db(noisy.astype(np.float64) - clean) == pytest.approx(snr_db, abs=0.01)


def test_noise_leaves_silence_and_its_inputs_alone() -> None:
    silence, clean, noise = np.zeros(100, np.float32), tone(440), hiss(100)
    assert not mono.add_noise(silence, noise, 10.0).any()
    assert mono.add_noise(np.zeros(0, np.float32), noise, 10.0).size == 0
    assert np.array_equal(mono.add_noise(clean, np.zeros(100, np.float32), 10.0), clean)
    assert np.array_equal(mono.add_noise(clean, np.zeros(0, np.float32), 10.0), clean)
    mono.add_noise(clean, noise, 10.0)
    assert np.array_equal(clean, tone(440))
    assert np.array_equal(noise, hiss(100))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colored_noise_has_unit_power_and_its_slope(exponent: float) -> None:
    noise = mono.colored_noise(8 * RATE, np.random.default_rng(3), exponent)
    assert noise.dtype == np.float32
    assert power_db(noise) == pytest.approx(0.0, abs=0.01)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(noise.size, 1 / RATE)
    low, high = ((frequencies >= edge) & (frequencies < 2 * edge) for edge in (250.0, 2000.0))
    slope_db = 10 * np.log10(spectrum[low].mean() / spectrum[high].mean())
    assert slope_db == pytest.approx(exponent * 10 * np.log10(8), abs=0.5)  # eight times the frequency


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_colored_noise_of_very_few_samples(samples: int) -> None:
    noise = mono.colored_noise(samples, np.random.default_rng(0), 1.0)
    assert noise.shape == (samples,)
    assert np.isfinite(noise).all()


def test_a_room_keeps_length_and_position() -> None:
    click = np.zeros(RATE, np.float32)
    click[1000] = 0.5
    wet = mono.add_room(click, np.random.default_rng(4), 0.4, 3.0)
    assert wet.dtype == np.float32
    assert wet.shape == click.shape
    assert wet[1000] == pytest.approx(0.5, abs=1e-6)
    assert np.abs(wet[:1000]).max() < 1e-6
    assert np.abs(wet[1001:1048]).max() < 1e-6  # nothing before the first reflection
    tail = wet[1001:].astype(np.float64)
    assert 10 * np.log10(0.25 / np.sum(tail**2)) == pytest.approx(3.0, abs=0.01)


def test_a_room_dies_away_as_asked() -> None:
    click = np.zeros(2 * RATE, np.float32)
    click[0] = 1.0
    for rt60_s in (0.3, 0.8):
        wet = mono.add_room(click, np.random.default_rng(5), rt60_s, 0.0).astype(np.float64)
        early, late = (
            slice(round(share * rt60_s * RATE), round((share + 0.2) * rt60_s * RATE)) for share in (0.2, 0.6)
        )
        drop_db = 10 * np.log10(np.sum(wet[early] ** 2) / np.sum(wet[late] ** 2))
        assert drop_db == pytest.approx(60 * 0.4, abs=1.5)


def test_no_room_changes_nothing() -> None:
    clean = tone(440)
    assert np.array_equal(mono.add_room(clean, np.random.default_rng(0), 0.0, 3.0), clean)
    assert not mono.add_room(np.zeros(RATE, np.float32), np.random.default_rng(0), 0.3, 3.0).any()
    assert mono.add_room(np.zeros(0, np.float32), np.random.default_rng(0), 0.3, 3.0).size == 0
    short = mono.add_room(clean, np.random.default_rng(0), 0.001, 3.0)
    assert np.allclose(short, clean, atol=1e-6)


@pytest.mark.parametrize("level_db", [-40.0, -23.0, -12.5])
def test_the_level_is_as_asked(level_db: float) -> None:
    scaled = mono.set_level(hiss(RATE, level=0.03), level_db)
    assert scaled.dtype == np.float32
    assert power_db(scaled) == pytest.approx(level_db, abs=0.01)


def test_the_level_stops_short_of_clipping() -> None:
    clicks = hiss(RATE, level=0.01)
    clicks[500] = -0.8
    loud = mono.set_level(clicks, -6.0)
    assert np.abs(loud).max() == pytest.approx(0.99, abs=1e-6)
    assert np.allclose(loud / loud[500], clicks / clicks[500], atol=1e-6)


def test_silence_has_no_level() -> None:
    assert not mono.set_level(np.zeros(100, np.float32), -20.0).any()
    assert mono.set_level(np.zeros(0, np.float32), -20.0).size == 0


@pytest.mark.parametrize("factor", [0.85, 0.97, 1.1, 1.2])
def test_a_shifted_voice_is_shorter_and_higher_by_the_factor(factor: float) -> None:
    shifted = mono.shift_voice(tone(500, 2.0), factor)
    assert shifted.dtype == np.float32
    assert shifted.size == pytest.approx(2 * RATE / factor, abs=2)
    assert main_frequency(shifted) == pytest.approx(500 * factor, abs=1.0)


def test_a_voice_shifted_by_nothing_stays() -> None:
    clean = tone(440)
    assert np.array_equal(mono.shift_voice(clean, 1.0), clean)
    assert mono.shift_voice(np.zeros(0, np.float32), 1.1).size == 0
    assert not mono.shift_voice(np.zeros(RATE, np.float32), 1.1).any()


def test_the_generator_alone_decides() -> None:
    clean = tone(440)

    def noise(seed: int) -> np.ndarray:
        return mono.colored_noise(RATE, np.random.default_rng(seed), 1.0)

    def room(seed: int) -> np.ndarray:
        return mono.add_room(clean, np.random.default_rng(seed), 0.3, 3.0)

    for make in (noise, room):
        np.random.seed(0)
        first = make(7)
        np.random.seed(1)
        assert np.array_equal(make(7), first)
        assert not np.array_equal(make(8), first)


@pytest.mark.parametrize("margin_s", [0.0, 0.06, 0.1, 0.5, 3.0])
def test_trimming_leaves_a_margin(margin_s: float) -> None:
    quiet = np.full(RATE, 1e-5, np.float32)
    waveform = np.concatenate([quiet, tone(300, 0.5), quiet])
    trimmed = mono.trim_silence(waveform, margin_s=margin_s)
    left = min(RATE, round(margin_s * RATE))
    assert trimmed.size == 8000 + 2 * left
    np.testing.assert_array_equal(trimmed, waveform[RATE - left : RATE + 8000 + left])


def test_a_margin_is_no_longer_than_the_silence_there_is() -> None:
    waveform = np.concatenate([np.zeros(640, np.float32), tone(300, 0.5), np.zeros(320, np.float32)])
    np.testing.assert_array_equal(mono.trim_silence(waveform, margin_s=0.1), waveform)
    assert mono.trim_silence(np.zeros(RATE, np.float32), margin_s=0.1).size == 0
    assert mono.trim_silence(waveform[:0], margin_s=0.1).size == 0


def test_pauses_inside_are_shortened_whatever_the_margin() -> None:
    waveform = np.concatenate([tone(300, 0.5), np.zeros(2 * RATE, np.float32), tone(300, 0.5)])
    sizes = {mono.trim_silence(waveform, pause_s=0.4, margin_s=margin).size for margin in (0.0, 0.06, 1.0)}
    assert sizes == {RATE + round(0.4 * RATE)}


@pytest.mark.parametrize("samples", [1, 319, 320, 640, 3200, 5120, 5439, 5440, 6000])
def test_short_sounds_are_trimmed_too(samples: int) -> None:

    waveform = tone(300, samples / RATE)[:samples]
    trimmed = mono.trim_silence(waveform, margin_s=0.06)
    np.testing.assert_array_equal(trimmed, waveform[: samples // 320 * 320])
