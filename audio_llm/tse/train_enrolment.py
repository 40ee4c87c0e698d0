"""Training of the enrolment encoder: from a noisy look to the vector a teacher gives to clean speech of the person.

The teacher's network starts the student; the other people of a batch and those of the same look are what its vector
must be far from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm import hub
from audio_llm.errors import DataError, ModelFormatError
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources, Voice
from audio_llm.simulation.scenes import make_scene
from audio_llm.simulation.sources import read_sources
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards
from audio_llm.tse.enrolment import EnrolmentConfig, EnrolmentEncoder, ideal_mask
from audio_llm.tse.frames import SAMPLE_RATE
from audio_llm.tse.models import ENROLMENT
from audio_llm.tse.scene_batches import VALIDATION_SEED, new_scenes, same_scenes
from audio_llm.tse.speaker import SpeakerEncoder, embed

VECTORS = "vectors"  # folder of a pack
_CLEAN_S = 6.0  # of one utterance for its vector
_CLEAN_UTTERANCES = 8  # of one person

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnrolmentTrainingConfig:
    """How to train the enrolment encoder.

    Attributes:
        model: Size of the network.
        training: The loop's settings.
        scenes: How scenes are drawn.
        batch_scenes: Looks in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new scenes.
        validation_scenes: Scenes of the tuning part at each validation.
        temperature: Of the comparison with other people.
        distance_weight: Of the distance to the teacher's vector.
        mask_weight: Of how far the mask is from the ideal one.
        mask_only: Whether the speaker encoder stays the teacher's and the mask learns by the ideal one alone: that is
            what a training begins with, as the teacher tells people apart once the mask is right.
        seed: Of the scenes.
    """

    model: EnrolmentConfig = field(default_factory=EnrolmentConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=5_000, learning_rate=5e-4))
    scenes: SceneConfig = field(default_factory=SceneConfig)
    batch_scenes: int = 16
    epoch_batches: int = 1000
    validation_scenes: int = 96
    temperature: float = 0.05
    distance_weight: float = 5.0
    mask_weight: float = 3.0
    mask_only: bool = False
    seed: int = 2


def load_teacher(state: Mapping[str, Tensor]) -> SpeakerEncoder:
    """Return the teacher of a Resemblyzer state dictionary.

    Raises:
        ModelFormatError: It is that of another network.
    """
    teacher = SpeakerEncoder()
    own = {name: state[name] for name in teacher.state_dict() if name in state}
    try:
        teacher.load_state_dict(own)
    except RuntimeError as error:
        raise ModelFormatError(f"not a speaker encoder's weights: {error}", remedy="give Resemblyzer's") from None
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def person_vector(teacher: SpeakerEncoder, utterances: Sequence[np.ndarray]) -> np.ndarray:
    """Return the teacher's unit vector (256,) float32 of a person: the mean over clean utterances, each (T,)."""
    size = round(_CLEAN_S * SAMPLE_RATE)
    sounds = [sound[:size].astype(np.float32) for sound in utterances[:_CLEAN_UTTERANCES]]
    vectors = [embed(teacher, torch.from_numpy(sound)[None])[0] for sound in sounds]
    return functional.normalize(torch.stack(vectors).mean(0), dim=0).numpy()


def write_vectors(pack: Path, teacher: SpeakerEncoder) -> int:
    """Add the teacher's vector of every person to a pack; return how many there are."""
    voices = read_sources(pack).voices
    rows: Iterable[dict[str, np.ndarray]] = (
        {
            "speaker": encode_text(voice.name),
            "corpus": encode_text(voice.corpus),
            "vector": person_vector(teacher, voice.utterances),
        }
        for voice in voices
    )
    return write_shards(rows, pack / VECTORS)


def read_vectors(pack: Path, voices: Sequence[Voice]) -> Tensor:
    """Return the vectors (V, 256) of these people.

    Raises:
        DataError: The pack has no vectors, or not of all.
    """
    found = {
        (decode_text(row["speaker"]), decode_text(row["corpus"])): row["vector"] for row in ShardReader(pack / VECTORS)
    }
    missing = [voice.name for voice in voices if (voice.name, voice.corpus) not in found]
    if missing:
        raise DataError(f"no vector of {missing[0]!r}", path=pack / VECTORS, remedy="run the stage that adds them")
    return torch.from_numpy(np.stack([found[voice.name, voice.corpus] for voice in voices]))


def train_enrolment(
    pack: Path,
    tuning: Path,
    teacher: SpeakerEncoder,
    output: Path,
    config: EnrolmentTrainingConfig,
    *,
    start: EnrolmentEncoder | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train the encoder; `output/best` becomes the model directory with the lowest loss on the tuning part.

    Args:
        pack: Packed sources to learn from, with vectors.
        tuning: Packed sources that decide which model is the best, with vectors.
        teacher: Whose weights the student starts from, where its size is the same.
        output: Folder of the training.
        config: How to train.
        start: A model to start from.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: A pack is missing, has no vectors or too few people.
    """
    sources, held_out = read_sources(pack), read_sources(tuning)
    vectors, held_out_vectors = read_vectors(pack, sources.voices), read_vectors(tuning, held_out.voices)
    torch.manual_seed(config.training.seed)
    model = EnrolmentEncoder(config.model)
    own, taught = model.speaker.state_dict(), teacher.state_dict()
    if start is not None:
        model.load_state_dict(start.state_dict())
    elif {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in taught.items()}:
        model.speaker.load_state_dict(taught)
    model.speaker.requires_grad_(not config.mask_only)
    logger.info("%d people, %d parameters", len(sources.voices), sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        looks, targets, people = batch
        found, logits = network(looks, config.mask_only)
        ideal, weight = ideal_mask(looks, targets)
        masked = functional.binary_cross_entropy_with_logits(logits.float(), ideal, weight)
        if config.mask_only:
            return masked
        return enrolment_loss(found.float(), people, vectors.to(looks.device), config) + config.mask_weight * masked

    return train(
        _Encode(model),
        new_scenes(config.batch_scenes, config.epoch_batches),
        loss,
        lambda network: validate(_model(network), held_out, held_out_vectors, config),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=lambda network, folder: _save(_model(network), folder, config),
        prepare=lambda chosen: make_batch(sources, config, config.seed, chosen),
        count_items=lambda batch: len(batch[0]),
    )


class _Encode(nn.Module):
    """The model as the loop calls it: with the mask."""

    def __init__(self, model: EnrolmentEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, looks: Tensor, mask_only: bool) -> tuple[Tensor, Tensor]:
        return (looks, self.model.look_at(looks)[0]) if mask_only else self.model.encode(looks)


def _model(network: nn.Module) -> EnrolmentEncoder:
    assert isinstance(network, _Encode)
    return network.model


def make_batch(
    sources: SceneSources, config: EnrolmentTrainingConfig, seed: int, indices: range
) -> tuple[Tensor, Tensor, Tensor]:
    """Return looks and the shares of the people in front, (B, 2, T) both, and who is in them.

    That is (B, 3) int64: the person looked at, then others, -1 for nobody.
    """
    scenes = [make_scene(sources, config.scenes, seed, index, with_mixture=False) for index in indices]
    people = np.full((len(scenes), 3), -1, dtype=np.int64)
    for row, scene in zip(people, scenes, strict=True):
        row[: len(scene.plan.look)] = [talker.voice for talker in scene.plan.look]
    looks, targets = (np.stack(sounds) for sounds in zip(*((s.look, s.look_target) for s in scenes), strict=True))
    return torch.from_numpy(looks), torch.from_numpy(targets), torch.from_numpy(people)


def enrolment_loss(found: Tensor, people: Tensor, vectors: Tensor, config: EnrolmentTrainingConfig) -> Tensor:
    """Return the distance to the teacher's vectors, and how badly everybody in the batch is told apart; a scalar.

    Args:
        found: (B, 256) unit vectors.
        people: (B, 3) int64, who was looked at and who else talked.
        vectors: (V, 256), the teacher's.
        config: Weights.
    """
    distance = 1.0 - (found * vectors[people[:, 0]]).sum(-1)
    candidates = people.unique()
    candidates = candidates[candidates >= 0]
    scores = found @ vectors[candidates].T / config.temperature
    right = torch.searchsorted(candidates, people[:, 0].contiguous())
    return config.distance_weight * distance.mean() + functional.cross_entropy(scores, right)


@torch.inference_mode()
def validate(
    model: EnrolmentEncoder, sources: SceneSources, vectors: Tensor, config: EnrolmentTrainingConfig
) -> dict[str, float]:
    """Return loss, cosine to the teacher's vector, and the share of looks nearer to their person than to the others."""
    device = next(model.parameters()).device
    vectors = vectors.to(device)
    losses, cosines, told = [], [], []
    for chosen in same_scenes(config.batch_scenes, config.validation_scenes):
        looks, _, people = (part.to(device) for part in make_batch(sources, config, VALIDATION_SEED, chosen))
        found = model(looks).float()
        losses.append(float(enrolment_loss(found, people, vectors, config)))
        near = (found[:, None] * vectors[people.clamp_min(0)]).sum(-1).masked_fill(people < 0, -1.0)
        cosines += near[:, 0].tolist()
        told += (near[:, 0] > near[:, 1:].amax(-1)).float().tolist()
    return {"loss": float(np.mean(losses)), "cosine": float(np.mean(cosines)), "told": float(np.mean(told))}


def _save(model: EnrolmentEncoder, folder: Path, config: EnrolmentTrainingConfig) -> None:
    provenance: dict[str, Any] = {"training": asdict(config)}
    card = "# An enrolment encoder\n\nA noisy binaural look to the vector of the person in front.\n"
    hub.save_model(folder, asdict(model.config), model.state_dict(), ENROLMENT, card, provenance)
