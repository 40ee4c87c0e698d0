"""Training of the speaker selection, and joint training of selection, separation and enrollment.

There are three steps, each from the model of the one before: the selection on synthetic streams, which are the talkers
with leakage of the other talkers; selection and speaker encoder on the streams of the trained separator; all networks.
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
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.tse.enrollment import EnrollmentEncoder, EnrollmentOutput
from audio_llm.tse.extractor import Extractor
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.losses import best_order, in_order, leak_db, separation_loss, talking
from audio_llm.tse.models import save_model
from audio_llm.tse.scene_batches import VALIDATION_SEED, SceneProcesses
from audio_llm.tse.selector import weigh
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.target_speaker import ExtractionOutput, TargetSpeakerConfig, TargetSpeakerNetwork
from audio_llm.tse.teacher_vectors import read_vectors
from audio_llm.tse.train_separator import aligned, slots, talkers_by_stream

_QUIET = 1e-7  # mean square of a chunk below which it is silent, about -70 dB
_ENROLLMENT_SPEAKERS = 3  # in an enrollment recording, at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JointTrainingConfig:
    """Settings of the training.

    Attributes:
        model: Sizes of the networks.
        training: Settings of the training loop.
        scenes: How scenes are drawn.
        streams: `synthetic` streams with leakage, those of a `frozen` separator, or `joint`: train the separator too.
        order: Order of the talkers among the streams, as the separator was trained; `synthetic` streams go from left to
            right.
        noisy_prob: Fraction of scenes enrolled by the noisy recording; the other scenes, and those without a frontal
            speaker, use the teacher's vector.
        batch_scenes: Scenes in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new scenes.
        validation_scenes: Scenes of the development part in each validation.
        sound_weight: Weight of the quality of the extracted sound, if the separator is trained.
        separation_weight: Weight of the separation loss, if the separator is trained.
        enrolment_weight: Weight of the enrollment loss, unless streams are synthetic.
        vector_weight: Weight of the distance between the vector of a talker's stream and the teacher's.
        temperature: Temperature of the comparison of an enrollment with other speakers.
        leak_db: Attenuation of the other talkers in a synthetic stream, dB.
        seed: Seed of the scenes.
        processes: Worker processes that simulate the scenes.
    """

    model: TargetSpeakerConfig = field(default_factory=TargetSpeakerConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=5_000, learning_rate=3e-4))
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(seconds=4.096, enrollment_seconds=4.096))
    streams: Literal["synthetic", "frozen", "joint"] = "synthetic"
    order: Literal["location", "best"] = "location"
    noisy_prob: float = renamed("noisy_share", 0.0)
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
    def with_enrollment(self) -> bool:
        """Whether scenes include enrollment recordings."""
        return self.streams != "synthetic"


class JointBatch(NamedTuple):
    """A batch of scenes.

    Attributes:
        mixture: (B, 2, T) float32.
        talkers: (B, K, 2, T) float32, the talker of each stream, zeros for empty streams.
        streams: (B, K, 2, T) float32, synthetic streams: the talkers with leakage.
        target_stream: (B,) int64, index of the target's stream.
        speakers: (B, K) int64, speaker of each stream; -1 for empty streams.
        target_speaker: (B,) int64, the target.
        enrollment: (B, 2, L) float32, the enrollment recording; empty for synthetic streams.
        enrollment_target: (B, 2, L) float32, the target's image in the enrollment recording.
        enrollment_speakers: (B, 3) int64, speakers of the enrollment recording, the target first; -1 for none.
    """

    mixture: Tensor
    talkers: Tensor
    streams: Tensor
    target_stream: Tensor
    speakers: Tensor
    target_speaker: Tensor
    enrollment: Tensor
    enrollment_target: Tensor
    enrollment_speakers: Tensor


class _Result(NamedTuple):
    """Outputs of the networks for a batch; no enrollment for synthetic streams."""

    extraction: ExtractionOutput
    enrolled: EnrollmentOutput | None


def train_joint(
    pack: Path,
    tuning: Path,
    output: Path,
    config: JointTrainingConfig,
    *,
    start: TargetSpeakerNetwork | None = None,
    separator: Extractor | None = None,
    speaker: SpeakerEncoder | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train; `output/best` becomes the model directory with the lowest validation loss.

    Args:
        pack: Packed training sources, with speaker vectors.
        tuning: Packed development sources, with speaker vectors.
        output: Folder of the training.
        config: Settings of the training.
        start: Model to initialize from.
        separator: Separator to initialize from, instead of the one in `start`.
        speaker: Speaker encoder to initialize from, instead of the one in `start`.
        max_minutes: Stop after this time.
        resume: Resume from `output/last`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: A pack is missing, has no vectors or too few speakers.
    """
    sources, held_out = read_sources(pack), read_sources(tuning)
    vectors, held_out_vectors = read_vectors(pack, sources.voices), read_vectors(tuning, held_out.voices)
    config = replace(config, scenes=_whole_chunks(config.scenes))
    torch.manual_seed(config.training.seed)
    model = TargetSpeakerNetwork(config.model)
    if start is not None:
        model.load_state_dict(start.state_dict())
    if speaker is not None:
        model.selector.speaker.load_state_dict(speaker.state_dict())
    if separator is not None:
        model.extractor.load_state_dict(separator.state_dict())
    model.extractor.requires_grad_(config.streams == "joint")
    model.selector.speaker.requires_grad_(config.streams != "synthetic")  # the untrained selection learns faster alone
    logger.info("%d speakers, %d parameters", len(sources.voices), sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: JointBatch) -> Tensor:
        result = network(batch, vectors.to(batch.mixture.device))
        return joint_loss(result, _by_stream(batch, result, config), vectors, config)

    with SceneProcesses(pack, config.processes) as scenes:
        return train(
            _JointTraining(model, config),
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
            count_items=lambda batch: (batch.mixture.numel() + batch.enrollment.numel()) / 2 / SAMPLE_RATE,
        )


def _whole_chunks(scenes: SceneConfig) -> SceneConfig:
    seconds, enrollment_s = (
        round(length * SAMPLE_RATE) // CHUNK * CHUNK / SAMPLE_RATE
        for length in (scenes.seconds, scenes.enrollment_seconds)
    )
    return replace(scenes, seconds=seconds, enrollment_seconds=enrollment_s)


class _JointTraining(nn.Module):
    """The model as the training loop calls it; with synthetic streams its separator is not used."""

    def __init__(self, model: TargetSpeakerNetwork, config: JointTrainingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: JointBatch, vectors: Tensor) -> _Result:
        clean = vectors[batch.target_speaker]
        if not self.config.with_enrollment:
            logits, by_stream = self.model.selector(batch.streams, clean)
            return _Result(ExtractionOutput(weigh(batch.streams, logits), batch.streams, logits, by_stream), None)
        enrolled = EnrollmentEncoder(self.model).encode(batch.enrollment)
        noisy = torch.arange(len(clean), device=clean.device) < round(self.config.noisy_prob * len(clean))
        use_noisy = noisy & talking(batch.enrollment_target)
        vector = torch.where(use_noisy[:, None], enrolled.vector.to(clean.dtype), clean)
        return _Result(self.model(batch.mixture, vector), enrolled)


def _model(network: nn.Module) -> TargetSpeakerNetwork:
    assert isinstance(network, _JointTraining)
    return network.model


def make_batch(sources: SceneSources, config: JointTrainingConfig, seed: int, indices: range) -> JointBatch:
    """Return these scenes."""
    count = config.model.extractor.outputs
    scenes = [
        make_scene(sources, config.scenes, seed, index, with_enrollment=config.with_enrollment) for index in indices
    ]
    talkers = np.stack([talkers_by_stream(scene, count) for scene in scenes])
    speakers = np.full((len(scenes), count), -1, dtype=np.int64)
    enrollment_speakers = np.full((len(scenes), _ENROLLMENT_SPEAKERS), -1, dtype=np.int64)
    for row, enrollment_row, scene in zip(speakers, enrollment_speakers, scenes, strict=True):
        row[slots(scene, count)] = [talker.voice for talker in scene.plan.talkers]
        enrollment_row[: len(scene.plan.enrollment)] = [talker.voice for talker in scene.plan.enrollment]
    mixture = np.stack([scene.mixture for scene in scenes])
    draws = [
        np.random.default_rng([seed, index, 4]).uniform(*config.leak_db, (count, count, 1, 1)) for index in indices
    ]
    leaks_db = -np.stack(draws)
    gains = np.where(np.eye(count, dtype=bool)[:, :, None, None], 1.0, 10.0 ** (leaks_db / 20.0)).astype(np.float32)
    background = (mixture - talkers.sum(axis=1))[:, None] * 10.0 ** (leaks_db[:, :, 0] / 20.0)
    streams = (gains * talkers[:, None]).sum(axis=2) + background
    return JointBatch(
        torch.from_numpy(mixture),
        torch.from_numpy(talkers),
        torch.from_numpy(streams.astype(np.float32)),
        torch.tensor([int(slots(scene, count)[0]) for scene in scenes]),
        torch.from_numpy(speakers),
        torch.tensor([scene.plan.talkers[0].voice for scene in scenes]),
        torch.from_numpy(np.stack([scene.enrollment for scene in scenes])),
        torch.from_numpy(np.stack([scene.enrollment_target for scene in scenes])),
        torch.from_numpy(enrollment_speakers),
    )


def _by_stream(batch: JointBatch, result: _Result, config: JointTrainingConfig) -> JointBatch:
    """Return the batch with the talkers in the order that fits the streams best."""
    if config.order == "location" or not config.with_enrollment:
        return batch
    order = best_order(*aligned(result.extraction.streams, batch.talkers, batch.mixture))
    return batch._replace(
        talkers=in_order(batch.talkers, order),
        speakers=in_order(batch.speakers, order),
        target_stream=(order == batch.target_stream[:, None]).int().argmax(1),
    )


def joint_loss(result: _Result, batch: JointBatch, vectors: Tensor, config: JointTrainingConfig) -> Tensor:
    """Return the weighted loss of selection and speaker vectors, and of the sound if the separator is trained.

    Args:
        result: Outputs of the networks.
        batch: The scenes.
        vectors: (V, 256), the teacher's vectors.
        config: Weights of the parts.
    """
    extraction, vectors = result.extraction, vectors.to(batch.mixture.device)
    labels, counted = _labels(extraction, batch)
    selection_loss = functional.cross_entropy(extraction.logits.float().transpose(1, 2), labels, reduction="none")
    loss = (selection_loss * counted).sum() / counted.sum().clamp_min(1.0)
    busy = _busy(batch.talkers) * (batch.speakers >= 0)[:, None]  # (B, N, K)
    near = (extraction.vectors.float() * vectors[batch.speakers.clamp_min(0)][:, None]).sum(-1)
    loss = loss + config.vector_weight * ((1.0 - near) * busy).sum() / busy.sum().clamp_min(1.0)
    if result.enrolled is not None:
        loss = loss + config.enrolment_weight * _enrollment_loss(result.enrolled.vector.float(), batch, vectors, config)
    if config.streams != "joint" or result.enrolled is None:
        return loss
    target = batch.talkers[torch.arange(len(batch.target_stream)), batch.target_stream]
    streams = separation_loss(*aligned(extraction.streams, batch.talkers, batch.mixture))
    frontal, enrollment_target = result.enrolled.frontal[:, None], batch.enrollment_target[:, None]
    frontal_loss = separation_loss(*aligned(frontal, enrollment_target, batch.enrollment))
    sound, target, mixture = aligned(extraction.sound, target, batch.mixture)
    ratios = -0.5 * (snr_db(sound, target) + si_sdr_db(sound, target)).mean(-1)
    quality = torch.where(talking(target), ratios, 0.3 * leak_db(sound, mixture).mean(-1)).mean()
    return loss + config.sound_weight * quality + config.separation_weight * (streams + frontal_loss)


def _enrollment_loss(enrolled: Tensor, batch: JointBatch, vectors: Tensor, config: JointTrainingConfig) -> Tensor:
    """Return the distance of enrolled (B, 256) to the teacher's vectors, and the cross-entropy among all speakers."""
    present = talking(batch.enrollment_target).float()
    distance = 1.0 - (enrolled * vectors[batch.target_speaker]).sum(-1)
    distance = (distance * present).sum() / present.sum().clamp_min(1.0)
    around = torch.cat([batch.speakers, batch.enrollment_speakers], dim=1).flatten()
    candidates = around[around >= 0].unique()
    scores = enrolled @ vectors[candidates].T / config.temperature
    confusion_loss = functional.cross_entropy(
        scores, torch.searchsorted(candidates, batch.target_speaker), reduction="none"
    )
    return 2.0 * distance + 0.5 * (confusion_loss * present).sum() / present.sum().clamp_min(1.0)


def _busy(talkers: Tensor) -> Tensor:
    """Return in which chunks each stream's talker is active: (B, N, K) float32 of (B, K, 2, T)."""
    power = talkers.mean(dim=2).unflatten(-1, (-1, CHUNK)).square().mean(-1)
    return (power > _QUIET).float().transpose(1, 2)


def _labels(extraction: ExtractionOutput, batch: JointBatch) -> tuple[Tensor, Tensor]:
    """Return the correct stream (B, N) of each chunk and its weight; silence is correct if the target is absent."""
    busy = _busy(batch.talkers)
    present = busy.gather(2, batch.target_stream[:, None, None].expand(-1, busy.shape[1], 1)).squeeze(2)  # (B, N)
    never = present.sum(dim=1, keepdim=True) == 0
    no_speaker = extraction.logits.shape[-1] - 1
    labels = torch.where(never, no_speaker, batch.target_stream[:, None]).expand_as(present)
    return labels, torch.where(never, torch.ones_like(present), present)


@torch.inference_mode()
def validate(
    model: TargetSpeakerNetwork, sources: SceneSources, vectors: Tensor, config: JointTrainingConfig
) -> dict[str, float]:
    """Return measures on the fixed validation scenes.

    The measures are the loss, the mean weight of the target's stream, and the fraction of scenes where it is above one
    half. With enrollment recordings they are also: the fraction of recordings nearer to their speaker than to the
    interferers of the mixture; the level of the frontal speaker if there is one and if there is none; the SI-SDR
    improvement with the clean, the noisy, another speaker's and no enrollment, and of the target's stream; the fraction
    of scenes made worse; and the cosine between the outputs for the target and for another speaker.
    """
    device = next(model.parameters()).device
    vectors = vectors.to(device)
    rows: dict[str, list[float]] = {}

    def note(name: str, values: Tensor) -> None:
        rows.setdefault(name, []).extend(values.flatten().tolist())

    for chosen in fixed_batches(config.batch_scenes, config.validation_scenes):
        batch = JointBatch(*(part.to(device) for part in make_batch(sources, config, VALIDATION_SEED, chosen)))
        result = _JointTraining(model, replace(config, noisy_prob=1.0))(batch, vectors)
        batch = _by_stream(batch, result, config)
        note("loss", joint_loss(result, batch, vectors, config).expand(len(chosen)))
        labels, counted = _labels(result.extraction, batch)
        weight = torch.softmax(result.extraction.logits, -1).gather(2, labels[..., None]).squeeze(-1)
        target_weight = (weight * counted).sum(1) / counted.sum(1).clamp_min(1.0)
        note("target_weight", target_weight)
        note("selection_accuracy", (target_weight > 0.5).float())
        if result.enrolled is None:
            continue
        near = (result.enrolled.vector[:, None] * vectors[batch.speakers.clamp_min(0)]).sum(-1)
        interferers = near.masked_fill(
            (batch.speakers < 0) | (batch.speakers == batch.target_speaker[:, None]), -1.0
        ).amax(1)
        has_frontal = talking(batch.enrollment_target)
        correct = (result.enrolled.vector * vectors[batch.target_speaker]).sum(-1) > interferers
        note("enrollment_accuracy", correct[has_frontal].float())
        note("frontal_level_db", result.enrolled.frontal_level_db[has_frontal])
        note("no_speaker_level_db", result.enrolled.frontal_level_db[~has_frontal])
        target = batch.talkers[torch.arange(len(batch.target_stream)), batch.target_stream]
        present = talking(target)
        before = si_sdr_db(batch.mixture[..., :-OVERLAP], target[..., :-OVERLAP])

        def gain(sound: Tensor, target: Tensor = target, before: Tensor = before, active: Tensor = present) -> Tensor:
            return (si_sdr_db(sound[..., OVERLAP:], target[..., :-OVERLAP]) - before).mean(-1)[active]

        streams = result.extraction.streams
        encoding = model.selector.encode_streams(streams)
        interferer, clean_target = vectors[_interferer(batch)], vectors[batch.target_speaker]
        swapped, clean, zeroed = (
            weigh(streams, model.selector.select(encoding, vector)[0])
            for vector in (interferer, clean_target, torch.zeros_like(clean_target))
        )
        noisy = result.extraction.sound
        note("target_stream_db", gain(streams[torch.arange(len(streams)), batch.target_stream]))
        for name, sound in (("noisy", noisy), ("clean", clean), ("swapped", swapped), ("zeroed", zeroed)):
            note(f"{name}_db", gain(sound))
        note("wrong_speaker_rate", (gain(noisy) < 0).float())
        note("cosine", functional.cosine_similarity(clean, swapped, dim=-1).mean(-1))
    return {name: float(np.mean(values)) for name, values in rows.items() if values}


def _interferer(batch: JointBatch) -> Tensor:
    """Return an interfering talker of each scene, (B,) int64."""
    interferers = batch.speakers.clone()
    interferers[torch.arange(len(interferers)), batch.target_stream] = -1
    return interferers.amax(dim=1)


def _save(model: TargetSpeakerNetwork, folder: Path, config: JointTrainingConfig) -> None:
    provenance: dict[str, Any] = {"training": asdict(config)}
    save_model(
        folder, model, "# Target-speaker extraction\n\nOne enrolled speaker out of a binaural mixture.\n", provenance
    )
