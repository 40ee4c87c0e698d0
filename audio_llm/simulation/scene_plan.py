"""What is drawn for a scene of target-speech hearing: who talks when and where, the head, the room, the levels.

Two or three people and noise around a head, and one noisy look at one of them. A plan is a pure function of the
sources, the settings, a seed and an index; `scenes` makes its sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from audio_llm.errors import DataError
from audio_llm.simulation.heads import Head, HeadVariation
from audio_llm.simulation.rooms import Room

_FRONT_DEG = 15.0  # nobody else stands so near to the front in a look
_MARGIN_M = 0.5  # from the listener to a wall, at least


@dataclass(frozen=True)
class Voice:
    """One person.

    Attributes:
        name: Of the speaker.
        corpus: Where the recordings come from.
        gender: `F`, `M` or empty.
        utterances: Each (T,) at 16 kHz, float32 in -1..1 or int16, without silence at the ends.
    """

    name: str
    corpus: str
    gender: str
    utterances: tuple[np.ndarray, ...] = field(repr=False)


@dataclass(frozen=True)
class SceneSources:
    """What scenes are made of; the parts for training, tuning and test share nothing.

    Attributes:
        voices: Two or more people.
        heads: Measured heads.
        noises: Recordings, each (N,) as utterances are; none leaves the scenes without noise.
        measured_rooms: Heads measured in a room, which sound as they are; none: rooms are simulated.
    """

    voices: tuple[Voice, ...]
    heads: tuple[Head, ...]
    noises: tuple[np.ndarray, ...] = field(default=(), repr=False)
    measured_rooms: tuple[Head, ...] = ()


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are drawn; pairs of numbers are the ends of an even draw.

    Attributes:
        seconds: Length of the mixture.
        look_seconds: Length of the look.
        talkers: Fewest and most people in the mixture.
        overlap: Share of the mixture during which another person talks.
        level_db: Of the others over the target.
        snr_db: Speech of the target over noise, in the mixture and in the look.
        rt60_s: Reverberation time.
        room_m: Shortest and longest wall.
        distance_m: Of a person from the head.
        look_error_deg: How far from the front the person looked at may be, at most.
        moving_share: Of people who move in the mixture.
        absent_share: Of scenes where the target is silent for a part of the mixture.
        fully_absent_share: Of scenes where the target says nothing in the mixture.
        measured_room_share: Of scenes in a measured room, where there is one.
        nobody_share: Of looks at somebody who says nothing.
        overall_db: Level of mixture and look.
        tone_db: Change of tone of every person, so that no recording device gives somebody away.
        head: How heads vary.
    """

    seconds: float = 5.0
    look_seconds: float = 4.0
    talkers: tuple[int, int] = (2, 3)
    overlap: tuple[float, float] = (0.5, 1.0)
    level_db: tuple[float, float] = (-5.0, 5.0)
    snr_db: tuple[float, float] = (0.0, 15.0)
    rt60_s: tuple[float, float] = (0.2, 0.6)
    room_m: tuple[float, float] = (3.0, 8.0)
    distance_m: tuple[float, float] = (0.7, 2.0)
    look_error_deg: float = 18.0
    moving_share: float = 0.3
    absent_share: float = 0.1
    fully_absent_share: float = 0.05
    measured_room_share: float = 0.0
    nobody_share: float = 0.0
    overall_db: tuple[float, float] = (-6.0, 6.0)
    tone_db: float = 3.0
    head: HeadVariation = field(default_factory=HeadVariation)


@dataclass(frozen=True)
class Talker:
    """One person of a scene.

    Attributes:
        voice: Number in the sources.
        azimuth: Degrees at the beginning.
        distance_m: From the head.
        moving: Whether the person moves.
        level_db: Over the target.
        starts_s: When the person begins to talk.
        ends_s: And stops.
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
    """Everything of a scene but the sound.

    Attributes:
        seed: Of the renderer's own draws.
        head: Number in the sources.
        room: The simulated room.
        measured_room: Number of the measured one that is used instead, or None.
        talkers: Of the mixture, the target first.
        look: People in the look, the target first, close to the front.
        snr_db: Of the mixture.
        look_snr_db: Of the look.
        overall_db: Level of both.
        absent: Whether the target says nothing in the mixture.
        one_recording: Whether look and mixture had to be cut out of one recording of the target, apart in time.
    """

    seed: tuple[int, int]
    head: int
    room: Room
    measured_room: int | None
    talkers: tuple[Talker, ...]
    look: tuple[Talker, ...]
    snr_db: float
    look_snr_db: float
    overall_db: float
    absent: bool
    one_recording: bool


def plan_scene(sources: SceneSources, config: SceneConfig, seed: int, index: int) -> ScenePlan:
    """Return what is drawn for a scene.

    Raises:
        DataError: There are fewer voices than people in a scene, or no head.
    """
    if len(sources.voices) < config.talkers[1] or not sources.heads:
        found = f"{len(sources.voices)} voices and {len(sources.heads)} heads"
        raise DataError(f"{found}, wanted {config.talkers[1]} voices and a head", remedy="give more recordings")
    rng = np.random.default_rng([seed, index])
    count = int(rng.integers(config.talkers[0], config.talkers[1] + 1))
    chosen = [int(voice) for voice in rng.choice(len(sources.voices), count, replace=False)]
    room = draw_room(config, rng)
    measured = None
    if sources.measured_rooms and rng.random() < config.measured_room_share:
        measured = int(rng.integers(len(sources.measured_rooms)))
    talkers = [_target(config, rng, chosen[0])]
    talkers += [_other(config, rng, voice) for voice in chosen[1:]]
    look = [Talker(chosen[0], _look_error(config, rng), _distance(config, rng), True, 0.0, 0.0, config.look_seconds)]
    look += [_beside(config, rng, voice) for voice in _people_of_the_look(sources, rng, chosen)]
    if measured is not None:
        talkers, look = ([_in_measured_room(talker) for talker in people] for people in (talkers, look))
    plan = ScenePlan(
        seed=(seed, index),
        head=int(rng.integers(len(sources.heads))),
        room=room,
        measured_room=measured,
        talkers=tuple(talkers),
        look=tuple(look),
        snr_db=float(rng.uniform(*config.snr_db)),
        look_snr_db=float(rng.uniform(*config.snr_db)),
        overall_db=float(rng.uniform(*config.overall_db)),
        absent=talkers[0].starts_s >= config.seconds,
        one_recording=len(sources.voices[chosen[0]].utterances) == 1,
    )
    if rng.random() >= config.nobody_share:  # drawn last, so that the share changes nothing else
        return plan
    return replace(plan, look=(replace(look[0], starts_s=config.look_seconds), *look[1:]))


def draw_room(config: SceneConfig, rng: np.random.Generator) -> Room:
    """Return a room with a listener somewhere in it, facing anywhere."""
    size = tuple(float(wall) for wall in (*rng.uniform(*config.room_m, 2), rng.uniform(2.4, 3.5)))
    place = tuple(float(rng.uniform(_MARGIN_M, wall - _MARGIN_M)) for wall in size[:2])
    return Room(size, float(rng.uniform(*config.rt60_s)), (*place, 1.5), float(rng.uniform(0, 360)))  # type: ignore[arg-type]


def _target(config: SceneConfig, rng: np.random.Generator, voice: int) -> Talker:
    starts_s, ends_s = 0.0, config.seconds
    drawn = rng.random()
    if drawn < config.fully_absent_share:
        starts_s = ends_s
    elif drawn < config.fully_absent_share + config.absent_share:
        pause_s = rng.uniform(0.2, 0.5) * config.seconds
        starts_s, ends_s = (pause_s, ends_s) if rng.random() < 0.5 else (0.0, ends_s - pause_s)
    return Talker(voice, *_somewhere(config, rng), 0.0, float(starts_s), float(ends_s))


def _other(config: SceneConfig, rng: np.random.Generator, voice: int) -> Talker:
    length_s = rng.uniform(*config.overlap) * config.seconds
    starts_s = rng.uniform(0.0, config.seconds - length_s)
    level_db = float(rng.uniform(*config.level_db))
    return Talker(voice, *_somewhere(config, rng), level_db, float(starts_s), float(starts_s + length_s))


def _beside(config: SceneConfig, rng: np.random.Generator, voice: int) -> Talker:
    azimuth = float(rng.uniform(_FRONT_DEG, 360.0 - _FRONT_DEG))
    level_db = float(rng.uniform(*config.level_db))
    return Talker(voice, azimuth, _distance(config, rng), False, level_db, 0.0, config.look_seconds)


def _somewhere(config: SceneConfig, rng: np.random.Generator) -> tuple[float, float, bool]:
    """Return azimuth, distance and whether the person moves."""
    return float(rng.uniform(0.0, 360.0)), _distance(config, rng), bool(rng.random() < config.moving_share)


def _distance(config: SceneConfig, rng: np.random.Generator) -> float:
    return float(rng.uniform(*config.distance_m))


def _look_error(config: SceneConfig, rng: np.random.Generator) -> float:
    """Return the direction of the person looked at: within an error whose limit is drawn first."""
    limit = rng.uniform(0.0, config.look_error_deg)
    return float(rng.choice((-1.0, 1.0)) * limit)


def _people_of_the_look(sources: SceneSources, rng: np.random.Generator, chosen: Sequence[int]) -> list[int]:
    """Return one or two others of the look: those of the mixture, or new ones."""
    others = [voice for voice in range(len(sources.voices)) if voice != chosen[0]]
    fresh = [int(voice) for voice in rng.permutation(others)]
    people = [*chosen[1:], *fresh] if rng.random() < 0.5 else fresh
    return list(dict.fromkeys(people))[: int(rng.integers(1, 3))]


def _in_measured_room(talker: Talker) -> Talker:
    """Return the person in the front half, which is what was measured, standing still."""
    azimuth = (talker.azimuth + 180.0) % 360.0 - 180.0
    if abs(azimuth) > 90.0:
        azimuth = np.copysign(180.0 - abs(azimuth), azimuth)
    return Talker(
        talker.voice, float(azimuth), talker.distance_m, False, talker.level_db, talker.starts_s, talker.ends_s
    )
