"""Training of the choice, and of choice, separation and enrolment together.

In three steps, each from the model of the one before: the choice on streams made of the talkers themselves with some
of the others in them; choice and speaker encoder on the streams of the trained trunk; and everything at once.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.simulation.scene_plan import SceneConfig, SceneSources
from audio_llm.simulation.scenes import make_scene
from audio_llm.simulation.sources import read_sources
from audio_llm.sound_metrics import si_sdr_db, snr_db
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.tse.enrolment import Enrolled, EnrolmentEncoder
from audio_llm.tse.extractor import Extractor
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.hearing import Heard, HearingConfig, TargetHearing
from audio_llm.tse.losses import best_order, in_order, leak_db, separation_loss, talking
from audio_llm.tse.models import save_model
from audio_llm.tse.scene_batches import VALIDATION_SEED, SceneProcesses
from audio_llm.tse.selector import weigh
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.teacher_vectors import read_vectors
from audio_llm.tse.train_separator import aligned, slots, talkers_by_stream

_QUIET = 1e-7  # mean square of a chunk, about -70 dB: nobody talks in it
_LOOK_PEOPLE = 3  # in a look, at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HearingTrainingConfig:
    """How to train.

    Attributes:
        model: Sizes of the networks.
        training: The loop's settings.
        scenes: How scenes are drawn.
        streams: `made` of the talkers with leaks, those of the `frozen` trunk, or `joint`: the trunk learns as well.
        order: Of the talkers among the streams, as the trunk was trained; `made` streams go from left to right.
        noisy_share: Of scenes whose enrolment is that of the noisy look; the others have the teacher's vector, as
            have those where nobody is in front.
        batch_scenes: Scenes in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new scenes.
        validation_scenes: Scenes of the tuning part at each validation.
        sound_weight: Of the quality of the sound chosen, where the trunk learns.
        separation_weight: Of the separation's loss, where the trunk learns.
        enrolment_weight: Of the enrolment's distance from the teacher, where there are looks.
        vector_weight: Of the distance between a talker's stream's vector and the teacher's.
        temperature: Of the comparison of an enrolment with other people.
        leak_db: By how much the others in a made stream are weaker.
        seed: Of the scenes.
        processes: That make the scenes.
    """

    model: HearingConfig = field(default_factory=HearingConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=5_000, learning_rate=3e-4))
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(seconds=4.096, look_seconds=4.096))
    streams: Literal["made", "frozen", "joint"] = "made"
    order: Literal["location", "best"] = "location"
    noisy_share: float = 0.0
    batch_scenes: int = 8
    epoch_batches: int = 1000
    validation_scenes: int = 48
    sound_weight: float = 0.2
    separation_weight: float = 0.1
    enrolment_weight: float = 1.0
    vector_weight: float = 1.0
    temperature: float = 0.07
    leak_db: tuple[float, float] = (6.0, 20.0)
    seed: int = 3
    processes: int = 1

    @property
    def looks(self) -> bool:
        """Whether looks are heard at all."""
        return self.streams != "made"


class HearingBatch(NamedTuple):
    """Scenes to learn from.

    Attributes:
        mixture: (B, 2, T) float32.
        talkers: (B, K, 2, T) float32, by stream, silence where there is nobody.
        streams: (B, K, 2, T) float32, the talkers with leaks.
        place: (B,) int64, the target's stream.
        people: (B, K) int64, who is in each stream; -1 for nobody.
        wanted: (B,) int64, the target.
        look: (B, 2, L) float32; empty where none is heard.
        front: (B, 2, L) float32, the target's share of it.
        beside: (B, 3) int64, who is in the look, the target first; -1 for nobody.
    """

    mixture: Tensor
    talkers: Tensor
    streams: Tensor
    place: Tensor
    people: Tensor
    wanted: Tensor
    look: Tensor
    front: Tensor
    beside: Tensor


class _Result(NamedTuple):
    """What the networks make of a batch; no enrolment where looks are not heard."""

    heard: Heard
    enrolled: Enrolled | None


def train_hearing(
    pack: Path,
    tuning: Path,
    output: Path,
    config: HearingTrainingConfig,
    *,
    start: TargetHearing | None = None,
    trunk: Extractor | None = None,
    speaker: SpeakerEncoder | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train; `output/best` becomes the model directory with the lowest loss on the tuning part.

    Args:
        pack: Packed sources to learn from, with vectors.
        tuning: Packed sources that decide which model is the best, with vectors.
        output: Folder of the training.
        config: How to train.
        start: A model to start from.
        trunk: A separator to start from; takes the place of that in `start`.
        speaker: A speaker encoder to start from; takes the place of that in `start`.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: A pack is missing, has no vectors or too few people.
    """
    sources, held_out = read_sources(pack), read_sources(tuning)
    vectors, held_out_vectors = read_vectors(pack, sources.voices), read_vectors(tuning, held_out.voices)
    config = replace(config, scenes=_whole_chunks(config.scenes))
    torch.manual_seed(config.training.seed)
    model = TargetHearing(config.model)
    if start is not None:
        model.load_state_dict(start.state_dict())
    if speaker is not None:
        model.selector.speaker.load_state_dict(speaker.state_dict())
    if trunk is not None:
        model.extractor.load_state_dict(trunk.state_dict())
    model.extractor.requires_grad_(config.streams == "joint")
    model.selector.speaker.requires_grad_(config.streams != "made")  # what is new learns faster alone
    logger.info("%d people, %d parameters", len(sources.voices), sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: HearingBatch) -> Tensor:
        result = network(batch, vectors.to(batch.mixture.device))
        return hearing_loss(result, _by_stream(batch, result, config), vectors, config)

    with SceneProcesses(pack, config.processes) as scenes:
        return train(
            _Hear(model, config),
            fresh_batches(config.batch_scenes, config.epoch_batches),
            loss,
            lambda network: validate(_model(network), held_out, held_out_vectors, config),
            output,
            config.training,
            max_minutes=max_minutes,
            resume=resume,
            device=device,
            save=lambda network, folder: _save(_model(network), folder, config),
            prepare=lambda chosen: scenes.make(make_batch, config, config.seed, chosen),
            count_items=lambda batch: (batch.mixture.numel() + batch.look.numel()) / 2 / SAMPLE_RATE,
        )


def _whole_chunks(scenes: SceneConfig) -> SceneConfig:
    seconds, look_seconds = (
        round(length * SAMPLE_RATE) // CHUNK * CHUNK / SAMPLE_RATE for length in (scenes.seconds, scenes.look_seconds)
    )
    return replace(scenes, seconds=seconds, look_seconds=look_seconds)


class _Hear(nn.Module):
    """The model as the loop calls it: with made streams, its trunk stands by."""

    def __init__(self, model: TargetHearing, config: HearingTrainingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: HearingBatch, vectors: Tensor) -> _Result:
        clean = vectors[batch.wanted]
        if not self.config.looks:
            logits, found = self.model.selector(batch.streams, clean)
            return _Result(Heard(weigh(batch.streams, logits), batch.streams, logits, found), None)
        enrolled = EnrolmentEncoder(self.model).encode(batch.look)
        noisy = torch.arange(len(clean), device=clean.device) < round(self.config.noisy_share * len(clean))
        person = torch.where((noisy & talking(batch.front))[:, None], enrolled.vector.to(clean.dtype), clean)
        return _Result(self.model(batch.mixture, person), enrolled)


def _model(network: nn.Module) -> TargetHearing:
    assert isinstance(network, _Hear)
    return network.model


def make_batch(sources: SceneSources, config: HearingTrainingConfig, seed: int, indices: range) -> HearingBatch:
    """Return these scenes."""
    count = config.model.extractor.outputs
    scenes = [make_scene(sources, config.scenes, seed, index, with_look=config.looks) for index in indices]
    talkers = np.stack([talkers_by_stream(scene, count) for scene in scenes])
    people = np.full((len(scenes), count), -1, dtype=np.int64)
    beside = np.full((len(scenes), _LOOK_PEOPLE), -1, dtype=np.int64)
    for row, look, scene in zip(people, beside, scenes, strict=True):
        row[slots(scene, count)] = [talker.voice for talker in scene.plan.talkers]
        look[: len(scene.plan.look)] = [talker.voice for talker in scene.plan.look]
    mixture = np.stack([scene.mixture for scene in scenes])
    draws = [
        np.random.default_rng([seed, index, 4]).uniform(*config.leak_db, (count, count, 1, 1)) for index in indices
    ]
    leaks_db = -np.stack(draws)
    shares = np.where(np.eye(count, dtype=bool)[:, :, None, None], 1.0, 10.0 ** (leaks_db / 20.0)).astype(np.float32)
    background = (mixture - talkers.sum(axis=1))[:, None] * 10.0 ** (leaks_db[:, :, 0] / 20.0)
    streams = (shares * talkers[:, None]).sum(axis=2) + background
    return HearingBatch(
        torch.from_numpy(mixture),
        torch.from_numpy(talkers),
        torch.from_numpy(streams.astype(np.float32)),
        torch.tensor([int(slots(scene, count)[0]) for scene in scenes]),
        torch.from_numpy(people),
        torch.tensor([scene.plan.talkers[0].voice for scene in scenes]),
        torch.from_numpy(np.stack([scene.look for scene in scenes])),
        torch.from_numpy(np.stack([scene.look_target for scene in scenes])),
        torch.from_numpy(beside),
    )


def _by_stream(batch: HearingBatch, result: _Result, config: HearingTrainingConfig) -> HearingBatch:
    """Return the batch with everybody in the stream that came nearest."""
    if config.order == "location" or not config.looks:
        return batch
    order = best_order(*aligned(result.heard.streams, batch.talkers, batch.mixture))
    return batch._replace(
        talkers=in_order(batch.talkers, order),
        people=in_order(batch.people, order),
        place=(order == batch.place[:, None]).int().argmax(1),
    )


def hearing_loss(result: _Result, batch: HearingBatch, vectors: Tensor, config: HearingTrainingConfig) -> Tensor:
    """Return how wrong the choice and how far the vectors are, and, where the trunk learns, how bad the sound is.

    Args:
        result: What the networks give.
        batch: The scenes.
        vectors: (V, 256), the teacher's.
        config: Weights.
    """
    heard, vectors = result.heard, vectors.to(batch.mixture.device)
    labels, counted = _labels(heard, batch)
    choice = functional.cross_entropy(heard.logits.float().transpose(1, 2), labels, reduction="none")
    loss = (choice * counted).sum() / counted.sum().clamp_min(1.0)
    busy = _busy(batch.talkers) * (batch.people >= 0)[:, None]  # (B, N, K)
    near = (heard.vectors.float() * vectors[batch.people.clamp_min(0)][:, None]).sum(-1)
    loss = loss + config.vector_weight * ((1.0 - near) * busy).sum() / busy.sum().clamp_min(1.0)
    if result.enrolled is not None:
        loss = loss + config.enrolment_weight * _enrolment_loss(result.enrolled.vector.float(), batch, vectors, config)
    if config.streams != "joint" or result.enrolled is None:
        return loss
    target = batch.talkers[torch.arange(len(batch.place)), batch.place]
    streams = separation_loss(*aligned(heard.streams, batch.talkers, batch.mixture))
    front = separation_loss(*aligned(result.enrolled.front[:, None], batch.front[:, None], batch.look))
    sound, target, mixture = aligned(heard.sound, target, batch.mixture)
    ratios = -0.5 * (snr_db(sound, target) + si_sdr_db(sound, target)).mean(-1)
    quality = torch.where(talking(target), ratios, 0.3 * leak_db(sound, mixture).mean(-1)).mean()
    return loss + config.sound_weight * quality + config.separation_weight * (streams + front)


def _enrolment_loss(found: Tensor, batch: HearingBatch, vectors: Tensor, config: HearingTrainingConfig) -> Tensor:
    """Return the distance (B, 256) to the teacher's vectors, and how badly everybody around is told apart."""
    there = talking(batch.front).float()
    distance = ((1.0 - (found * vectors[batch.wanted]).sum(-1)) * there).sum() / there.sum().clamp_min(1.0)
    around = torch.cat([batch.people, batch.beside], dim=1).flatten()
    candidates = around[around >= 0].unique()
    scores = found @ vectors[candidates].T / config.temperature
    told = functional.cross_entropy(scores, torch.searchsorted(candidates, batch.wanted), reduction="none")
    return 2.0 * distance + 0.5 * (told * there).sum() / there.sum().clamp_min(1.0)


def _busy(talkers: Tensor) -> Tensor:
    """Return where each stream's talker is heard: (B, N, K) float32 of (B, K, 2, T)."""
    power = talkers.mean(dim=2).unflatten(-1, (-1, CHUNK)).square().mean(-1)
    return (power > _QUIET).float().transpose(1, 2)


def _labels(heard: Heard, batch: HearingBatch) -> tuple[Tensor, Tensor]:
    """Return the right choice (B, N) of each chunk, and whether it counts: silence, where the target never talks."""
    busy = _busy(batch.talkers)
    present = busy.gather(2, batch.place[:, None, None].expand(-1, busy.shape[1], 1)).squeeze(2)  # (B, N)
    never = present.sum(dim=1, keepdim=True) == 0
    nobody = heard.logits.shape[-1] - 1
    labels = torch.where(never, nobody, batch.place[:, None]).expand_as(present)
    return labels, torch.where(never, torch.ones_like(present), present)


@torch.inference_mode()
def validate(
    model: TargetHearing, sources: SceneSources, vectors: Tensor, config: HearingTrainingConfig
) -> dict[str, float]:
    """Return measures on scenes that are always the same.

    Loss, the mean weight of the target's stream, the share of scenes where it is above a half, and where looks are
    heard: the share of looks nearer to their person than to the mixture's others, the level of the front where there
    is somebody and where there is nobody, the SI-SDR improvement of the target
    with the clean, the noisy, another person's and no enrolment and of the right stream, the share of scenes made
    worse, and the cosine between the outputs for the target and for another person.
    """
    device = next(model.parameters()).device
    vectors = vectors.to(device)
    rows: dict[str, list[float]] = {}

    def note(name: str, values: Tensor) -> None:
        rows.setdefault(name, []).extend(values.flatten().tolist())

    for chosen in fixed_batches(config.batch_scenes, config.validation_scenes):
        batch = HearingBatch(*(part.to(device) for part in make_batch(sources, config, VALIDATION_SEED, chosen)))
        result = _Hear(model, replace(config, noisy_share=1.0))(batch, vectors)
        batch = _by_stream(batch, result, config)
        note("loss", hearing_loss(result, batch, vectors, config).expand(len(chosen)))
        labels, counted = _labels(result.heard, batch)
        weight = torch.softmax(result.heard.logits, -1).gather(2, labels[..., None]).squeeze(-1)
        share = (weight * counted).sum(1) / counted.sum(1).clamp_min(1.0)
        note("weight", share)
        note("told", (share > 0.5).float())
        if result.enrolled is None:
            continue
        near = (result.enrolled.vector[:, None] * vectors[batch.people.clamp_min(0)]).sum(-1)
        others = near.masked_fill((batch.people < 0) | (batch.people == batch.wanted[:, None]), -1.0).amax(1)
        seen = talking(batch.front)
        note("look", ((result.enrolled.vector * vectors[batch.wanted]).sum(-1) > others)[seen].float())
        note("front_db", result.enrolled.front_db[seen])
        note("nobody_db", result.enrolled.front_db[~seen])
        target = batch.talkers[torch.arange(len(batch.place)), batch.place]
        there = talking(target)
        before = si_sdr_db(batch.mixture[..., :-OVERLAP], target[..., :-OVERLAP])

        def gain(sound: Tensor, target: Tensor = target, before: Tensor = before, there: Tensor = there) -> Tensor:
            return (si_sdr_db(sound[..., OVERLAP:], target[..., :-OVERLAP]) - before).mean(-1)[there]

        streams = result.heard.streams
        listened = model.selector.listen(streams)
        others_wanted, wanted = vectors[_someone_else(batch)], vectors[batch.wanted]
        swapped, clean, zeroed = (
            weigh(streams, model.selector.choose(listened, people)[0])
            for people in (others_wanted, wanted, torch.zeros_like(wanted))
        )
        note("right_stream_db", gain(streams[torch.arange(len(streams)), batch.place]))
        for name, sound in (("noisy", result.heard.sound), ("clean", clean), ("swapped", swapped), ("zeroed", zeroed)):
            note(f"{name}_db", gain(sound))
        note("wrong", (gain(result.heard.sound) < 0).float())
        note("cosine", functional.cosine_similarity(clean, swapped, dim=-1).mean(-1))
    return {name: float(np.mean(values)) for name, values in rows.items() if values}


def _someone_else(batch: HearingBatch) -> Tensor:
    """Return another talker of each scene, (B,) int64."""
    others = batch.people.clone()
    others[torch.arange(len(others)), batch.place] = -1
    return others.amax(dim=1)


def _save(model: TargetHearing, folder: Path, config: HearingTrainingConfig) -> None:
    provenance: dict[str, Any] = {"training": asdict(config)}
    save_model(folder, model, "# Target-speech hearing\n\nOne person out of a binaural mixture.\n", provenance)
