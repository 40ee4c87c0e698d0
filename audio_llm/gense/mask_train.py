"""Training of the mask network: pairs simulated from packed speech and noise, compared at three resolutions."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.codec.codec import LEVEL_DB
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork
from audio_llm.gense.models import MASK, load_mask
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.sound_metrics import si_sdr_db, snr_db
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.perceptual import PerceptualLoss, provenance_of

logger = logging.getLogger(__name__)

_VALIDATION_SEED = 1 << 40  # of the validation pairs
_SCALES = (256, 512, 1024)  # samples of the frames that are compared
_COMPRESSION = 0.3  # exponent of the magnitudes that are compared
_FLOOR = 1e-8  # of a power, of waveforms with an RMS near 1
_LEAST_SPEECH = 1e-7  # mean power of a target that counts as speech
CARD = "# A mask network\n\nStreaming speech enhancement at 16 kHz.\n"


@dataclass(frozen=True)
class MaskTrainingConfig:
    """How to train the mask network.

    Attributes:
        model: Size of the network.
        training: Settings of the training loop.
        pairs: Simulation of noisy speech.
        batch_pairs: Pairs in a batch.
        epoch_batches: Batches in an epoch; every epoch draws new pairs.
        least_dynamics_db: Smallest spread of levels, in dB, of recordings that serve as targets.
        complex_fraction: Weight of the complex spectra in the spectral loss; the magnitudes have the rest.
        ratio_weight: Weight of the signal-to-error ratio in dB.
        perceptual_weight: Weight of the perceptual loss.
        validation_pairs: Pairs at each validation.
    """

    model: MaskConfig = field(default_factory=MaskConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=50_000))
    pairs: NoisyConfig = field(default_factory=NoisyConfig)
    batch_pairs: int = 8
    epoch_batches: int = 1000
    least_dynamics_db: float = 26.0
    complex_fraction: float = renamed("complex_share", 0.3)
    ratio_weight: float = 0.002
    perceptual_weight: float = renamed("listener_weight", 0.02)
    validation_pairs: int = 64


class PairBatch(NamedTuple):
    """Pairs of noisy and clean speech.

    Attributes:
        noisy: (B, T) float32 at 16 kHz.
        clean: (B, T) float32 at 16 kHz.
    """

    noisy: Tensor
    clean: Tensor


def train_mask(
    pack: Path,
    tuning: Path,
    output: Path,
    config: MaskTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
    perceptual_loss: PerceptualLoss | None = None,
) -> TrainingResult:
    """Train a mask network; `output/best` becomes a model directory with the lowest validation loss.

    Args:
        pack: Training data: packed speech and noise.
        tuning: Validation data: a pack of other speakers and noises.
        output: Folder of the training.
        config: Settings.
        max_minutes: Stop after this time.
        resume: Continue from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, stored in its directory.
        start_from: Model to initialize from, of the configured size; None: random weights.
        perceptual_loss: Compares enhanced and clean speech by features of a trained network.

    Raises:
        DataError: A pack is missing or has no speech that is clean enough.
    """
    speech = NoisySpeech(SpeechPack(pack, config.least_dynamics_db), config.pairs)
    held_out = NoisySpeech(SpeechPack(tuning, config.least_dynamics_db), config.pairs)
    torch.manual_seed(config.training.seed)
    model = MaskNetwork(config.model)
    if start_from is not None:
        model.load_state_dict(load_mask(start_from).state_dict())
    size = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "%.1f h of %d utterances, %d noises, %.2f M parameters",
        speech.pack.hours,
        len(speech.pack),
        len(speech.pack.noises),
        size / 1e6,
    )
    chosen = fixed_batches(config.batch_pairs, config.validation_pairs)
    validation = [make_batch(held_out, seeds, _VALIDATION_SEED) for seeds in chosen]

    def save(network: nn.Module, folder: Path) -> None:
        assert isinstance(network, MaskNetwork)
        record = {**(provenance or {}), **provenance_of(perceptual_loss), "training": asdict(config)}
        hub.save_model(folder, asdict(network.config), network.state_dict(), MASK, CARD, record)

    return train(
        model,
        fresh_batches(config.batch_pairs, config.epoch_batches),
        lambda network, batch: mask_loss(network(batch.noisy), batch, config, perceptual_loss),
        lambda network: _validate(network, validation, config, perceptual_loss),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=save,
        prepare=lambda chosen: make_batch(speech, chosen),
        count_items=lambda batch: batch.noisy.numel() / 16_000,
    )


def make_batch(speech: NoisySpeech, seeds: range, offset: int = 0) -> PairBatch:
    """Return the pairs drawn by these seeds."""
    pairs = [speech.pair(seed + offset) for seed in seeds]
    noisy, clean = (np.stack([getattr(pair, name) for pair in pairs]) for name in ("noisy", "clean"))
    return PairBatch(torch.from_numpy(noisy), torch.from_numpy(clean))


def mask_loss(
    enhanced: Tensor, batch: PairBatch, config: MaskTrainingConfig, perceptual_loss: PerceptualLoss | None = None
) -> Tensor:
    """Return the loss of enhanced waveforms (B, T), independent of their level; a scalar."""
    level = batch.noisy.square().mean(-1, keepdim=True).sqrt() + 1e-6
    enhanced, clean = enhanced.float() / level, batch.clean / level
    loss = enhanced.new_zeros(())
    for size in _SCALES:
        loss = loss + _spectral_loss(enhanced, clean, size, config.complex_fraction) / len(_SCALES)
    speech = clean.square().mean(-1) > _LEAST_SPEECH
    if config.ratio_weight and bool(speech.any()):
        loss = loss - config.ratio_weight * snr_db(enhanced[speech], clean[speech]).clamp_max(30.0).mean()
    if perceptual_loss is not None and bool(speech.any()):
        gain = 10.0 ** (LEVEL_DB / 20.0)  # level of its input in use
        loss = loss + config.perceptual_weight * perceptual_loss.distance(gain * enhanced[speech], gain * clean[speech])
    return loss


def _spectral_loss(enhanced: Tensor, clean: Tensor, size: int, complex_weight: float) -> Tensor:
    window = torch.hann_window(size, device=clean.device)
    both = torch.stft(torch.cat([enhanced, clean]), size, size // 4, window=window, return_complex=True)
    both = both / (0.375 * size) ** 0.5
    power = both.real.square() + both.imag.square() + _FLOOR
    magnitude = power ** (0.5 * _COMPRESSION)
    scale = power ** (0.5 * (_COMPRESSION - 1.0))
    one, other = magnitude.chunk(2)
    loss = (1.0 - complex_weight) * (one - other).square().mean()
    for part in (both.real * scale, both.imag * scale):
        one, other = part.chunk(2)
        loss = loss + complex_weight * (one - other).square().mean()
    return loss


def _validate(
    network: nn.Module, batches: list[PairBatch], config: MaskTrainingConfig, perceptual_loss: PerceptualLoss | None
) -> dict[str, float]:
    """Return the loss and the mean SI-SDR improvement where there is speech in noise."""
    device = next(network.parameters()).device
    losses, gains = [], []
    for cpu_batch in batches:
        batch = PairBatch(*(part.to(device) for part in cpu_batch))
        enhanced = network(batch.noisy).float()
        losses.append((float(mask_loss(enhanced, batch, config, perceptual_loss)), len(enhanced)))
        before = si_sdr_db(batch.noisy, batch.clean)
        used = (batch.clean.square().mean(-1) > _LEAST_SPEECH) & (before < 40.0)
        gains += (si_sdr_db(enhanced, batch.clean) - before)[used].tolist()
    total = sum(count for _, count in losses)
    return {
        "loss": sum(loss * count for loss, count in losses) / total,
        "si_sdri_db": float(np.mean(gains)) if gains else 0.0,
    }
