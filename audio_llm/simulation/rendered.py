"""Rendered rooms on disk, from which scenes are mixed on the fly.

Rendering a scene costs far more than mixing it. So each row of the shards holds one head in one room, with the separate
binaural images of several talkers and one diffuse noise. A scene draws some of the talkers, an excerpt of each, the
levels, the overlap, a noise of any row, and whether the ears are swapped: an hour of rendered sound gives hundreds of
hours of scenes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from audio_llm.errors import ConfigError, DataError
from audio_llm.simulation.filters import color, slow_waves_db
from audio_llm.simulation.heads import SAMPLE_RATE, vary
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources, Talker, draw_room
from audio_llm.simulation.scenes import REFERENCE_DB, TONE_SIZE, Environment, diffuse_noise, repeat_speech
from audio_llm.simulation.sources import read_sources, to_pcm
from audio_llm.training.shards import ShardReader, write_index, write_shard

logger = logging.getLogger(__name__)

_PEAK = 0.9  # of every rendered talker and noise, for 16-bit storage
_FADE = 80  # samples of a talker's fade in and out: 5 ms
_MOST_S = 30.0  # longest total of a voice's recordings that increases its probability
_TRIES = 4  # excerpts of a recording to try until one is not a pause
_PAUSE_DB = -25.0  # level of a pause, relative to the whole recording


@dataclass(frozen=True)
class RenderConfig:
    """Contents of one row.

    Attributes:
        seconds: Length of every talker and of the noise.
        talkers: Number of talkers in one room.
        rows_per_shard: Rooms in a shard; a room of 6 talkers of 5.12 s takes 2.3 MB.
        seed: Seed of all draws.
        scenes: Rooms, distances, movement, coloration and heads; the other settings apply when scenes are drawn.
    """

    seconds: float = 5.12
    talkers: int = 6
    rows_per_shard: int = 24
    seed: int = 2
    scenes: SceneConfig = field(default_factory=SceneConfig)


@dataclass(frozen=True)
class MixedScene:
    """A scene: the binaural mixture (2, T) float32, and the binaural image of every talker (K, 2, T) float32."""

    mixture: np.ndarray
    talkers: np.ndarray


def render_shard(sources: SceneSources, config: RenderConfig, folder: Path, number: int) -> Path:
    """Write one shard, a pure function of the arguments; an existing one is not changed.

    Raises:
        DataError: There are fewer voices than talkers in a room, no head, or no noise.
    """
    path = folder / f"{number:05d}.safetensors"
    if not path.exists():
        rows = range(number * config.rows_per_shard, (number + 1) * config.rows_per_shard)
        write_shard((_render(sources, config, row) for row in rows), path)
    return path


def render_rooms(packs: Sequence[Path], config: RenderConfig, folder: Path, shards: int, processes: int = 1) -> int:
    """Render the missing ones of so many shards; return the number of rooms in the folder.

    Args:
        packs: Packed sources, read as one.
        config: Contents of the rows.
        folder: Output folder.
        shards: Number of shards.
        processes: Number of worker processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, get_context("spawn"), _read, (tuple(packs),)) as pool:
        done = [pool.submit(_render_shard, config, folder, number) for number in range(shards)]
        for number, future in enumerate(done, 1):
            future.result()
            logger.info("%d of %d shards rendered", number, shards)
            finish_shards(config, folder)
    return len(RenderedScenes(folder))


_sources: SceneSources | None = None  # of a worker process


def _read(packs: tuple[Path, ...]) -> None:
    global _sources
    _sources = read_sources(*packs)


def _render_shard(config: RenderConfig, folder: Path, number: int) -> None:
    assert _sources is not None
    render_shard(_sources, config, folder, number)


def finish_shards(config: RenderConfig, folder: Path) -> int:
    """Write the index of the existing shards; return the number of rooms."""
    names = sorted(path.name for path in folder.glob("[0-9]*.safetensors"))
    return write_index(folder, names, {"talkers": config.talkers, "samples": _samples(config.seconds)})


class RenderedScenes:
    """Draws scenes from rendered rooms.

    Args:
        folder: Folder written by `finish_shards`.

    Raises:
        DataError: The folder is incomplete or a shard is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self._rows = ShardReader(folder)
        try:
            self._talkers, self._samples = int(self._rows.extra["talkers"]), int(self._rows.extra["samples"])
        except KeyError:
            raise DataError("not rendered rooms", path=folder, remedy="render them again") from None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def seconds(self) -> float:
        """Total length of all talkers in seconds."""
        return len(self) * self._talkers * self._samples / SAMPLE_RATE

    def draw(self, config: SceneConfig, seed: int, index: int) -> MixedScene:
        """Return a scene, a pure function of the arguments.

        Args:
            config: Its `seconds`, `talkers`, `overlap`, `level_db`, `snr_db` and `overall_db` apply.
            seed: Seed of all draws.
            index: Number of the scene.

        Raises:
            ConfigError: The scene is longer, or has more talkers, than the rendered rooms.
        """
        samples = _samples(config.seconds)
        if samples > self._samples or config.talkers[1] > self._talkers:
            remedy = f"at most {self._talkers} talkers and {self._samples / SAMPLE_RATE:.2f} s were rendered"
            raise ConfigError(f"no scene of {config.talkers[1]} talkers and {config.seconds} s", remedy=remedy)
        rng = np.random.default_rng([seed, index])
        room = self._rows[int(rng.integers(len(self)))]["speech"].reshape(self._talkers, 2, self._samples)
        count = int(rng.integers(config.talkers[0], config.talkers[1] + 1))
        chosen = rng.permutation(self._talkers)[:count]
        talkers = np.stack([_excerpt(room[talker], rng, samples) for talker in chosen])
        for number in range(count):
            if number:
                _silence_outside(talkers[number], rng, config.overlap)
            level_db = rng.uniform(*config.level_db) if number else 0.0
            talkers[number] *= _gain(talkers[number], REFERENCE_DB + level_db)
        noise = self._rows[int(rng.integers(len(self)))]["noise"].reshape(2, self._samples)
        begins = int(rng.integers(self._samples - samples + 1))
        background = noise[:, begins : begins + samples].astype(np.float32)
        mixture = talkers.sum(axis=0) + background * _gain(background, REFERENCE_DB - rng.uniform(*config.snr_db))
        gain = min(10.0 ** (rng.uniform(*config.overall_db) / 20.0), 0.99 / max(float(np.abs(mixture).max()), 1e-9))
        order = slice(None, None, -1 if rng.random() < 0.5 else 1)  # of the ears
        return MixedScene(np.float32(gain) * mixture[order], np.float32(gain) * talkers[:, order])


def _render(sources: SceneSources, config: RenderConfig, row: int) -> dict[str, np.ndarray]:
    if len(sources.voices) < config.talkers or not sources.heads or not sources.noises:
        message = f"{len(sources.voices)} voices, {len(sources.heads)} heads, {len(sources.noises)} noises"
        raise DataError(message, remedy=f"rendering needs {config.talkers} voices, a head and a noise")
    rng = np.random.default_rng([config.seed, row])
    samples = _samples(config.seconds)
    scenes = replace(config.scenes, seconds=config.seconds)
    head = vary(sources.heads[int(rng.integers(len(sources.heads)))], rng, scenes.head)
    environment = Environment(head, draw_room(scenes, rng), None)
    talkers = []
    for voice in rng.choice(len(sources.voices), config.talkers, replace=False, p=_chances(sources)):
        dry = repeat_speech(sources.voices[voice].utterances, rng, samples)
        dry = color(dry, slow_waves_db(rng, TONE_SIZE, scenes.tone_db))
        azimuth, distance_m = float(rng.uniform(0.0, 360.0)), float(rng.uniform(*scenes.distance_m))
        moving = bool(rng.random() < scenes.moving_prob)
        talker = Talker(int(voice), azimuth, distance_m, moving, 0.0, 0.0, config.seconds)
        talkers.append(_scaled(environment.render_talker(dry, talker, rng)[0]))
    noise = _scaled(diffuse_noise(sources, head, rng, samples, 0.0))
    return {"speech": np.stack(talkers).ravel(), "noise": noise.ravel()}


def _chances(sources: SceneSources) -> np.ndarray:
    """Return the probability of each voice, proportional to the length of its recordings up to a limit."""
    lengths = [sum(sound.size for sound in voice.utterances) for voice in sources.voices]
    weights = np.minimum(np.array(lengths) / SAMPLE_RATE, _MOST_S)
    return np.asarray(weights / weights.sum())


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _scaled(sound: np.ndarray) -> np.ndarray:
    """Return 16-bit sound whose peak is `_PEAK`."""
    return to_pcm(sound * np.float32(_PEAK / max(float(np.abs(sound).max()), 1e-9)))


def _excerpt(sound: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Return a random excerpt (2, samples) float32 of (2, T) int16, avoiding pauses if possible."""
    least = 10.0 ** (_PAUSE_DB / 10.0) * float(np.mean(np.square(sound[0], dtype=np.float32)))
    for _ in range(_TRIES):
        begins = int(rng.integers(sound.shape[1] - samples + 1))
        excerpt = sound[:, begins : begins + samples].astype(np.float32)
        if float(np.mean(np.square(excerpt[0]))) > least:
            break
    return excerpt


def _silence_outside(sound: np.ndarray, rng: np.random.Generator, overlap: tuple[float, float]) -> None:
    """Silence (2, T) in place outside one stretch, whose fraction of the length is drawn from `overlap`."""
    length = round(rng.uniform(*overlap) * sound.shape[1])
    begins = int(rng.integers(sound.shape[1] - length + 1))
    ends = begins + length
    envelope = np.zeros(sound.shape[1], dtype=np.float32)
    envelope[begins:ends] = 1.0
    ramp = np.linspace(0.0, 1.0, _FADE, dtype=np.float32)
    if begins and length > 2 * _FADE:
        envelope[begins : begins + _FADE] = ramp
    if ends < len(envelope) and length > 2 * _FADE:
        envelope[ends - _FADE : ends] = ramp[::-1]
    sound *= envelope


def _gain(sound: np.ndarray, level_db: float) -> np.float32:
    """Return the factor that sets the mean level of the active part of (2, T), in dB relative to full scale."""
    active = sound[:, np.any(sound != 0.0, axis=0)]
    power = float(np.mean(np.square(active, dtype=np.float64))) if active.size else 0.0
    return np.float32(10.0 ** (level_db / 20.0) / np.sqrt(power)) if power else np.float32(0.0)
