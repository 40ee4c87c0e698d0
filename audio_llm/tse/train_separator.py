"""Training of the separator: each talker of a scene in its own stream, in the best order or from left to right.

No speaker is enrolled, so that the network learns separation before selection. Scenes are simulated for every step, or
mixed from rooms rendered before, which costs far less. With `front_weight`, it also trains the head that extracts the
frontal speaker of an enrollment recording.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.errors import ConfigError
from audio_llm.simulation.rendered import RenderedScenes
from audio_llm.simulation.scene_plan import SceneConfig, SceneSources
from audio_llm.simulation.scenes import Scene, make_scene
from audio_llm.simulation.sources import read_sources
from audio_llm.sound_metrics import si_sdr_db
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.config import config_to_dict
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.gridnet import GridNet, GridNetConfig
from audio_llm.tse.losses import best_order, in_order, separation_loss, talking
from audio_llm.tse.models import GRIDNET, SEPARATOR
from audio_llm.tse.scene_batches import VALIDATION_SEED, SceneProcesses

logger = logging.getLogger(__name__)


def _still_pairs() -> SceneConfig:
    return SceneConfig(
        seconds=2.048, talkers=(2, 2), snr_db=(20.0, 40.0), moving_prob=0.0, absent_prob=0.0, fully_absent_prob=0.0
    )


@dataclass(frozen=True)
class SeparatorTrainingConfig:
    """Settings of the training of the separator.

    Attributes:
        model: Size of the network: one output per talker, a head for the frontal speaker, and no embedding.
        gridnet: Size of the baseline, to train that instead; it has no head for the frontal speaker.
        training: Settings of the training loop.
        scenes: How scenes are drawn.
        batch_scenes: Scenes in a batch.
        rendered: Folder of rendered rooms (`simulation.rendered`) to mix scenes from; None simulates every scene.
        compile: Fuse the element-wise operations of the network's blocks; needs a C++ compiler, and a minute.
        front_weight: Weight of the loss on enrollment recordings; 0 trains on mixtures alone, in half the time.
        order: Order of the talkers among the streams: from left to right by `location`, or the `best` permutation.
        epoch_batches: Batches in an epoch; every epoch draws new scenes.
        validation_scenes: Scenes of the development part in each validation.
        seed: Seed of the scenes.
        processes: Worker processes that simulate the scenes.
    """

    model: ExtractorConfig = field(default_factory=lambda: ExtractorConfig(embedding=0, outputs=3, front=True))
    gridnet: GridNetConfig | None = None
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=20_000))
    scenes: SceneConfig = field(default_factory=_still_pairs)
    rendered: Path | None = None
    compile: bool = False
    batch_scenes: int = 8
    front_weight: float = 0.0
    order: Literal["location", "best"] = "location"
    epoch_batches: int = 1000
    validation_scenes: int = 48
    seed: int = 1
    processes: int = 1

    @property
    def outputs(self) -> int:
        """Streams of the network that is trained."""
        return self.model.outputs if self.gridnet is None else self.gridnet.outputs


def train_separator(
    pack: Path,
    tuning: Path,
    output: Path,
    config: SeparatorTrainingConfig,
    *,
    start: Extractor | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train the separator; `output/best` becomes the model directory with the highest SI-SDR improvement.

    Args:
        pack: Packed training sources.
        tuning: Packed development sources.
        output: Folder of the training.
        config: Settings of the training.
        start: Separator of the same shape to initialize from.
        max_minutes: Stop after this time.
        resume: Resume from `output/last`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: A pack is missing or has too few speakers.
        ConfigError: There may be more talkers than streams, or the baseline is given a weight for the frontal speaker.
    """
    if config.scenes.talkers[1] > config.outputs:
        remedy = "give the model as many outputs as there may be talkers"
        raise ConfigError(f"{config.scenes.talkers[1]} talkers, {config.outputs} streams", remedy=remedy)
    if config.gridnet is not None and config.front_weight:
        raise ConfigError("the baseline has no head for the frontal speaker", remedy="set front_weight to 0")
    if config.rendered is not None and config.front_weight:
        raise ConfigError("rendered rooms hold no enrollments", remedy="set front_weight to 0, or rendered to null")
    sources, held_out = read_sources(pack), read_sources(tuning)
    samples = round(config.scenes.seconds * SAMPLE_RATE) // CHUNK * CHUNK
    seconds = samples / SAMPLE_RATE
    config = replace(config, scenes=replace(config.scenes, seconds=seconds, enrollment_seconds=seconds))
    torch.manual_seed(config.training.seed)
    model = Extractor(config.model) if config.gridnet is None else GridNet(config.gridnet)
    if start is not None:
        model.load_state_dict(start.state_dict())
    logger.info("%d speakers, %d parameters", len(sources.voices), sum(p.numel() for p in model.parameters()))
    if config.compile and isinstance(model, Extractor):
        model.compile_blocks()
    fixed = _validation_batches(held_out, config)

    def loss(network: nn.Module, batch: SeparationBatch) -> Tensor:
        return _loss(network, batch, config)

    def evaluate(network: nn.Module) -> dict[str, float]:
        return validate(network, fixed, config)

    with contextlib.ExitStack() as stack:
        if config.rendered is not None:
            rooms = RenderedScenes(config.rendered)
            logger.info("%d rooms, %.1f h of single talkers", len(rooms), rooms.seconds / 3600)
            make = functools.partial(mix_batch, rooms, config, config.seed)
        else:
            scenes = stack.enter_context(SceneProcesses(pack, config.processes))
            make = functools.partial(scenes.make, make_batch, config, config.seed)
        return train(
            model,
            fresh_batches(config.batch_scenes, config.epoch_batches),
            loss,
            evaluate,
            output,
            config.training,
            max_minutes=max_minutes,
            resume=resume,
            device=device,
            save=lambda network, folder: _save(network, folder, config),
            prepare=make,
            count_items=lambda batch: (batch.mixture.numel() + batch.enrollment.numel()) / 2 / SAMPLE_RATE,
        )


class SeparationBatch(NamedTuple):
    """A batch of scenes.

    Attributes:
        mixture: (B, 2, T) float32.
        talkers: (B, outputs, 2, T) float32, the talker of each stream, zeros for empty streams.
        enrollment: (B, 2, T) float32, the enrollment recording; empty if its loss has no weight.
        frontal: (B, 1, 2, T) float32, the frontal speaker's image in the recording; empty likewise.
    """

    mixture: Tensor
    talkers: Tensor
    enrollment: Tensor
    frontal: Tensor


def make_batch(sources: SceneSources, config: SeparatorTrainingConfig, seed: int, indices: range) -> SeparationBatch:
    """Return these scenes."""
    with_enrollment = config.front_weight > 0.0
    scenes = [make_scene(sources, config.scenes, seed, index, with_enrollment=with_enrollment) for index in indices]
    return SeparationBatch(
        torch.from_numpy(np.stack([scene.mixture for scene in scenes])),
        torch.from_numpy(np.stack([talkers_by_stream(scene, config.outputs) for scene in scenes])),
        torch.from_numpy(np.stack([scene.enrollment for scene in scenes])),
        torch.from_numpy(np.stack([scene.enrollment_target[None] for scene in scenes])),
    )


def mix_batch(rooms: RenderedScenes, config: SeparatorTrainingConfig, seed: int, indices: range) -> SeparationBatch:
    """Return these scenes, mixed from rendered rooms; for streams in the best order."""
    scenes = [rooms.draw(config.scenes, seed, index) for index in indices]
    talkers = np.zeros((len(scenes), config.outputs, *scenes[0].mixture.shape), dtype=np.float32)
    for row, scene in zip(talkers, scenes, strict=True):
        row[: len(scene.talkers)] = scene.talkers
    mixture = torch.from_numpy(np.stack([scene.mixture for scene in scenes]))
    nothing = torch.zeros(len(scenes), 2, 0)
    return SeparationBatch(mixture, torch.from_numpy(talkers), nothing, nothing[:, None])


def _validation_batches(sources: SceneSources, config: SeparatorTrainingConfig) -> list[SeparationBatch]:
    """Return the fixed validation scenes."""
    draws = fixed_batches(config.batch_scenes, config.validation_scenes)
    return [make_batch(sources, config, VALIDATION_SEED, chosen) for chosen in draws]


def _loss(network: nn.Module, batch: SeparationBatch, config: SeparatorTrainingConfig) -> Tensor:
    estimates = network(batch.mixture)
    loss = _separation_loss(estimates, _by_stream(estimates, batch, config), batch.mixture)
    if not config.front_weight:
        return loss
    frontal = _separation_loss(network(batch.enrollment, frontal=True), batch.frontal, batch.enrollment)
    return loss + config.front_weight * frontal


def _by_stream(estimates: Tensor, batch: SeparationBatch, config: SeparatorTrainingConfig) -> Tensor:
    if config.order == "location":
        return batch.talkers
    return in_order(batch.talkers, best_order(*aligned(estimates, batch.talkers, batch.mixture)))


def _separation_loss(estimates: Tensor, targets: Tensor, mixture: Tensor) -> Tensor:
    return separation_loss(*aligned(estimates, targets, mixture))


def aligned(estimates: Tensor, targets: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all three signals with the delay of the estimates removed."""
    return estimates.float()[..., OVERLAP:], targets[..., :-OVERLAP], mixture[..., :-OVERLAP]


def talkers_by_stream(scene: Scene, streams: int) -> np.ndarray:
    """Return the talkers of a scene by stream, zeros for empty streams: (streams, 2, T) float32."""
    out = np.zeros((streams, *scene.mixture.shape), dtype=np.float32)
    out[slots(scene, streams)] = np.concatenate([scene.target[None], scene.interferers])
    return out


def slots(scene: Scene, streams: int) -> np.ndarray:
    """Return the stream of each talker of a scene, (talkers,) int.

    The leftmost talker has the first stream and the rightmost the last; with fewer talkers, streams between are empty.
    """
    lateral = [np.sin(np.radians(talker.azimuth)) for talker in scene.plan.talkers]
    taken = np.linspace(0, streams - 1, len(lateral)).round().astype(int)
    streams_of = np.empty(len(lateral), dtype=int)
    streams_of[np.argsort(lateral)[::-1]] = taken
    return streams_of


@torch.no_grad()  # not inference mode, in which compiled blocks would be compiled again
def validate(model: nn.Module, batches: Sequence[SeparationBatch], config: SeparatorTrainingConfig) -> dict[str, float]:
    """Return loss and mean SI-SDR improvements over both ears and all talkers."""
    device = next(model.parameters()).device
    rows: dict[str, list[float]] = {"loss": [], "si_sdri_db": []}
    for fixed in batches:
        batch = SeparationBatch(*(part.to(device) for part in fixed))
        rows["loss"] += [float(_loss(model, batch, config))] * len(batch.mixture)
        estimates = model(batch.mixture)
        rows["si_sdri_db"] += _gains(estimates, _by_stream(estimates, batch, config), batch.mixture)
        if config.front_weight:
            rows.setdefault("front_db", []).extend(
                _gains(model(batch.enrollment, frontal=True), batch.frontal, batch.enrollment)
            )
    return {name: float(np.mean(values)) for name, values in rows.items()}


def _gains(estimates: Tensor, targets: Tensor, mixture: Tensor) -> list[float]:
    """Return the SI-SDR improvement of every active talker."""
    estimates, targets = estimates[..., OVERLAP:], targets[..., :-OVERLAP]
    before = si_sdr_db(mixture[:, None, :, :-OVERLAP].expand_as(targets), targets)
    gains: list[float] = (si_sdr_db(estimates, targets) - before).mean(-1)[talking(targets)].tolist()
    return gains


def _save(model: nn.Module, folder: Path, config: SeparatorTrainingConfig) -> None:
    assert isinstance(model, Extractor | GridNet)
    provenance: dict[str, Any] = {"training": config_to_dict(replace(config, rendered=None))}
    provenance["rendered"] = config.rendered is not None
    card = "# A separator\n\nSeparates the talkers of a binaural mixture, one per stream.\n"
    kind = SEPARATOR if isinstance(model, Extractor) else GRIDNET
    hub.save_model(folder, config_to_dict(model.config), model.state_dict(), kind, card, provenance)
