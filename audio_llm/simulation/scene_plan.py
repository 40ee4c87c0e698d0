"""The random parameters of a scene for target-speaker extraction: talkers with times and positions, head, room, levels.

A scene has two or three talkers and noise around a head, and a noisy enrollment recording of one of the talkers. A plan
is a pure function of the sources, the settings, a seed and an index; `scenes` renders it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from audio_llm.errors import DataError
from audio_llm.simulation.heads import Head, HeadVariation
from audio_llm.simulation.rooms import Room
from audio_llm.training.config import renamed

_FRONTAL_DEG = 15.0  # smallest azimuth of an interferer in an enrollment recording
_MARGIN_M = 0.5  # smallest distance of the head from a wall


@dataclass(frozen=True)
class Voice:
    """Recordings of one speaker.

    Attributes:
        name: Name of the speaker.
        corpus: Source of the recordings.
        gender: `F`, `M` or empty.
        utterances: Each (T,) at 16 kHz, float32 in -1..1 or int16, without silence at the ends.
    """

    name: str
    corpus: str
    gender: str
    utterances: tuple[np.ndarray, ...] = field(repr=False)


@dataclass(frozen=True)
class SceneSources:
    """Material for scenes; the parts for training, development and test share nothing.

    Attributes:
        voices: Two or more speakers.
        heads: Measured heads.
        noises: Noise recordings, each (N,) in the format of utterances; without any, scenes have no noise.
        measured_rooms: Heads measured in a room, used unchanged; without any, rooms are simulated.
    """

    voices: tuple[Voice, ...]
    heads: tuple[Head, ...]
    noises: tuple[np.ndarray, ...] = field(default=(), repr=False)
    measured_rooms: tuple[Head, ...] = ()


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are drawn; pairs of numbers are the ends of a uniform draw.

    Attributes:
        seconds: Length of the mixture.
        enrollment_seconds: Length of the enrollment recording.
        talkers: Smallest and largest number of talkers in the mixture.
        overlap: Fraction of the mixture during which an interferer is active.
        level_db: Level of the interferers relative to the target.
        snr_db: Target speech over noise, in the mixture and in the enrollment recording.
        rt60_s: Reverberation time.
        room_m: Shortest and longest wall.
        distance_m: Distance of a talker from the head.
        enrollment_error_deg: Largest azimuth of the target in the enrollment recording.
        moving_prob: Probability that a talker moves in the mixture.
        absent_prob: Fraction of scenes where the target is silent for a part of the mixture.
        fully_absent_prob: Fraction of scenes where the target is silent in the whole mixture.
        measured_room_prob: Fraction of scenes in a measured room, if there is any.
        no_speaker_prob: Fraction of enrollment recordings whose target is silent.
        overall_db: Level of mixture and enrollment recording.
        tone_db: Change of the spectrum of every talker, so that recording devices do not identify speakers.
        head: Variation of the heads.
    """

    seconds: float = 5.0
    enrollment_seconds: float = renamed("look_seconds", 4.0)
    talkers: tuple[int, int] = (2, 3)
    overlap: tuple[float, float] = (0.5, 1.0)
    level_db: tuple[float, float] = (-5.0, 5.0)
    snr_db: tuple[float, float] = (0.0, 15.0)
    rt60_s: tuple[float, float] = (0.2, 0.6)
    room_m: tuple[float, float] = (3.0, 8.0)
    distance_m: tuple[float, float] = (0.7, 2.0)
    enrollment_error_deg: float = renamed("look_error_deg", 18.0)
    moving_prob: float = renamed("moving_share", 0.3)
    absent_prob: float = renamed("absent_share", 0.1)
    fully_absent_prob: float = renamed("fully_absent_share", 0.05)
    measured_room_prob: float = renamed("measured_room_share", 0.0)
    no_speaker_prob: float = renamed("nobody_share", 0.0)
    overall_db: tuple[float, float] = (-6.0, 6.0)
    tone_db: float = 3.0
    head: HeadVariation = field(default_factory=HeadVariation)


@dataclass(frozen=True)
class Talker:
    """One talker of a scene.

    Attributes:
        voice: Index in the sources.
        azimuth: Initial azimuth in degrees.
        distance_m: Distance from the head.
        moving: Whether the talker moves.
        level_db: Level relative to the target.
        starts_s: Start of the speech.
        ends_s: End of the speech.
    """

    voice: int
    azimuth: float
    distance_m: float
    moving: bool
    level_db: float
    starts_s: float
    ends_s: float


@dataclass(frozen=True)
class ScenePlan:
    """The parameters of a scene.

    Attributes:
        seed: Seed of the draws during rendering.
        head: Index in the sources.
        room: The simulated room.
        measured_room: Index of the measured room that is used instead, or None.
        talkers: Talkers of the mixture, the target first.
        enrollment: Talkers of the enrollment recording; the first is the target, near the front.
        snr_db: Target speech over noise in the mixture.
        enrollment_snr_db: Target speech over noise in the enrollment recording.
        overall_db: Level of mixture and enrollment recording.
        absent: Whether the target is silent in the mixture.
        one_recording: Whether enrollment and mixture use disjoint parts of the target's only recording.
    """

    seed: tuple[int, int]
    head: int
    room: Room
    measured_room: int | None
    talkers: tuple[Talker, ...]
    enrollment: tuple[Talker, ...]
    snr_db: float
    enrollment_snr_db: float
    overall_db: float
    absent: bool
    one_recording: bool


def plan_scene(sources: SceneSources, config: SceneConfig, seed: int, index: int) -> ScenePlan:
    """Draw the parameters of a scene.

    Raises:
        DataError: There are fewer voices than talkers in a scene, or no head.
    """
    if len(sources.voices) < config.talkers[1] or not sources.heads:
        available = f"{len(sources.voices)} voices and {len(sources.heads)} heads"
        expected = f"{config.talkers[1]} voices and a head"
        raise DataError(f"{available}, expected {expected}", remedy="give more recordings")
    rng = np.random.default_rng([seed, index])
    count = int(rng.integers(config.talkers[0], config.talkers[1] + 1))
    chosen = [int(voice) for voice in rng.choice(len(sources.voices), count, replace=False)]
    room = draw_room(config, rng)
    measured = None
    if sources.measured_rooms and rng.random() < config.measured_room_prob:
        measured = int(rng.integers(len(sources.measured_rooms)))
    talkers = [_target(config, rng, chosen[0])]
    talkers += [_other(config, rng, voice) for voice in chosen[1:]]
    azimuth, distance_m = _enrollment_error(config, rng), _distance(config, rng)
    enrollment = [Talker(chosen[0], azimuth, distance_m, True, 0.0, 0.0, config.enrollment_seconds)]
    enrollment += [
        _enrollment_interferer(config, rng, voice) for voice in _enrollment_interferers(sources, rng, chosen)
    ]
    if measured is not None:
        talkers, enrollment = ([_in_measured_room(talker) for talker in group] for group in (talkers, enrollment))
    plan = ScenePlan(
        seed=(seed, index),
        head=int(rng.integers(len(sources.heads))),
        room=room,
        measured_room=measured,
        talkers=tuple(talkers),
        enrollment=tuple(enrollment),
        snr_db=float(rng.uniform(*config.snr_db)),
        enrollment_snr_db=float(rng.uniform(*config.snr_db)),
        overall_db=float(rng.uniform(*config.overall_db)),
        absent=talkers[0].starts_s >= config.seconds,
        one_recording=len(sources.voices[chosen[0]].utterances) == 1,
    )
    if rng.random() >= config.no_speaker_prob:  # drawn last, so that it does not affect other draws
        return plan
    return replace(plan, enrollment=(replace(enrollment[0], starts_s=config.enrollment_seconds), *enrollment[1:]))


def draw_room(config: SceneConfig, rng: np.random.Generator) -> Room:
    """Return a room with a head at a random position and orientation."""
    size = tuple(float(wall) for wall in (*rng.uniform(*config.room_m, 2), rng.uniform(2.4, 3.5)))
    position = tuple(float(rng.uniform(_MARGIN_M, wall - _MARGIN_M)) for wall in size[:2])
    return Room(size, float(rng.uniform(*config.rt60_s)), (*position, 1.5), float(rng.uniform(0, 360)))  # type: ignore[arg-type]


def _target(config: SceneConfig, rng: np.random.Generator, voice: int) -> Talker:
    starts_s, ends_s = 0.0, config.seconds
    drawn = rng.random()
    if drawn < config.fully_absent_prob:
        starts_s = ends_s
    elif drawn < config.fully_absent_prob + config.absent_prob:
        pause_s = rng.uniform(0.2, 0.5) * config.seconds
        starts_s, ends_s = (pause_s, ends_s) if rng.random() < 0.5 else (0.0, ends_s - pause_s)
    return Talker(voice, *_somewhere(config, rng), 0.0, float(starts_s), float(ends_s))


def _other(config: SceneConfig, rng: np.random.Generator, voice: int) -> Talker:
    length_s = rng.uniform(*config.overlap) * config.seconds
    starts_s = rng.uniform(0.0, config.seconds - length_s)
    level_db = float(rng.uniform(*config.level_db))
    return Talker(voice, *_somewhere(config, rng), level_db, float(starts_s), float(starts_s + length_s))


def _enrollment_interferer(config: SceneConfig, rng: np.random.Generator, voice: int) -> Talker:
    azimuth = float(rng.uniform(_FRONTAL_DEG, 360.0 - _FRONTAL_DEG))
    level_db = float(rng.uniform(*config.level_db))
    return Talker(voice, azimuth, _distance(config, rng), False, level_db, 0.0, config.enrollment_seconds)


def _somewhere(config: SceneConfig, rng: np.random.Generator) -> tuple[float, float, bool]:
    """Return azimuth, distance and whether the talker moves."""
    return float(rng.uniform(0.0, 360.0)), _distance(config, rng), bool(rng.random() < config.moving_prob)


def _distance(config: SceneConfig, rng: np.random.Generator) -> float:
    return float(rng.uniform(*config.distance_m))


def _enrollment_error(config: SceneConfig, rng: np.random.Generator) -> float:
    """Return the azimuth of the target in the enrollment recording, of random sign."""
    limit = rng.uniform(0.0, config.enrollment_error_deg)
    return float(rng.choice((-1.0, 1.0)) * limit)


def _enrollment_interferers(sources: SceneSources, rng: np.random.Generator, chosen: Sequence[int]) -> list[int]:
    """Return one or two interferers of the enrollment recording: those of the mixture, or new ones."""
    candidates = [voice for voice in range(len(sources.voices)) if voice != chosen[0]]
    fresh = [int(voice) for voice in rng.permutation(candidates)]
    group = [*chosen[1:], *fresh] if rng.random() < 0.5 else fresh
    return list(dict.fromkeys(group))[: int(rng.integers(1, 3))]


def _in_measured_room(talker: Talker) -> Talker:
    """Return the talker without movement, mirrored into the frontal half plane, where rooms were measured."""
    azimuth = (talker.azimuth + 180.0) % 360.0 - 180.0
    if abs(azimuth) > 90.0:
        azimuth = np.copysign(180.0 - abs(azimuth), azimuth)
    return Talker(
        talker.voice, float(azimuth), talker.distance_m, False, talker.level_db, talker.starts_s, talker.ends_s
    )
