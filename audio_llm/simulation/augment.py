"""Random variation of clean speech, so that it resembles recordings: voice, room, noise, level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.simulation import mono
from audio_llm.training.config import renamed


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmentation of clean synthetic speech; every draw is uniform in its range.

    Attributes:
        speed: Speaking rate requested from the synthesizer.
        voice_shift: Factor on pitch and formants together.
        level_db: RMS in dB below full scale.
        noisy_prob: Fraction of sentences with noise.
        snr_db: Signal-to-noise ratio of sentences with noise.
        room_prob: Fraction of sentences with reverberation.
        rt60_s: Reverberation time.
        direct_to_reverb_db: Direct over reverberant level.
    """

    speed: tuple[float, float] = (0.85, 1.2)
    voice_shift: tuple[float, float] = (0.92, 1.12)
    level_db: tuple[float, float] = (-32.0, -18.0)
    noisy_prob: float = renamed("noisy_share", 0.4)
    snr_db: tuple[float, float] = (22.0, 45.0)
    room_prob: float = renamed("room_share", 0.15)
    rt60_s: tuple[float, float] = (0.1, 0.4)
    direct_to_reverb_db: tuple[float, float] = (3.0, 15.0)


CLEAN = Augmentation((1.0, 1.0), (1.0, 1.0), (-23.0, -23.0), noisy_prob=0.0, room_prob=0.0)


def draw_voice(augmentation: Augmentation, rng: np.random.Generator) -> dict[str, float]:
    """Draw `speed`, the rate of speech, and `voice_shift`, the factor on pitch and formants."""
    return {
        "speed": round(rng.uniform(*augmentation.speed), 3),
        "voice_shift": round(rng.uniform(*augmentation.voice_shift), 3),
    }


def degrade(
    waveform: np.ndarray, augmentation: Augmentation, rng: np.random.Generator, noises: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, dict[str, float | str]]:
    """Add reverberation and noise and set the level, each as drawn.

    Args:
        waveform: (T,) float32 at 16 kHz.
        augmentation: Ranges of the draws.
        rng: Source of all draws.
        noises: Recordings of noise, each (N,) float32 at 16 kHz, drawn in addition to white and pink noise.

    Returns:
        (T,) float32 at 16 kHz, and the draws as plain values.
    """
    settings: dict[str, float | str] = {}
    if rng.random() < augmentation.room_prob:
        settings["rt60_s"] = round(rng.uniform(*augmentation.rt60_s), 3)
        settings["direct_to_reverb_db"] = round(rng.uniform(*augmentation.direct_to_reverb_db), 1)
        waveform = mono.add_room(waveform, rng, float(settings["rt60_s"]), float(settings["direct_to_reverb_db"]))
    if rng.random() < augmentation.noisy_prob:
        settings["snr_db"] = round(rng.uniform(*augmentation.snr_db), 1)
        settings["noise"], noise = _draw_noise(waveform.size, rng, noises)
        waveform = mono.add_noise(waveform, noise, float(settings["snr_db"]))
    settings["level_db"] = round(rng.uniform(*augmentation.level_db), 1)
    return mono.set_level(waveform, float(settings["level_db"])), settings


def _draw_noise(samples: int, rng: np.random.Generator, noises: Sequence[np.ndarray]) -> tuple[str, np.ndarray]:
    kind = int(rng.integers(0, 2 + bool(noises)))
    if kind < 2:
        return ("white", "pink")[kind], mono.colored_noise(samples, rng, float(kind))
    which = int(rng.integers(len(noises)))
    recording = noises[which]
    start = int(rng.integers(max(1, recording.size - samples)))
    return f"recording-{which}", recording[start : start + samples]
