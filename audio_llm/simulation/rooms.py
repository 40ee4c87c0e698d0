"""Binaural room responses: the direct sound, early reflections from their directions, and a diffuse tail.

A shoebox room is simulated by image sources up to a few reflections (Allen and Berkley 1979), each filtered by the
head's response in its direction. They are followed by decaying noise, which decays faster at high frequencies and has
the interaural coherence of a diffuse field.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from audio_llm.errors import UsageError
from audio_llm.simulation.heads import SAMPLE_RATE, Head

SPEED_OF_SOUND = 343.0  # m/s
MOST_REFLECTIONS = 3
EARLY_S = 0.05  # image sources up to this time, the tail from then on
_DIRECTIVITY = 2.0  # of a talker who faces the head: power on the axis over the mean of all directions
_EAR_DISTANCE_M = 0.18  # for the coherence of the tail
_HIGH_HZ = 2000.0  # sound decays faster above this frequency
_HIGH_DECAY = 0.7  # reverberation time above over that below


@dataclass(frozen=True)
class Room:
    """A shoebox room with a head in it.

    Attributes:
        size_m: Length, width, height.
        rt60_s: Time in seconds after which sound below 2 kHz is 60 dB down; 0: anechoic.
        head_m: Position of the head relative to one corner of the floor.
        facing_deg: Orientation of the head, counter-clockwise from the first axis.
    """

    size_m: tuple[float, float, float]
    rt60_s: float
    head_m: tuple[float, float, float]
    facing_deg: float = 0.0

    def __post_init__(self) -> None:
        if any(not 0.0 < position < size for position, size in zip(self.head_m, self.size_m, strict=True)):
            raise UsageError(f"the head at {self.head_m} is outside the room of {self.size_m}")

    @property
    def volume_m3(self) -> float:
        """Volume in cubic meters."""
        return float(np.prod(self.size_m))

    @property
    def reflection(self) -> float:
        """Reflection coefficient of the sound pressure at a wall (Eyring)."""
        length, width, height = self.size_m
        surface = 2.0 * (length * width + length * height + width * height)
        return float(np.exp(-0.5 * 0.161 * self.volume_m3 / (surface * self.rt60_s))) if self.rt60_s else 0.0

    def source(self, azimuth: float, distance_m: float) -> np.ndarray:
        """Return the position of a source (3,) in meters, moved nearer to the head if a wall is in between."""
        angle = np.radians(self.facing_deg + azimuth)
        direction = np.array([np.cos(angle), np.sin(angle), 0.0])
        position, size = np.array(self.head_m), np.array(self.size_m)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(
                direction > 0, (size - position) / direction, np.where(direction < 0, -position / direction, 1e9)
            )
        return position + direction * min(distance_m, 0.95 * float(reach.min()))


@dataclass(frozen=True)
class Response:
    """Binaural impulse responses of a room.

    Attributes:
        direct: (2, T) float32, the direct sound alone.
        whole: (2, T') float32, the complete response; begins with `direct`.
    """

    direct: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True)
class Images:
    """Image sources, the source itself first.

    Attributes:
        azimuths: (K,) degrees relative to the head.
        delays_s: (K,) relative to the direct sound.
        gains: (K,) gains of the sound pressure; 1 for the direct sound.
    """

    azimuths: np.ndarray
    delays_s: np.ndarray
    gains: np.ndarray


def images(room: Room, azimuth: float, distance_m: float) -> Images:
    """Return the source and its reflections that arrive within `EARLY_S`."""
    source, head_position = room.source(azimuth, distance_m), np.array(room.head_m)
    signs, offsets, reflections = _lattice(MOST_REFLECTIONS if room.rt60_s else 0)
    away = signs * source + offsets * np.array(room.size_m) - head_position
    distances = np.linalg.norm(away, axis=1)
    delays = (distances - distances[0]) / SPEED_OF_SOUND
    gains = distances[0] / distances * room.reflection**reflections
    gains[1:] /= np.sqrt(_DIRECTIVITY)
    arrivals = np.degrees(np.arctan2(away[:, 1], away[:, 0])) - room.facing_deg
    arrivals[0] = azimuth
    early = delays < EARLY_S
    return Images(arrivals[early], delays[early], gains[early])


def respond(head: Head, room: Room, azimuth: float, distance_m: float, rng: np.random.Generator) -> Response:
    """Return the response to a source.

    Args:
        head: Head responses.
        room: The room.
        azimuth: Degrees, counter-clockwise from straight ahead.
        distance_m: Distance of the source; reduced if a wall is nearer.
        rng: Draws the tail.
    """
    sources = images(room, azimuth, distance_m)
    early = early_response(head, sources)
    direct = head.near([azimuth])[0]
    if not room.rt60_s:
        return Response(direct, direct)
    distance_m = float(np.linalg.norm(room.source(azimuth, distance_m) - np.array(room.head_m)))
    tail = _tail_gain(room, distance_m, sources) * _tail(head, room, rng)
    size = max(early.shape[1], tail.shape[1])
    whole = np.zeros((2, size), dtype=np.float32)
    whole[:, : early.shape[1]] += early
    whole[:, : tail.shape[1]] += tail
    return Response(direct, whole)


def early_response(head: Head, sources: Images) -> np.ndarray:
    """Return the response to image sources: (2, T) float32."""
    table = head.near(sources.azimuths) * sources.gains[:, None, None].astype(np.float32)
    starts = np.rint(sources.delays_s * SAMPLE_RATE).astype(int)
    early = np.zeros((2, int(starts.max()) + table.shape[2]), dtype=np.float32)
    for response, start in zip(table, starts, strict=True):
        early[:, start : start + table.shape[2]] += response
    return early


def _tail_gain(room: Room, distance_m: float, sources: Images) -> float:
    """Return the sound pressure of the tail for a direct sound of 1: the reverberation without the images."""
    critical_m = 0.057 * np.sqrt(room.volume_m3 / room.rt60_s)
    reverberant = (distance_m / critical_m) ** 2 / _DIRECTIVITY
    return float(np.sqrt(max(reverberant - float(np.sum(sources.gains[1:] ** 2)), 0.05 * reverberant)))


def _tail(head: Head, room: Room, rng: np.random.Generator) -> np.ndarray:
    """Return a diffuse tail (2, T) float32 with twice the mean power of the head's direct sounds over both ears."""
    size = 2 * int(0.5 * (EARLY_S + 1.1 * room.rt60_s) * SAMPLE_RATE)
    frequencies = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    left, right = np.fft.rfft(rng.standard_normal((2, size)))
    alike = np.sinc(2.0 * frequencies * _EAR_DISTANCE_M / SPEED_OF_SOUND)
    field = np.stack([left, alike * left + np.sqrt(1.0 - alike**2) * right])
    shape = np.sqrt(np.mean(np.abs(np.fft.rfft(head.responses, 512)) ** 2, axis=(0, 1)))
    field *= np.interp(frequencies, np.fft.rfftfreq(512, 1.0 / SAMPLE_RATE), shape)
    high = 1.0 / (1.0 + np.exp(-(frequencies - _HIGH_HZ) / 200.0))
    time_s = np.arange(size) / SAMPLE_RATE
    tail = np.zeros((2, size))
    for weight, decay_s in ((1.0 - high, room.rt60_s), (high, _HIGH_DECAY * room.rt60_s)):
        tail += np.fft.irfft(field * weight, size) * np.exp(-6.9078 * time_s / decay_s)
    onset = np.clip((time_s - 0.5 * EARLY_S) / (0.5 * EARLY_S), 0.0, 1.0)  # fades in as the images become sparse
    tail *= onset
    power = 2.0 * float(np.mean(np.sum(head.responses.astype(np.float64) ** 2, axis=2)))
    return np.asarray(tail * np.sqrt(power / np.sum(tail**2)), dtype=np.float32)


@functools.cache
def _lattice(most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return signs and offsets (K, 3) and numbers of reflections (K,) of the images, the source itself first.

    Along each axis an image is at `sign * x + offset * size`: images of sign 1 repeat the source, others mirror it.
    """
    along = [(1, 2 * n, abs(2 * n)) for n in range(-most, most + 1)]
    along += [(-1, 2 * n, abs(2 * n - 1)) for n in range(-most, most + 1)]
    rows = [(a, b, c) for a in along for b in along for c in along if a[2] + b[2] + c[2] <= most]
    rows.sort(key=lambda row: sum(part[2] for part in row))
    signs = np.array([[part[0] for part in row] for row in rows], dtype=np.float64)
    offsets = np.array([[part[1] for part in row] for row in rows], dtype=np.float64)
    return signs, offsets, np.array([sum(part[2] for part in row) for row in rows])
