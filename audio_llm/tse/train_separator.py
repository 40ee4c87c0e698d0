"""Training of the trunk by location: each talker of a scene in a stream of its own, from left to right.

No speaker is asked for, so that the network learns what a target is made of before it learns whose it is.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.errors import ConfigError
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources
from audio_llm.simulation.scenes import Scene, make_scene
from audio_llm.simulation.sources import read_sources
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.losses import separation_loss, si_sdr_db, talking
from audio_llm.tse.models import SEPARATOR
from audio_llm.tse.scene_batches import VALIDATION_SEED, new_scenes, same_scenes

logger = logging.getLogger(__name__)


def _still_pairs() -> SceneConfig:
    return SceneConfig(
        seconds=2.048, talkers=(2, 2), snr_db=(20.0, 40.0), moving_share=0.0, absent_share=0.0, fully_absent_share=0.0
    )


@dataclass(frozen=True)
class SeparatorTrainingConfig:
    """How to train the trunk.

    Attributes:
        model: Size of the network; as many outputs as there may be talkers, and no embedding.
        training: The loop's settings.
        scenes: How scenes are drawn.
        batch_scenes: Scenes in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new scenes.
        validation_scenes: Scenes of the tuning part at each validation.
        seed: Of the scenes.
    """

    model: ExtractorConfig = field(default_factory=lambda: ExtractorConfig(embedding=0, outputs=3))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=20_000))
    scenes: SceneConfig = field(default_factory=_still_pairs)
    batch_scenes: int = 8
    epoch_batches: int = 1000
    validation_scenes: int = 48
    seed: int = 1


def train_separator(
    pack: Path,
    tuning: Path,
    output: Path,
    config: SeparatorTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train the trunk; `output/best` becomes a model directory with the highest SI-SDR improvement.

    Args:
        pack: Packed sources to learn from.
        tuning: Packed sources that decide which model is the best.
        output: Folder of the training.
        config: How to train.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: A pack is missing or has too few people.
        ConfigError: There may be more talkers than streams.
    """
    if config.scenes.talkers[1] > config.model.outputs:
        remedy = "give the model as many outputs as there may be talkers"
        raise ConfigError(f"{config.scenes.talkers[1]} talkers, {config.model.outputs} streams", remedy=remedy)
    sources, held_out = read_sources(pack), read_sources(tuning)
    samples = round(config.scenes.seconds * SAMPLE_RATE) // CHUNK * CHUNK
    config = replace(config, scenes=replace(config.scenes, seconds=samples / SAMPLE_RATE))
    torch.manual_seed(config.training.seed)
    model = Extractor(config.model)
    logger.info("%d people, %d parameters", len(sources.voices), sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        mixture, targets = batch
        return separation_loss(network(mixture)[..., OVERLAP:], targets[..., :-OVERLAP], mixture[..., :-OVERLAP])

    def evaluate(network: nn.Module) -> dict[str, float]:
        return validate(network, held_out, config)

    return train(
        model,
        new_scenes(config.batch_scenes, config.epoch_batches),
        loss,
        evaluate,
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=lambda network, folder: _save(network, folder, config),
        prepare=lambda chosen: make_batch(sources, config, config.seed, chosen),
        count_items=lambda batch: batch[0].shape[0] * batch[0].shape[-1] / SAMPLE_RATE,
    )


def make_batch(
    sources: SceneSources, config: SeparatorTrainingConfig, seed: int, indices: range
) -> tuple[Tensor, Tensor]:
    """Return mixtures (B, 2, T) and their talkers by stream (B, outputs, 2, T) of these scenes."""
    scenes = [make_scene(sources, config.scenes, seed, index, with_look=False) for index in indices]
    mixtures = np.stack([scene.mixture for scene in scenes])
    return torch.from_numpy(mixtures), torch.from_numpy(
        np.stack([talkers_by_stream(scene, config.model.outputs) for scene in scenes])
    )


def talkers_by_stream(scene: Scene, streams: int) -> np.ndarray:
    """Return the talkers of a scene in their streams, silence in the others: (streams, 2, T) float32."""
    out = np.zeros((streams, *scene.mixture.shape), dtype=np.float32)
    out[slots(scene, streams)] = np.concatenate([scene.target[None], scene.others])
    return out


def slots(scene: Scene, streams: int) -> np.ndarray:
    """Return the stream of each talker of a scene, (talkers,) int.

    The one farthest on the left has the first, the one farthest on the right the last; where there are fewer people,
    streams between are nobody's.
    """
    places = [np.sin(np.radians(talker.azimuth)) for talker in scene.plan.talkers]
    taken = np.linspace(0, streams - 1, len(places)).round().astype(int)
    found = np.empty(len(places), dtype=int)
    found[np.argsort(places)[::-1]] = taken
    return found


@torch.inference_mode()
def validate(model: nn.Module, sources: SceneSources, config: SeparatorTrainingConfig) -> dict[str, float]:
    """Return loss and mean SI-SDR improvement over both ears and all talkers, on scenes that are always the same."""
    device = next(model.parameters()).device
    losses, gains = [], []
    for chosen in same_scenes(config.batch_scenes, config.validation_scenes):
        mixture, targets = (part.to(device) for part in make_batch(sources, config, VALIDATION_SEED, chosen))
        found, wanted = model(mixture)[..., OVERLAP:], targets[..., :-OVERLAP]
        before = si_sdr_db(mixture[:, None, :, :-OVERLAP].expand_as(wanted), wanted)
        losses += [float(separation_loss(found, wanted, mixture[..., :-OVERLAP]))] * len(chosen)
        gains += (si_sdr_db(found, wanted) - before).mean(-1)[talking(wanted)].tolist()
    return {"loss": float(np.mean(losses)), "si_sdri_db": float(np.mean(gains))}


def _save(model: nn.Module, folder: Path, config: SeparatorTrainingConfig) -> None:
    assert isinstance(model, Extractor)
    provenance: dict[str, Any] = {"training": asdict(config)}
    card = "# A trunk trained by location\n\nThe talkers of a binaural mixture, left to right.\n"
    hub.save_model(folder, asdict(model.config), model.state_dict(), SEPARATOR, card, provenance)
