"""Training of the small speaker encoder: at every chunk of a spoilt voice, the vector a teacher gives to the clean one.

Voices are played faster and slower, which makes new people of those there are: the teacher gives each a vector too.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm import hub
from audio_llm.simulation import mono
from audio_llm.simulation.filters import colour, slow_waves_db
from audio_llm.simulation.scene_plan import SceneSources
from audio_llm.simulation.sources import read_sources
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.tse.frames import CHUNK, SAMPLE_RATE
from audio_llm.tse.models import SPEAKER
from audio_llm.tse.scene_batches import VALIDATION_SEED, SceneProcesses
from audio_llm.tse.speaker import HOP, PIECE, SpeakerEncoder, chunk_features, embed

logger = logging.getLogger(__name__)

_TONE_SIZE = 256  # samples of the filter that changes the tone
_EARLY = 40  # chunks before a vector counts, a third of a second


@dataclass(frozen=True)
class SpeakerTrainingConfig:
    """How to train.

    Attributes:
        hidden: Of the LSTM.
        layers: Of it.
        training: The loop's settings.
        seconds: Length of a piece.
        shift: Factors by which voices are played faster.
        leak_db: Another voice under this one, relative to it; half of the pieces have one.
        noise_db: Voice over noise.
        rt60_s: Reverberation time.
        room_db: Direct over reverberant sound.
        tone_db: Change of tone.
        batch_pieces: Pieces in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new pieces.
        validation_pieces: Pieces of the tuning part at each validation.
        temperature: Of the comparison with the other pieces of a batch.
        distance_weight: Of the distance to the teacher's vector.
        seed: Of the pieces.
        processes: That make the pieces.
    """

    hidden: int = 160
    layers: int = 2
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=5_000, learning_rate=2e-3))
    seconds: float = 1.92
    shift: tuple[float, float] = (0.8, 1.25)
    leak_db: tuple[float, float] = (-25.0, -5.0)
    noise_db: tuple[float, float] = (5.0, 30.0)
    rt60_s: tuple[float, float] = (0.1, 0.5)
    room_db: tuple[float, float] = (-3.0, 12.0)
    tone_db: float = 4.0
    batch_pieces: int = 48
    epoch_batches: int = 1000
    validation_pieces: int = 192
    temperature: float = 0.07
    distance_weight: float = 5.0
    seed: int = 4
    processes: int = 1


class SpeakerBatch(NamedTuple):
    """Pieces to learn from.

    Attributes:
        clean: (B, T) float32.
        spoilt: (B, T) float32.
        people: (B,) int64, whose they are.
    """

    clean: Tensor
    spoilt: Tensor
    people: Tensor


def train_speaker(
    pack: Path,
    tuning: Path,
    teacher: SpeakerEncoder,
    output: Path,
    config: SpeakerTrainingConfig,
    *,
    start: SpeakerEncoder | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train the encoder; `output/best` becomes the model directory with the lowest loss on the tuning part.

    Args:
        pack: Packed sources to learn from.
        tuning: Packed sources that decide which model is the best.
        teacher: What it learns from.
        output: Folder of the training.
        config: How to train.
        start: An encoder to start from.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: A pack is missing.
    """
    held_out = read_sources(tuning)
    torch.manual_seed(config.training.seed)
    model = _OverChunks(SpeakerEncoder(config.hidden, config.layers))
    if start is not None:
        model.encoder.load_state_dict(start.state_dict())
    logger.info("%d parameters", sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: SpeakerBatch) -> Tensor:
        return speaker_loss(network(batch.spoilt), _taught(teacher, batch.clean, config.training.on_cpu_bf16), config)

    with SceneProcesses(pack, config.processes) as pieces:
        return train(
            model,
            fresh_batches(config.batch_pieces, config.epoch_batches),
            loss,
            lambda network: validate(network, teacher, held_out, config),
            output,
            config.training,
            max_minutes=max_minutes,
            resume=resume,
            device=device,
            save=lambda network, folder: _save(network, folder, config),
            prepare=lambda chosen: pieces.make(make_batch, config, config.seed, chosen),
            count_items=lambda batch: batch.clean.numel() / SAMPLE_RATE,
        )


class _OverChunks(nn.Module):
    """The encoder over whole sounds: (B, T) to unit vectors (B, N, 256)."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.encoder.project(self.encoder.lstm(chunk_features(waveforms))[0])


def make_batch(sources: SceneSources, config: SpeakerTrainingConfig, seed: int, indices: range) -> SpeakerBatch:
    """Return these pieces."""
    made = [_piece(sources, config, np.random.default_rng([seed, index, 5])) for index in indices]
    clean, spoilt, people = zip(*made, strict=True)
    return SpeakerBatch(torch.from_numpy(np.stack(clean)), torch.from_numpy(np.stack(spoilt)), torch.tensor(people))


def _piece(
    sources: SceneSources, config: SpeakerTrainingConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    size = round(config.seconds * SAMPLE_RATE) // CHUNK * CHUNK
    person, other = (int(number) for number in rng.choice(len(sources.voices), 2, replace=False))
    clean = _said(sources, config, rng, person, size)
    spoilt = clean
    if rng.random() < 0.5:
        spoilt = mono.add_noise(spoilt, _said(sources, config, rng, other, size), -float(rng.uniform(*config.leak_db)))
    spoilt = mono.add_room(spoilt, rng, float(rng.uniform(*config.rt60_s)), float(rng.uniform(*config.room_db)))
    spoilt = colour(spoilt, slow_waves_db(rng, _TONE_SIZE, config.tone_db)).astype(np.float32)
    if sources.noises:
        noise = sources.noises[int(rng.integers(len(sources.noises)))]
        begins = int(rng.integers(max(1, noise.size - size)))
        noise = noise[begins : begins + size].astype(np.float32)
        spoilt = mono.add_noise(spoilt, noise, float(rng.uniform(*config.noise_db)))
    return mono.set_level(clean, -27.0), mono.set_level(spoilt, -27.0), person


def _said(
    sources: SceneSources, config: SpeakerTrainingConfig, rng: np.random.Generator, person: int, size: int
) -> np.ndarray:
    """Return what somebody says, played faster or slower; (size,) float32."""
    utterances = sources.voices[person].utterances
    sound = utterances[int(rng.integers(len(utterances)))]
    factor = float(rng.uniform(*config.shift))
    wanted = int(size * factor) + CHUNK
    begins = int(rng.integers(max(1, sound.size - wanted)))
    said = sound[begins : begins + wanted].astype(np.float32) / 32768.0
    return np.resize(mono.shift_voice(said, factor), size)


@torch.no_grad()
def _taught(teacher: SpeakerEncoder, clean: Tensor, half: bool) -> Tensor:
    """Return the teacher's vectors (B, 256) of one of its pieces of each sound (B, T)."""
    teacher = teacher.to(clean.device)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=half or clean.device.type == "cuda"):
        return embed(teacher, clean[:, : (PIECE - 1) * HOP]).float()


def speaker_loss(found: Tensor, wanted: Tensor, config: SpeakerTrainingConfig) -> Tensor:
    """Return the distance to the teacher's vectors, and how badly the pieces are told apart; a scalar.

    Args:
        found: (B, N, 256) unit vectors by chunk.
        wanted: (B, 256), the teacher's.
        config: Weights.
    """
    found = found[:, _EARLY:].float()
    distance = 1.0 - (found * wanted[:, None]).sum(-1).mean()
    scores = (found[:, _EARLY // 2 :: _EARLY] @ wanted.T).flatten(0, 1) / config.temperature
    right = torch.arange(len(wanted), device=wanted.device).repeat_interleave(len(scores) // len(wanted))
    return config.distance_weight * distance + functional.cross_entropy(scores, right)


@torch.inference_mode()
def validate(
    model: nn.Module, teacher: SpeakerEncoder, sources: SceneSources, config: SpeakerTrainingConfig
) -> dict[str, float]:
    """Return loss, cosine to the teacher's vector, and the share of pieces nearest to their own among the batch's."""
    device = next(model.parameters()).device
    losses, cosines, told = [], [], []
    for chosen in fixed_batches(config.batch_pieces, config.validation_pieces):
        batch = SpeakerBatch(*(part.to(device) for part in make_batch(sources, config, VALIDATION_SEED, chosen)))
        wanted, found = _taught(teacher, batch.clean, half=False), model(batch.spoilt)
        losses.append(float(speaker_loss(found, wanted, config)))
        scores = functional.normalize(found[:, _EARLY:].mean(dim=1), dim=-1) @ wanted.T
        cosines += scores.diagonal().tolist()
        told += (batch.people[scores.argmax(dim=1)] == batch.people).float().tolist()
    return {"loss": float(np.mean(losses)), "cosine": float(np.mean(cosines)), "told": float(np.mean(told))}


def _save(model: nn.Module, folder: Path, config: SpeakerTrainingConfig) -> None:
    assert isinstance(model, _OverChunks)
    provenance: dict[str, Any] = {"training": asdict(config)}
    settings = {"hidden": config.hidden, "layers": config.layers}
    card = "# A speaker encoder\n\nA sound to the vector of who speaks, chunk by chunk.\n"
    hub.save_model(folder, settings, model.encoder.state_dict(), SPEAKER, card, provenance)
