"""Training of the small speaker encoder: from degraded speech, predict a teacher's vector of the clean speech.

Voices are played faster and slower, which creates new speakers: the teacher encodes each of them.
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
from audio_llm.simulation.filters import color, slow_waves_db
from audio_llm.simulation.scene_plan import SceneSources
from audio_llm.simulation.sources import read_sources
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.tse.frames import CHUNK, SAMPLE_RATE
from audio_llm.tse.models import SPEAKER
from audio_llm.tse.scene_batches import VALIDATION_SEED, SceneProcesses
from audio_llm.tse.speaker import HOP, PIECE, SpeakerEncoder, chunk_features, embed

logger = logging.getLogger(__name__)

_TONE_SIZE = 256  # samples of the coloration filter
_EARLY = 40  # chunks at the beginning that are not evaluated, a third of a second


@dataclass(frozen=True)
class SpeakerTrainingConfig:
    """Settings of the training.

    Attributes:
        hidden: Units of the LSTM.
        layers: Layers of the LSTM.
        training: Settings of the training loop.
        seconds: Length of a piece.
        shift: Factors by which voices are played faster.
        leak_db: Level of a second voice relative to the first; half of the pieces have one.
        noise_db: Voice over noise.
        rt60_s: Reverberation time.
        room_db: Direct over reverberant sound.
        tone_db: Largest change of the spectrum.
        batch_pieces: Pieces in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new pieces.
        validation_pieces: Pieces of the development part in each validation.
        temperature: Temperature of the comparison with the other pieces of a batch.
        distance_weight: Weight of the distance to the teacher's vector.
        seed: Seed of the pieces.
        processes: Worker processes that simulate the pieces.
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
    """A batch of pieces.

    Attributes:
        clean: (B, T) float32.
        degraded: (B, T) float32.
        speakers: (B,) int64, indices of the speakers.
    """

    clean: Tensor
    degraded: Tensor
    speakers: Tensor


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
    """Train the encoder; `output/best` becomes the model directory with the lowest validation loss.

    Args:
        pack: Packed training sources.
        tuning: Packed development sources.
        teacher: Encoder whose vectors are the targets.
        output: Folder of the training.
        config: Settings of the training.
        start: Encoder to initialize from.
        max_minutes: Stop after this time.
        resume: Resume from `output/last`.
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
        return speaker_loss(
            network(batch.degraded), _teacher_vectors(teacher, batch.clean, config.training.on_cpu_bf16), config
        )

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
    """The encoder applied to whole sounds: (B, T) to unit vectors (B, N, 256)."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.encoder.project(self.encoder.lstm(chunk_features(waveforms))[0])


def make_batch(sources: SceneSources, config: SpeakerTrainingConfig, seed: int, indices: range) -> SpeakerBatch:
    """Return these pieces."""
    drawn = [_piece(sources, config, np.random.default_rng([seed, index, 5])) for index in indices]
    clean, degraded, speakers = zip(*drawn, strict=True)
    return SpeakerBatch(torch.from_numpy(np.stack(clean)), torch.from_numpy(np.stack(degraded)), torch.tensor(speakers))


def _piece(
    sources: SceneSources, config: SpeakerTrainingConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    size = round(config.seconds * SAMPLE_RATE) // CHUNK * CHUNK
    speaker_index, other_index = (int(number) for number in rng.choice(len(sources.voices), 2, replace=False))
    clean = _excerpt(sources, config, rng, speaker_index, size)
    degraded = clean
    if rng.random() < 0.5:
        degraded = mono.add_noise(
            degraded, _excerpt(sources, config, rng, other_index, size), -float(rng.uniform(*config.leak_db))
        )
    degraded = mono.add_room(degraded, rng, float(rng.uniform(*config.rt60_s)), float(rng.uniform(*config.room_db)))
    degraded = color(degraded, slow_waves_db(rng, _TONE_SIZE, config.tone_db)).astype(np.float32)
    if sources.noises:
        noise = sources.noises[int(rng.integers(len(sources.noises)))]
        begins = int(rng.integers(max(1, noise.size - size)))
        noise = noise[begins : begins + size].astype(np.float32)
        degraded = mono.add_noise(degraded, noise, float(rng.uniform(*config.noise_db)))
    return mono.set_level(clean, -27.0), mono.set_level(degraded, -27.0), speaker_index


def _excerpt(
    sources: SceneSources, config: SpeakerTrainingConfig, rng: np.random.Generator, speaker_index: int, size: int
) -> np.ndarray:
    """Return an excerpt of a speaker's utterances, played faster or slower; (size,) float32."""
    utterances = sources.voices[speaker_index].utterances
    sound = utterances[int(rng.integers(len(utterances)))]
    factor = float(rng.uniform(*config.shift))
    length = int(size * factor) + CHUNK
    begins = int(rng.integers(max(1, sound.size - length)))
    excerpt = sound[begins : begins + length].astype(np.float32) / 32768.0
    return np.resize(mono.shift_voice(excerpt, factor), size)


@torch.no_grad()
def _teacher_vectors(teacher: SpeakerEncoder, clean: Tensor, half: bool) -> Tensor:
    """Return the teacher's vectors (B, 256) of the first window of each sound (B, T)."""
    teacher = teacher.to(clean.device)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=half or clean.device.type == "cuda"):
        return embed(teacher, clean[:, : (PIECE - 1) * HOP]).float()


def speaker_loss(vectors: Tensor, targets: Tensor, config: SpeakerTrainingConfig) -> Tensor:
    """Return the weighted distance to the teacher's vectors plus the cross-entropy among the pieces; a scalar.

    Args:
        vectors: (B, N, 256) unit vectors by chunk.
        targets: (B, 256), the teacher's vectors.
        config: Weights of the parts.
    """
    vectors = vectors[:, _EARLY:].float()
    distance = 1.0 - (vectors * targets[:, None]).sum(-1).mean()
    scores = (vectors[:, _EARLY // 2 :: _EARLY] @ targets.T).flatten(0, 1) / config.temperature
    right = torch.arange(len(targets), device=targets.device).repeat_interleave(len(scores) // len(targets))
    return config.distance_weight * distance + functional.cross_entropy(scores, right)


@torch.inference_mode()
def validate(
    model: nn.Module, teacher: SpeakerEncoder, sources: SceneSources, config: SpeakerTrainingConfig
) -> dict[str, float]:
    """Return loss, cosine to the teacher's vector, and the speaker accuracy among the pieces of a batch."""
    device = next(model.parameters()).device
    losses, cosines, correct = [], [], []
    for chosen in fixed_batches(config.batch_pieces, config.validation_pieces):
        batch = SpeakerBatch(*(part.to(device) for part in make_batch(sources, config, VALIDATION_SEED, chosen)))
        targets, vectors = _teacher_vectors(teacher, batch.clean, half=False), model(batch.degraded)
        losses.append(float(speaker_loss(vectors, targets, config)))
        scores = functional.normalize(vectors[:, _EARLY:].mean(dim=1), dim=-1) @ targets.T
        cosines += scores.diagonal().tolist()
        correct += (batch.speakers[scores.argmax(dim=1)] == batch.speakers).float().tolist()
    return {"loss": float(np.mean(losses)), "cosine": float(np.mean(cosines)), "accuracy": float(np.mean(correct))}


def _save(model: nn.Module, folder: Path, config: SpeakerTrainingConfig) -> None:
    assert isinstance(model, _OverChunks)
    provenance: dict[str, Any] = {"training": asdict(config)}
    settings = {"hidden": config.hidden, "layers": config.layers}
    card = "# A speaker encoder\n\nSpeech to the vector of its speaker, chunk by chunk.\n"
    hub.save_model(folder, settings, model.encoder.state_dict(), SPEAKER, card, provenance)
