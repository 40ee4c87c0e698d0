"""Scenes for target-speech hearing, in sound: what both ears get, the target's share of it, and the noisy look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.simulation.binaural import STEP_S, draw_path, path_steps, render, render_moving
from audio_llm.simulation.filters import colour, slow_waves_db
from audio_llm.simulation.heads import SAMPLE_RATE, Head, vary
from audio_llm.simulation.rooms import Room, respond
from audio_llm.simulation.scene_plan import SceneConfig, ScenePlan, SceneSources, Talker, Voice, plan_scene

_Heard = tuple[np.ndarray, float]  # a person in both ears, (2, T), and the mean speed, degrees a second
_Hear = Callable[[np.ndarray, Talker, np.random.Generator], _Heard]

TONE_SIZE = 256  # samples of the filter that changes the tone of a source
_NOISE_DIRECTIONS = 6  # that a noise comes from, so that it has none
REFERENCE_DB = -27.0  # level of the target, below full scale, before the overall level is drawn
_GAP_S = (0.1, 0.4)  # between two utterances of a person


@dataclass(frozen=True)
class Scene:
    """A rendered scene; all sounds at 16 kHz, left ear first.

    Attributes:
        plan: What was drawn.
        mixture: (2, T) float32, what the ears get.
        target: (2, T) float32, the target's share of it, with its room; zeros where it is absent.
        others: (K, 2, T) float32, that of each other person.
        speeds_deg_s: How fast each person turns around the listener in the mixture, on average, the target first.
        look: (2, N) float32, the noisy look.
        look_target: (2, N) float32, the target's share of the look.
        clean: (N,) float32, what the target said in the look, without head, room and noise.
    """

    plan: ScenePlan
    mixture: np.ndarray
    target: np.ndarray
    others: np.ndarray
    speeds_deg_s: tuple[float, ...]
    look: np.ndarray
    look_target: np.ndarray
    clean: np.ndarray


def make_scene(
    sources: SceneSources,
    config: SceneConfig,
    seed: int,
    index: int,
    with_look: bool = True,
    with_mixture: bool = True,
) -> Scene:
    """Return a scene, a pure function of the arguments.

    Without its look or its mixture it is there in half the time; the sounds left out are then empty.

    Raises:
        DataError: There are fewer voices than people in a scene, or no head.
    """
    return render_scene(sources, config, plan_scene(sources, config, seed, index), with_look, with_mixture)


def render_scene(
    sources: SceneSources, config: SceneConfig, plan: ScenePlan, with_look: bool = True, with_mixture: bool = True
) -> Scene:
    """Return the sound of a plan; what one part is does not depend on whether the other is wanted."""
    rng, look_rng, apart_rng = (np.random.default_rng([*plan.seed, part]) for part in (1, 2, 3))
    measured = None if plan.measured_room is None else sources.measured_rooms[plan.measured_room]
    place = Place(vary(sources.heads[plan.head], apart_rng, config.head), plan.room, measured)
    samples, look_samples = round(config.seconds * SAMPLE_RATE), round(config.look_seconds * SAMPLE_RATE)
    clean, said = _apart(sources.voices[plan.talkers[0].voice], apart_rng, look_samples, samples)

    def render_people(
        first: np.ndarray, people: Sequence[Talker], snr_db: float, hear: _Hear, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
        """Return each person in both ears (K, 2, T), all with noise (2, T), and the speeds."""
        others = [repeat_speech(sources.voices[talker.voice].utterances, rng, first.size) for talker in people[1:]]
        dry = [colour(sound, slow_waves_db(rng, TONE_SIZE, config.tone_db)) for sound in (first, *others)]
        heard, speeds = zip(*(hear(*who, rng) for who in zip(dry, people, strict=True)), strict=True)
        speech = _levelled(heard, people, first.size)
        together = speech.sum(axis=0) + diffuse_noise(sources, place.head, rng, first.size, snr_db)
        gain = min(10.0 ** (plan.overall_db / 20.0), 0.99 / max(float(np.abs(together).max()), 1e-9))
        return np.float32(gain) * speech, np.float32(gain) * together, speeds

    empty = np.zeros((1, 2, 0), dtype=np.float32)
    (speech, mixture), (looked, look) = (empty, empty[0]), (empty, empty[0])
    speeds: tuple[float, ...] = ()
    if with_mixture:
        speech, mixture, speeds = render_people(said, plan.talkers, plan.snr_db, place.hear, rng)
    if with_look:
        looked, look, _ = render_people(clean, plan.look, plan.look_snr_db, place.look, look_rng)
    return Scene(plan, mixture, speech[0], speech[1:], speeds, look, looked[0], clean)


@dataclass(frozen=True)
class Place:
    """Where a scene takes place."""

    head: Head
    room: Room
    measured: Head | None

    def hear(self, waveform: np.ndarray, talker: Talker, rng: np.random.Generator) -> _Heard:
        """Return a person of the mixture, silent outside the person's time."""
        waveform = waveform.copy()
        waveform[: round(talker.starts_s * SAMPLE_RATE)] = 0.0
        waveform[round(talker.ends_s * SAMPLE_RATE) :] = 0.0
        if self.measured is not None:
            return render(waveform, self.measured.at(talker.azimuth)), 0.0
        if not talker.moving:
            response = respond(self.head, self.room, talker.azimuth, talker.distance_m, rng)
            return render(waveform, response.whole), 0.0
        return self._moving(waveform, talker, draw_path(rng, path_steps(waveform.size), talker.azimuth), rng)

    def look(self, waveform: np.ndarray, talker: Talker, rng: np.random.Generator) -> _Heard:
        """Return a person of the look; the one looked at sways with the head of the looker."""
        if not talker.moving or self.measured is not None:
            return self.hear(waveform, talker, rng)
        steps = path_steps(waveform.size)
        knots = talker.azimuth * rng.uniform(0.6, 1.0, max(2, steps // 20))
        path = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, knots.size), knots)
        return self._moving(waveform, talker, path, rng)

    def _moving(self, waveform: np.ndarray, talker: Talker, path: np.ndarray, rng: np.random.Generator) -> _Heard:
        heard = render_moving(waveform, self.head, self.room, path, talker.distance_m, rng)
        return heard, float(np.abs(np.diff(path)).mean() / STEP_S)


def _apart(voice: Voice, rng: np.random.Generator, look: int, mixture: int) -> tuple[np.ndarray, np.ndarray]:
    """Return speech for the look and other speech for the mixture; a single recording is cut in two."""
    if len(voice.utterances) == 1:
        (only,) = voice.utterances
        middle = round(only.size * look / (look + mixture))
        first, rest = [only[:middle]], [only[middle:]]
    else:
        order = [voice.utterances[i] for i in rng.permutation(len(voice.utterances))]
        first = order[:1]
        while len(order) - len(first) > 1 and sum(part.size for part in first) < look:
            first.append(order[len(first)])
        rest = order[len(first) :]
    return repeat_speech(first, rng, look), repeat_speech(rest, rng, mixture)


def repeat_speech(utterances: Sequence[np.ndarray], rng: np.random.Generator, samples: int) -> np.ndarray:
    """Return utterances in random order, one after another until there is enough; (samples,) float32.

    What is too short is said again after a pause: a person of few recordings would else be told by silence.
    """
    parts: list[np.ndarray] = []
    length = 0
    order: list[int] = []
    while length < samples:
        order = order or [int(i) for i in rng.permutation(len(utterances))]
        utterance = utterances[order.pop()]
        extra = utterance.size - samples
        begins = int(rng.integers(0, extra + 1)) if extra > 0 and not parts else 0
        pause = np.zeros(int(rng.uniform(*_GAP_S) * SAMPLE_RATE), dtype=np.float32)
        parts += [_as_float(utterance[begins : begins + samples]), pause]
        length += utterance.size - begins + pause.size
    return np.concatenate(parts)[:samples]


def _as_float(waveform: np.ndarray) -> np.ndarray:
    """Return (T,) float32 in -1..1 of that or of 16-bit samples."""
    return waveform.astype(np.float32) / 32768.0 if waveform.dtype == np.int16 else waveform


def _levelled(heard: Sequence[np.ndarray], talkers: Sequence[Talker], samples: int) -> np.ndarray:
    """Set each person's level while talking, the mean of both ears; (K, 2, T) float32."""
    out = np.zeros((len(heard), 2, samples), dtype=np.float32)
    for row, (sound, talker) in enumerate(zip(heard, talkers, strict=True)):
        active = sound[:, round(talker.starts_s * SAMPLE_RATE) : round(talker.ends_s * SAMPLE_RATE)]
        power = float(np.mean(active.astype(np.float64) ** 2)) if active.size else 0.0
        if power > 0.0:
            out[row] = sound * np.float32(10.0 ** ((REFERENCE_DB + talker.level_db) / 20.0) / np.sqrt(power))
    return out


def diffuse_noise(
    sources: SceneSources, head: Head, rng: np.random.Generator, samples: int, snr_db: float
) -> np.ndarray:
    """Return noise from all around, so much below the target's level; (2, samples) float32."""
    if not sources.noises:
        return np.zeros((2, samples), dtype=np.float32)
    recording = sources.noises[int(rng.integers(len(sources.noises)))]
    turn = rng.uniform(0.0, 360.0)
    heard = np.zeros((2, samples), dtype=np.float32)
    for number in range(_NOISE_DIRECTIONS):
        begins = int(rng.integers(recording.size))
        piece = _as_float(np.resize(np.roll(recording, -begins), samples))
        heard += render(piece, head.at(turn + number * 360.0 / _NOISE_DIRECTIONS))
    power = float(np.mean(heard.astype(np.float64) ** 2))
    if power == 0.0:
        return heard
    return heard * np.float32(10.0 ** ((REFERENCE_DB - snr_db) / 20.0) / np.sqrt(power))
