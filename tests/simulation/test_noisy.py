"""Pairs of noisy and clean speech: aligned, as loud and as noisy as drawn, and the same again for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audio_llm.simulation import mono
from audio_llm.simulation.noisy import NoisyConfig, NoisyPair, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack, Utterance, write_speech_pack

RATE = 16_000
PLAIN = NoisyConfig(
    seconds=1.0, voice_shift=(1.0, 1.0), clean_prob=0.0, silent_prob=0.0, room_prob=0.0, narrow_prob=0.0,
    clipped_prob=0.0,
)  # fmt: skip
CLEAN = replace(PLAIN, clean_prob=1.0)


@pytest.fixture(scope="module")
def pack(speech_pack: Path) -> SpeechPack:
    return SpeechPack(speech_pack)


def pairs(pack: SpeechPack, config: NoisyConfig, count: int = 12) -> list[NoisyPair]:
    speech = NoisySpeech(pack, config)
    return [speech.pair(seed) for seed in range(count)]


def power_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(waveform.astype(np.float64) ** 2) + 1e-30))


def above_db(waveform: np.ndarray, hertz: float) -> float:
    """Return the fraction of the energy above a frequency, in dB."""
    spectrum = np.abs(np.fft.rfft(waveform.astype(np.float64))) ** 2
    return float(
        10 * np.log10(spectrum[np.fft.rfftfreq(waveform.size, 1 / RATE) > hertz].sum() / spectrum.sum() + 1e-30)
    )


def lag(one: np.ndarray, other: np.ndarray) -> int:
    """Return by how many samples one is later than the other, where they are most alike."""
    size = 2 * len(one)
    correlation = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)))
    position = int(np.abs(correlation).argmax())
    return position if position < len(one) else position - size


def test_the_same_seed_gives_the_same_pair(pack: SpeechPack) -> None:
    config = NoisyConfig(seconds=1.0)
    ones, others = pairs(pack, config, 8), pairs(pack, config, 8)
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one.noisy, other.noisy)
        np.testing.assert_array_equal(one.clean, other.clean)
        assert (one.snr_db, one.cutoff_hz) == (other.snr_db, other.cutoff_hz)
    assert len({pair.noisy.tobytes() for pair in ones}) == 8
    late = NoisySpeech(pack, config).pair(5)  # whatever was drawn before
    np.testing.assert_array_equal(late.noisy, ones[5].noisy)


@pytest.mark.parametrize("seconds", [0.25, 0.70003, 3.0])
def test_lengths_are_exact_and_nothing_is_too_loud(pack: SpeechPack, seconds: float) -> None:
    usual = NoisyConfig(seconds=seconds, room_prob=0.5, clipped_prob=0.2)
    loud = replace(usual, level_db=(0.0, 0.0))
    for number, pair in enumerate(pairs(pack, usual, 16) + pairs(pack, loud, 16)):
        assert pair.noisy.shape == pair.clean.shape == (round(seconds * RATE),)
        assert pair.noisy.dtype == pair.clean.dtype == np.float32
        assert np.isfinite(pair.noisy).all()
        assert np.isfinite(pair.clean).all()
        assert np.abs(pair.noisy).max() <= 1.0
        assert number >= 16 or np.abs(pair.clean).max() <= 1.0


@pytest.mark.parametrize("snr_db", [-5.0, 3.0, 20.0])
@pytest.mark.parametrize(
    "noise",
    [
        {"colored_prob": 1.0, "babble_prob": 0.0},
        {"colored_prob": 0.0, "babble_prob": 0.0},
        {"babble_prob": 1.0},
        {"burst_prob": 1.0, "second_noise_prob": 1.0},
    ],
    ids=["coloured", "recorded", "babble", "bursts"],
)
def test_the_snr_of_active_speech_is_as_drawn(pack: SpeechPack, snr_db: float, noise: dict[str, float]) -> None:
    config = replace(PLAIN, snr_db=(snr_db, snr_db), **noise)
    for pair in pairs(pack, config, 5):
        assert pair.snr_db == pytest.approx(snr_db)
        ratio = mono.active_power(pair.clean) / np.mean(np.square(pair.noisy.astype(np.float64) - pair.clean))
        assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=1.0)


def test_snrs_are_drawn_from_their_range(pack: SpeechPack) -> None:
    measured = [pair.snr_db for pair in pairs(pack, replace(PLAIN, seconds=0.2, snr_db=(0.0, 10.0)), 40)]
    assert min(measured) >= 0.0
    assert max(measured) <= 10.0
    assert max(measured) - min(measured) > 7.0


def test_without_speech_the_clean_side_is_silent(pack: SpeechPack) -> None:
    for pair in pairs(pack, replace(PLAIN, silent_prob=1.0)):
        assert not pair.clean.any()
        assert pair.snr_db == -np.inf
        assert power_db(pair.noisy) > -50.0


def test_without_noise_both_sides_are_one(pack: SpeechPack) -> None:
    for pair in pairs(pack, CLEAN):
        np.testing.assert_array_equal(pair.noisy, pair.clean)
        assert pair.snr_db == np.inf
        assert power_db(pair.noisy) > -50.0


def test_fractions_are_as_configured(pack: SpeechPack) -> None:
    config = replace(PLAIN, seconds=0.1, clean_prob=0.3, silent_prob=0.2)
    measured = [pair.snr_db for pair in pairs(pack, config, 300)]
    assert np.mean(np.isposinf(measured)) == pytest.approx(0.3, abs=0.08)
    assert np.mean(np.isneginf(measured)) == pytest.approx(0.2, abs=0.07)


def test_levels_are_as_drawn(pack: SpeechPack) -> None:
    for level_db in (-40.0, -25.0):
        for pair in pairs(pack, replace(PLAIN, level_db=(level_db, level_db)), 4):
            assert power_db(pair.noisy) == pytest.approx(level_db, abs=0.1)
    loud = pairs(pack, replace(PLAIN, level_db=(0.0, 0.0)), 4)
    assert all(np.abs(pair.noisy).max() == pytest.approx(0.99, abs=1e-3) for pair in loud)


@pytest.mark.parametrize("early_s", [0.0, 0.05])
def test_in_a_room_both_sides_are_aligned(tmp_path: Path, early_s: float) -> None:
    whisper = 0.1 * np.random.default_rng(0).standard_normal(20_000)  # has no period to be mistaken for a delay
    write_speech_pack(tmp_path, [Utterance("w", "w", "made", "", 8000, 40.0, whisper)], [np.ones(9000, np.int16)])
    pack = SpeechPack(tmp_path)
    config = replace(CLEAN, room_prob=1.0, early_s=early_s, rt60_s=(0.3, 0.6), direct_to_reverb_db=(2.0, 6.0))
    for pair in pairs(pack, config, 8):
        assert lag(pair.noisy, pair.clean) == 0
        assert not np.allclose(pair.noisy, pair.clean, atol=1e-3)
    noisy = replace(config, clean_prob=0.0, snr_db=(10.0, 10.0))
    assert [lag(pair.noisy, pair.clean) for pair in pairs(pack, noisy, 4)] == [0] * 4


def test_late_reflections_are_missing_in_the_clean_side(pack: SpeechPack) -> None:
    room = replace(CLEAN, room_prob=1.0, rt60_s=(0.5, 0.5), direct_to_reverb_db=(3.0, 3.0))
    for seed in range(4):
        dry, early, all_of_it = (
            NoisySpeech(pack, replace(room, early_s=early_s)).pair(seed) for early_s in (0.0, 0.05, 0.5)
        )
        np.testing.assert_array_equal(dry.noisy, early.noisy)
        np.testing.assert_allclose(all_of_it.clean, all_of_it.noisy, atol=1e-5)
        late = [power_db(pair.noisy - pair.clean) for pair in (dry, early, all_of_it)]
        assert late[0] > late[1] > late[2] + 20.0
        # the dry side is the speech without any room
        alone = NoisySpeech(pack, replace(CLEAN, room_prob=0.0)).pair(seed).clean
        assert abs(np.corrcoef(dry.clean, alone)[0, 1]) > 0.999


def test_there_is_no_energy_above_the_cutoff(pack: SpeechPack) -> None:
    config = replace(PLAIN, narrow_prob=1.0, cutoff_hz=(3000.0, 7000.0), colored_prob=1.0, babble_prob=0.0)
    narrow = pairs(pack, config, 12)
    for pair in narrow:
        assert 3000.0 <= pair.cutoff_hz <= 7000.0
        assert above_db(pair.noisy, 1.1 * pair.cutoff_hz) < -40.0
        assert above_db(pair.clean, 1.1 * pair.cutoff_hz) < -40.0
    assert len({pair.cutoff_hz for pair in narrow}) == 12
    for pair, wide in zip(narrow, pairs(pack, replace(config, narrow_prob=0.0), 12), strict=True):
        assert wide.cutoff_hz == 8000.0
        passband = np.fft.rfftfreq(pair.noisy.size, 1 / RATE) <= pair.cutoff_hz  # only the level is changed there
        one, other = (np.fft.rfft(sound)[passband] for sound in (pair.noisy, wide.noisy))
        gain = np.vdot(other, one) / np.vdot(other, other)
        np.testing.assert_allclose(one, gain * other, atol=1e-3 * np.abs(one).max())


def test_recordings_with_nothing_up_there_are_not_given_noise_there(pack: SpeechPack, tmp_path: Path) -> None:
    utterance = Utterance("n", "narrow", "made", "", 3400, 40.0, pack.pcm(0))
    write_speech_pack(tmp_path, [utterance], pack.noises)
    narrow = SpeechPack(tmp_path)
    for pair in pairs(narrow, replace(PLAIN, colored_prob=1.0, babble_prob=0.0), 4):
        assert pair.cutoff_hz == 3400.0
        assert above_db(pair.noisy, 1.1 * 3400) < -40.0
    shifted = pairs(narrow, replace(PLAIN, voice_shift=(1.15, 1.15)), 12)
    assert {round(pair.cutoff_hz) for pair in shifted} == {3400, 3910}


def test_clipping_flattens_the_noisy_side_alone(pack: SpeechPack) -> None:
    for pair in pairs(pack, replace(CLEAN, clipped_prob=1.0), 6):
        peak = np.abs(pair.noisy).max()
        assert np.sum(np.abs(pair.noisy) > 0.9999 * peak) > 10
        assert np.abs(pair.clean).max() > 1.2 * peak
        inside = np.abs(pair.clean) < 0.99 * peak
        np.testing.assert_allclose(pair.noisy[inside], pair.clean[inside], atol=1e-6)


def test_voices_are_shifted_in_half_of_the_pairs(pack: SpeechPack) -> None:
    def pitch_hz(sound: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(sound))
        cepstrum = np.abs(np.fft.irfft(np.log(spectrum + 1e-3)))  # the spacing of the harmonics
        lags = np.arange(60, 180)
        return RATE / float(lags[cepstrum[lags].argmax()])

    config = replace(CLEAN, seconds=0.8, voice_shift=(1.15, 1.15), tone_db=0.0)
    pitches = np.array([pitch_hz(pair.clean) for pair in pairs(pack, config, 24)])
    voices = np.array([110.0, 210.0, 110.0 * 1.15, 210.0 * 1.15])
    nearest = np.abs(pitches[:, None] / voices - 1.0)
    assert (nearest.min(1) < 0.05).mean() > 0.8
    assert set(nearest.argmin(1)) == {0, 1, 2, 3}


@pytest.mark.parametrize("config", [CLEAN, replace(PLAIN, room_prob=0.5, narrow_prob=0.5)])
def test_an_utterance_keeps_its_length(pack: SpeechPack, config: NoisyConfig) -> None:
    speech = NoisySpeech(pack, replace(config, voice_shift=(1.15, 1.15)))
    for number in range(len(pack)):
        pair = speech.utterance(number, seed=number)
        assert pair.noisy.shape == pair.clean.shape == (pack.samples[number],)
    one, same, other = (speech.utterance(0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.noisy, same.noisy)
    assert not np.array_equal(one.noisy, other.noisy)


def test_an_utterance_is_neither_faster_nor_slower(pack: SpeechPack) -> None:
    speech = NoisySpeech(pack, replace(CLEAN, voice_shift=(1.15, 1.15), tone_db=0.0))
    pair = speech.utterance(2, seed=0)
    assert np.corrcoef(pair.clean, pack.pcm(2))[0, 1] > 0.9999


def test_the_clean_side_is_the_target(pack: SpeechPack, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sounds = [pack.pcm(number) / 32768.0 for number in range(2)]
    utterances = [
        Utterance(f"{n}", "low", "made", "", 8000, 40.0, sound + 0.003 * rng.standard_normal(len(sound)), sound)
        for n, sound in enumerate(sounds)
    ]
    write_speech_pack(tmp_path, utterances, pack.noises)
    floor = NoisySpeech(SpeechPack(tmp_path), replace(CLEAN, voice_shift=(0.9, 0.9)))
    for pair in [floor.pair(seed) for seed in range(6)] + [floor.utterance(1, 0)]:
        assert pair.snr_db == np.inf
        assert np.corrcoef(pair.noisy, pair.clean)[0, 1] > 0.9
        rest = pair.noisy - pair.clean
        # of the same gain: what is left over is the noise of the recording alone
        assert abs(np.corrcoef(rest, pair.clean)[0, 1]) < 0.05
        assert power_db(rest) < power_db(pair.clean) - 10.0
        assert power_db(rest) > power_db(pair.clean) - 50.0


def test_noise_is_of_unit_power(pack: SpeechPack) -> None:
    for config in (replace(PLAIN, babble_prob=1.0), replace(PLAIN, colored_prob=1.0), PLAIN):
        speech = NoisySpeech(pack, replace(config, second_noise_prob=0.0))
        for seed in range(3):
            sound = speech.noise(np.random.default_rng(seed), 8000)
            assert sound.shape == (8000,)
            assert power_db(sound) == pytest.approx(0.0, abs=0.01)


def test_a_pack_whose_noises_are_silent_still_gives_noise(pack: SpeechPack, tmp_path: Path) -> None:
    utterance = Utterance("n", "low", "made", "", 8000, 40.0, pack.pcm(0))
    write_speech_pack(tmp_path, [utterance], [np.zeros(9000, np.int16)])
    silent = replace(PLAIN, babble_prob=0.0, colored_prob=0.0, snr_db=(0.0, 0.0))
    for pair in pairs(SpeechPack(tmp_path), silent, 3):
        assert power_db(pair.noisy - pair.clean) > -60.0


def test_a_pack_without_noises_still_gives_noise(pack: SpeechPack, tmp_path: Path) -> None:
    write_speech_pack(tmp_path, [Utterance("n", "low", "made", "", 8000, 40.0, pack.pcm(0))], [])
    for pair in pairs(SpeechPack(tmp_path), replace(PLAIN, snr_db=(0.0, 0.0)), 3):
        assert power_db(pair.noisy - pair.clean) > -60.0


def test_a_room_response_begins_with_the_direct_sound() -> None:
    response = mono.room_response(np.random.default_rng(0), 0.5, 4.0)
    assert len(response) == 8000
    assert response[0] == 1.0
    assert not response[1:48].any()
    tail = response[1:]
    assert -10 * np.log10(np.sum(tail**2)) == pytest.approx(4.0, abs=0.01)
    early, late = (np.sum(tail[a : a + 1600] ** 2) for a in (800, 5600))
    assert 10 * np.log10(early / late) == pytest.approx(60 * 4800 / 8000, abs=2.0)
    assert mono.room_response(np.random.default_rng(0), 0.0, 4.0).tolist() == [1.0]


@pytest.mark.parametrize("size", [1, 3, 500])
def test_convolving_keeps_the_length(size: int) -> None:
    rng = np.random.default_rng(0)
    waveform, response = rng.standard_normal(300).astype(np.float32), rng.standard_normal(size)
    convolved = mono.convolve(waveform, response)
    assert convolved.dtype == np.float32
    np.testing.assert_allclose(convolved, np.convolve(waveform, response)[:300], atol=1e-4)


def test_pauses_do_not_count_as_speech() -> None:
    speech = 0.2 * np.random.default_rng(0).standard_normal(16_000)
    pause = 1e-4 * np.random.default_rng(1).standard_normal(48_000)
    assert mono.active_power(np.concatenate([speech, pause])) == pytest.approx(0.04, rel=0.05)
    assert mono.active_power(np.zeros(1000)) == 0.0
    assert mono.active_power(np.zeros(0)) == 0.0
    assert mono.active_power(np.full(100, 0.5)) == pytest.approx(0.25)  # shorter than a frame
    quiet = np.concatenate([speech, 0.1 * speech])
    assert mono.active_power(quiet, below_db=10.0) == pytest.approx(0.04, rel=0.05)
    assert mono.active_power(quiet, below_db=40.0) == pytest.approx(0.0202, rel=0.05)
