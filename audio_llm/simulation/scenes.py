"""Rendered scenes for target-speaker extraction: the mixture, the target's image in it, the noisy enrollment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from audio_llm.simulation.binaural import STEP_S, draw_path, path_steps, render, render_moving
from audio_llm.simulation.filters import color, slow_waves_db
from audio_llm.simulation.heads import SAMPLE_RATE, Head, vary
from audio_llm.simulation.rooms import Room, respond
from audio_llm.simulation.scene_plan import SceneConfig, ScenePlan, SceneSources, Talker, Voice, plan_scene

_Rendered = tuple[np.ndarray, float]  # binaural image of a talker (2, T), and the mean speed in degrees per second
_RenderTalker = Callable[[np.ndarray, Talker, np.random.Generator], _Rendered]

TONE_SIZE = 256  # samples of a source's coloration filter
_NOISE_DIRECTIONS = 6  # directions of one noise, to make it diffuse
REFERENCE_DB = -27.0  # level of the target relative to full scale, before the overall level is drawn
_GAP_S = (0.1, 0.4)  # between two utterances of a talker


@dataclass(frozen=True)
class Scene:
    """A rendered scene; all sounds at 16 kHz, left ear first.

    Attributes:
        plan: The parameters of the scene.
        mixture: (2, T) float32, the binaural mixture.
        target: (2, T) float32, the target's reverberant image in the mixture; zeros where it is absent.
        interferers: (K, 2, T) float32, the images of the other talkers.
        speeds_deg_s: Mean angular speed of each talker around the head in the mixture, the target first.
        enrollment: (2, N) float32, the noisy enrollment recording.
        enrollment_target: (2, N) float32, the target's image in the enrollment recording.
        clean: (N,) float32, the target's speech in the enrollment recording, without head, room and noise.
    """

    plan: ScenePlan
    mixture: np.ndarray
    target: np.ndarray
    interferers: np.ndarray
    speeds_deg_s: tuple[float, ...]
    enrollment: np.ndarray
    enrollment_target: np.ndarray
    clean: np.ndarray


def make_scene(
    sources: SceneSources,
    config: SceneConfig,
    seed: int,
    index: int,
    with_enrollment: bool = True,
    with_mixture: bool = True,
) -> Scene:
    """Return a scene, a pure function of the arguments.

    Leaving out the enrollment recording or the mixture halves the time; the sounds left out are then empty.

    Raises:
        DataError: There are fewer voices than talkers in a scene, or no head.
    """
    return render_scene(sources, config, plan_scene(sources, config, seed, index), with_enrollment, with_mixture)


def render_scene(
    sources: SceneSources, config: SceneConfig, plan: ScenePlan, with_enrollment: bool = True, with_mixture: bool = True
) -> Scene:
    """Render a plan; mixture and enrollment do not depend on whether the other one is rendered."""
    rng, enrollment_rng, apart_rng = (np.random.default_rng([*plan.seed, part]) for part in (1, 2, 3))
    measured = None if plan.measured_room is None else sources.measured_rooms[plan.measured_room]
    environment = Environment(vary(sources.heads[plan.head], apart_rng, config.head), plan.room, measured)
    samples, enrollment_samples = round(config.seconds * SAMPLE_RATE), round(config.enrollment_seconds * SAMPLE_RATE)
    clean, mixture_speech = _disjoint_speech(
        sources.voices[plan.talkers[0].voice], apart_rng, enrollment_samples, samples
    )

    def render_talkers(
        first: np.ndarray, talkers: Sequence[Talker], snr_db: float, render_one: _RenderTalker, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
        """Return the image of each talker (K, 2, T), the mixture with noise (2, T), and the speeds."""
        interferers = [repeat_speech(sources.voices[each.voice].utterances, rng, first.size) for each in talkers[1:]]
        dry = [color(sound, slow_waves_db(rng, TONE_SIZE, config.tone_db)) for sound in (first, *interferers)]
        rendered, speeds = zip(*(render_one(*pair, rng) for pair in zip(dry, talkers, strict=True)), strict=True)
        speech = _set_levels(rendered, talkers, first.size)
        together = speech.sum(axis=0) + diffuse_noise(sources, environment.head, rng, first.size, snr_db)
        gain = min(10.0 ** (plan.overall_db / 20.0), 0.99 / max(float(np.abs(together).max()), 1e-9))
        return np.float32(gain) * speech, np.float32(gain) * together, speeds

    empty = np.zeros((1, 2, 0), dtype=np.float32)
    (speech, mixture), (enrollment_images, enrollment) = (empty, empty[0]), (empty, empty[0])
    speeds: tuple[float, ...] = ()
    if with_mixture:
        render_one = environment.render_talker
        speech, mixture, speeds = render_talkers(mixture_speech, plan.talkers, plan.snr_db, render_one, rng)
    if with_enrollment:
        render_one = environment.render_enrollment_talker
        enrollment_images, enrollment, _ = render_talkers(
            clean, plan.enrollment, plan.enrollment_snr_db, render_one, enrollment_rng
        )
    return Scene(plan, mixture, speech[0], speech[1:], speeds, enrollment, enrollment_images[0], clean)


@dataclass(frozen=True)
class Environment:
    """Head and room of a scene."""

    head: Head
    room: Room
    measured: Head | None

    def render_talker(self, waveform: np.ndarray, talker: Talker, rng: np.random.Generator) -> _Rendered:
        """Return the image of a talker of the mixture, silent before its start and after its end."""
        waveform = waveform.copy()
        waveform[: round(talker.starts_s * SAMPLE_RATE)] = 0.0
        waveform[round(talker.ends_s * SAMPLE_RATE) :] = 0.0
        if self.measured is not None:
            return render(waveform, self.measured.at(talker.azimuth)), 0.0
        if not talker.moving:
            response = respond(self.head, self.room, talker.azimuth, talker.distance_m, rng)
            return render(waveform, response.whole), 0.0
        return self._moving(waveform, talker, draw_path(rng, path_steps(waveform.size), talker.azimuth), rng)

    def render_enrollment_talker(self, waveform: np.ndarray, talker: Talker, rng: np.random.Generator) -> _Rendered:
        """Return the image of a talker of the enrollment recording; the target sways with the wearer's head."""
        if not talker.moving or self.measured is not None:
            return self.render_talker(waveform, talker, rng)
        steps = path_steps(waveform.size)
        knots = talker.azimuth * rng.uniform(0.6, 1.0, max(2, steps // 20))
        path = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, knots.size), knots)
        return self._moving(waveform, talker, path, rng)

    def _moving(self, waveform: np.ndarray, talker: Talker, path: np.ndarray, rng: np.random.Generator) -> _Rendered:
        rendered = render_moving(waveform, self.head, self.room, path, talker.distance_m, rng)
        return rendered, float(np.abs(np.diff(path)).mean() / STEP_S)


def _disjoint_speech(
    voice: Voice, rng: np.random.Generator, enrollment: int, mixture: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return different speech for enrollment and mixture, of so many samples; a single recording is cut in two."""
    if len(voice.utterances) == 1:
        (only,) = voice.utterances
        middle = round(only.size * enrollment / (enrollment + mixture))
        first, rest = [only[:middle]], [only[middle:]]
    else:
        order = [voice.utterances[i] for i in rng.permutation(len(voice.utterances))]
        first = order[:1]
        while len(order) - len(first) > 1 and sum(part.size for part in first) < enrollment:
            first.append(order[len(first)])
        rest = order[len(first) :]
    return repeat_speech(first, rng, enrollment), repeat_speech(rest, rng, mixture)


def repeat_speech(utterances: Sequence[np.ndarray], rng: np.random.Generator, samples: int) -> np.ndarray:
    """Return utterances in random order, concatenated with pauses; (samples,) float32.

    Utterances are repeated if they are too short: otherwise silence would identify speakers with few recordings.
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
    """Return (T,) float32 in -1..1 from float32 or 16-bit samples."""
    return waveform.astype(np.float32) / 32768.0 if waveform.dtype == np.int16 else waveform


def _set_levels(rendered: Sequence[np.ndarray], talkers: Sequence[Talker], samples: int) -> np.ndarray:
    """Set the level of each talker's active part, the mean over both ears; (K, 2, T) float32."""
    out = np.zeros((len(rendered), 2, samples), dtype=np.float32)
    for row, (sound, talker) in enumerate(zip(rendered, talkers, strict=True)):
        active = sound[:, round(talker.starts_s * SAMPLE_RATE) : round(talker.ends_s * SAMPLE_RATE)]
        power = float(np.mean(active.astype(np.float64) ** 2)) if active.size else 0.0
        if power > 0.0:
            out[row] = sound * np.float32(10.0 ** ((REFERENCE_DB + talker.level_db) / 20.0) / np.sqrt(power))
    return out


def diffuse_noise(
    sources: SceneSources, head: Head, rng: np.random.Generator, samples: int, snr_db: float
) -> np.ndarray:
    """Return diffuse noise at this SNR below the target's level; (2, samples) float32."""
    if not sources.noises:
        return np.zeros((2, samples), dtype=np.float32)
    recording = sources.noises[int(rng.integers(len(sources.noises)))]
    turn = rng.uniform(0.0, 360.0)
    rendered = np.zeros((2, samples), dtype=np.float32)
    for number in range(_NOISE_DIRECTIONS):
        begins = int(rng.integers(recording.size))
        piece = _as_float(np.resize(np.roll(recording, -begins), samples))
        rendered += render(piece, head.at(turn + number * 360.0 / _NOISE_DIRECTIONS))
    power = float(np.mean(rendered.astype(np.float64) ** 2))
    if power == 0.0:
        return rendered
    return rendered * np.float32(10.0 ** ((REFERENCE_DB - snr_db) / 20.0) / np.sqrt(power))
