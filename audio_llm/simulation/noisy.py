"""Pairs of noisy and clean speech from clean utterances: random rooms, noises, coloration, levels and bandwidths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from audio_llm.simulation import mono
from audio_llm.simulation.speech_pack import FULL_BAND_HZ, SpeechPack
from audio_llm.training.config import renamed

SAMPLE_RATE = 16_000  # Hz
_POINTS_HZ = np.array([60.0, 200.0, 500.0, 1200.0, 2500.0, 4500.0, 8000.0])  # support points of the coloration
_BABBLE = (3, 9)  # number of talkers, upper end exclusive
_QUIET = 1e-7  # power below which a stretch of noise counts as silent
_SPARE = 640  # extra samples for a change of speed


@dataclass(frozen=True)
class NoisyConfig:
    """How pairs are drawn; pairs of numbers are the ends of a uniform draw.

    Attributes:
        seconds: Length of a pair.
        voice_shift: Factor on pitch and formants together, in half of the pairs.
        snr_db: Power of active speech over noise.
        clean_prob: Fraction of pairs without noise.
        silent_prob: Fraction of pairs without speech.
        babble_prob: Fraction of noises that are babble.
        colored_prob: Fraction of noises that are synthetic, white to brown.
        second_noise_prob: Fraction of pairs with a second noise.
        burst_prob: Fraction of noises that are active in a part of the pair only.
        room_prob: Fraction of pairs with reverberation.
        rt60_s: Reverberation time.
        direct_to_reverb_db: Direct over reverberant level.
        early_s: Reflections up to this time belong to the clean side.
        tone_db: Largest change of the spectrum, up or down, separately for speech and noise.
        narrow_prob: Fraction of pairs that are low-pass filtered.
        cutoff_hz: Cut-off frequency.
        clipped_prob: Fraction of pairs whose noisy side is clipped.
        level_db: Level of the noisy side below full scale.
    """

    seconds: float = 3.0
    voice_shift: tuple[float, float] = (0.87, 1.15)
    snr_db: tuple[float, float] = (-5.0, 25.0)
    clean_prob: float = renamed("clean_share", 0.04)
    silent_prob: float = renamed("silent_share", 0.04)
    babble_prob: float = renamed("babble_share", 0.2)
    colored_prob: float = renamed("coloured_share", 0.15)
    second_noise_prob: float = renamed("second_noise_share", 0.3)
    burst_prob: float = renamed("burst_share", 0.15)
    room_prob: float = renamed("room_share", 0.3)
    rt60_s: tuple[float, float] = (0.15, 0.8)
    direct_to_reverb_db: tuple[float, float] = (-3.0, 12.0)
    early_s: float = 0.05
    tone_db: float = 5.0
    narrow_prob: float = renamed("narrow_share", 0.08)
    cutoff_hz: tuple[float, float] = (3000.0, 7000.0)
    clipped_prob: float = renamed("clipped_share", 0.03)
    level_db: tuple[float, float] = (-45.0, -15.0)


@dataclass(frozen=True)
class NoisyPair:
    """Noisy speech and its clean target, aligned.

    Attributes:
        noisy: (T,) float32 at 16 kHz.
        clean: (T,) float32 at 16 kHz, the direct sound and its early reflections, at their level in `noisy`.
        snr_db: The drawn value; infinite without noise, minus infinite without speech.
        cutoff_hz: Bandwidth of both signals.
    """

    noisy: np.ndarray = field(repr=False)
    clean: np.ndarray = field(repr=False)
    snr_db: float
    cutoff_hz: float


class NoisySpeech:
    """Draws pairs of noisy and clean speech from a pack.

    Args:
        pack: Clean utterances and noises.
        config: How pairs are drawn.
    """

    def __init__(self, pack: SpeechPack, config: NoisyConfig) -> None:
        self.pack, self.config = pack, config
        by_speaker: dict[str, list[int]] = {}
        for number, speaker in enumerate(pack.speakers):
            by_speaker.setdefault(speaker, []).append(number)
        self._utterances = [np.array(numbers) for numbers in by_speaker.values()]
        # square roots, so that neither one voice with an hour nor many with a sentence each dominate
        weights = np.sqrt([pack.samples[numbers].sum() for numbers in self._utterances])
        self._weights = weights / weights.sum()

    def pair(self, seed: int) -> NoisyPair:
        """Return the pair of a seed."""
        rng = np.random.default_rng(seed)
        size = round(self.config.seconds * SAMPLE_RATE)
        speech, bandwidth_hz = self._speech(rng, size, with_target=True)
        return degrade(speech, lambda: self.noise(rng, size), self.config, rng, bandwidth_hz)

    def utterance(self, number: int, seed: int) -> NoisyPair:
        """Return a whole utterance of the pack as a pair, without a change of speed."""
        rng = np.random.default_rng(seed)
        speech = np.stack([self.pack.pcm(number), self.pack.target(number)]).astype(np.float32) / 32768.0
        bandwidth_hz = float(self.pack.bandwidths_hz[number])
        return degrade(speech, lambda: self.noise(rng, speech.shape[1]), self.config, rng, bandwidth_hz)

    def _speech(self, rng: np.random.Generator, size: int, with_target: bool = False) -> tuple[np.ndarray, float]:
        """Return one speaker's speech (size,) float32, or (2, size) with its target, and its bandwidth in Hz."""
        numbers = self._utterances[int(rng.choice(len(self._utterances), p=self._weights))]
        shift = float(rng.uniform(*self.config.voice_shift)) if rng.random() < 0.5 else 1.0
        required = int(size * shift) + _SPARE
        out = np.zeros((2 if with_target else 1, required), np.float32)
        bandwidth_hz = float(FULL_BAND_HZ)
        position = 0
        while position < required:
            number = int(numbers[int(rng.integers(len(numbers)))])
            length = int(self.pack.samples[number])
            start = int(rng.integers(max(1, length - required))) if position == 0 else 0
            end = min(length, start + required - position)
            for row, pcm in zip(out, (self.pack.pcm, self.pack.target), strict=False):
                row[position : position + end - start] = pcm(number)[start:end].astype(np.float32) / 32768.0
            bandwidth_hz = min(bandwidth_hz, float(self.pack.bandwidths_hz[number]))
            position += end - start + int(rng.uniform(0.05, 0.4) * SAMPLE_RATE)
        speech = np.stack([mono.shift_voice(row, shift)[:size] for row in out])
        return speech if with_target else speech[0], min(bandwidth_hz * shift, float(FULL_BAND_HZ))

    def noise(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return (size,) float32 noise as drawn: recorded, synthetic or babble."""
        noise = self._one_noise(rng, size)
        if rng.random() < self.config.second_noise_prob:
            noise = noise + 10.0 ** (rng.uniform(-10.0, 0.0) / 20.0) * self._one_noise(rng, size)
        return noise

    def _one_noise(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return (size,) noise of unit power."""
        config, kind = self.config, rng.random()
        if kind < config.babble_prob:
            noise = np.zeros(size, np.float32)
            for _ in range(int(rng.integers(*_BABBLE))):
                other = self._speech(rng, size)[0]
                noise += other * float(rng.uniform(0.3, 1.0) / np.sqrt(mono.active_power(other) + 1e-9))
        elif kind < config.babble_prob + config.colored_prob or not self.pack.noises:
            noise = mono.colored_noise(size, rng, float(rng.uniform(0.0, 2.0)))
        else:
            noise = self._recorded(rng, size)
        if rng.random() < config.burst_prob:
            noise = noise * _burst(rng, size)
        power = float(np.mean(np.square(noise)))
        return noise / np.sqrt(power) if power > 0.0 else noise

    def _recorded(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return a stretch of a recording that is not silent, played faster or slower."""
        for _ in range(4):
            pcm = self.pack.noises[int(rng.integers(len(self.pack.noises)))]
            speed = float(rng.uniform(0.8, 1.25))
            required = int(size * speed) + _SPARE
            start = int(rng.integers(max(1, len(pcm) - required)))
            noise = np.resize(pcm[start : start + required], required).astype(np.float32) / 32768.0
            if float(np.mean(np.square(noise))) > _QUIET:
                return mono.shift_voice(noise, speed)[:size]
        return mono.colored_noise(size, rng, 1.0)


def degrade(
    speech: np.ndarray,
    draw_noise: Callable[[], np.ndarray],
    config: NoisyConfig,
    rng: np.random.Generator,
    bandwidth_hz: float = FULL_BAND_HZ,
) -> NoisyPair:
    """Return speech degraded as drawn.

    Args:
        speech: (2, T) float32 at 16 kHz, the recording and its target.
        draw_noise: Called without arguments, returns (T,) float32 noise of unit power.
        config: Ranges of the draws.
        rng: Source of all draws except those of the noise.
        bandwidth_hz: Bandwidth of the speech.
    """
    kind = rng.random()
    silent, clean_only = kind < config.silent_prob, kind > 1.0 - config.clean_prob
    speech = np.zeros_like(speech) if silent else _change_tone(speech, config.tone_db, rng)
    wet, clean = speech
    if rng.random() < config.room_prob:
        response = mono.room_response(rng, rng.uniform(*config.rt60_s), rng.uniform(*config.direct_to_reverb_db))
        wet = mono.convolve(wet, response)
        clean = mono.convolve(clean, response[: max(1, round(config.early_s * SAMPLE_RATE))])
    noisy, snr_db = wet, np.inf
    if not clean_only:
        noise = _change_tone(draw_noise(), config.tone_db, rng)
        snr_db = rng.uniform(*config.snr_db)
        power = mono.active_power(wet) or 1e-2
        noise_power = float(np.mean(np.square(noise, dtype=np.float64))) or 1.0
        noisy = wet + noise * np.sqrt(power / noise_power / 10.0 ** (snr_db / 10.0))
    cutoff_hz = bandwidth_hz
    if rng.random() < config.narrow_prob:
        cutoff_hz = min(cutoff_hz, float(rng.uniform(*config.cutoff_hz)))
    if cutoff_hz < FULL_BAND_HZ:
        clean, noisy = _low_pass(clean, cutoff_hz), _low_pass(noisy, cutoff_hz)
    rms = float(np.sqrt(np.mean(np.square(noisy, dtype=np.float64)))) or 1.0
    peak = float(np.abs(noisy).max()) or 1.0
    gain = min(10.0 ** (rng.uniform(*config.level_db) / 20.0) / rms, 0.99 / peak)
    clean, noisy = gain * clean, gain * noisy
    if rng.random() < config.clipped_prob:
        limit = float(rng.uniform(0.2, 0.8)) * float(np.abs(noisy).max())
        noisy = np.clip(noisy, -limit, limit)
    snr_db = -np.inf if silent else snr_db
    return NoisyPair(noisy.astype(np.float32), clean.astype(np.float32), float(snr_db), cutoff_hz)


def _change_tone(waveforms: np.ndarray, tone_db: float, rng: np.random.Generator) -> np.ndarray:
    """Return waveforms (..., T) with a random coloration, the same for all of them."""
    gains_db = rng.uniform(-tone_db, tone_db, len(_POINTS_HZ))
    spectrum = np.fft.rfft(waveforms)
    frequencies = np.fft.rfftfreq(waveforms.shape[-1], 1.0 / SAMPLE_RATE)
    gain = 10.0 ** (np.interp(np.log(frequencies + 1.0), np.log(_POINTS_HZ), gains_db) / 20.0)
    return np.fft.irfft(spectrum * gain, waveforms.shape[-1]).astype(np.float32)


def _low_pass(waveform: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """Low-pass filter with a transition band of a tenth of the cut-off frequency."""
    spectrum = np.fft.rfft(waveform)
    frequencies = np.fft.rfftfreq(len(waveform), 1.0 / SAMPLE_RATE)
    gain = np.clip((cutoff_hz - frequencies) / (0.1 * cutoff_hz) + 1.0, 0.0, 1.0)
    return np.fft.irfft(spectrum * gain, len(waveform))


def _burst(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return (size,) gains: 1 within a burst, faded over 20 ms, 0 elsewhere."""
    length = int(rng.uniform(0.2, 0.8) * size)
    start = int(rng.integers(size - length + 1))
    fade = min(320, length // 2)
    gains = np.zeros(size, np.float32)
    gains[start : start + length] = 1.0
    ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    gains[start : start + fade] *= ramp
    gains[start + length - fade : start + length] *= ramp[::-1]
    return gains
