"""Training of the vocoder to reconstruct segments of packed speech from their mel spectra."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.codec.losses import spectral_distance
from audio_llm.codec.mel import log_mel
from audio_llm.codec.sound_loss import SoundLoss, SoundLossConfig
from audio_llm.codec.train import make_batch
from audio_llm.codec.vocoder import KIND, Vocoder, VocoderConfig, load_vocoder
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.perceptual import PerceptualLoss, provenance_of

logger = logging.getLogger(__name__)

_VALIDATION_SEED = 1 << 40
CARD = "# A vocoder\n\nMel spectra of speech to sound at 16 kHz.\n"


def _speech() -> NoisyConfig:
    return NoisyConfig(
        seconds=1.28, clean_prob=0.95, silent_prob=0.01, snr_db=(5.0, 25.0), room_prob=0.05, clipped_prob=0.0,
        narrow_prob=0.02, level_db=(-32.0, -20.0), tone_db=3.0,
    )  # fmt: skip


@dataclass(frozen=True)
class VocoderTrainingConfig:
    """How to train the vocoder.

    Attributes:
        model: Size of the network.
        training: Settings of the training loop.
        speech: Simulation of the segments, which are the targets.
        batch: Segments in a batch.
        epoch_batches: Batches in an epoch.
        sound: Weights of the losses.
        validation: Segments at each validation, all without noise.
    """

    model: VocoderConfig = field(default_factory=VocoderConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    speech: NoisyConfig = field(default_factory=_speech)
    batch: int = 12
    epoch_batches: int = 1000
    sound: SoundLossConfig = field(default_factory=SoundLossConfig)
    validation: int = 64


class _Training(nn.Module):
    """The vocoder and its loss as one module to optimize."""

    def __init__(self, config: VocoderTrainingConfig, vocoder: Vocoder, perceptual_loss: PerceptualLoss | None) -> None:
        super().__init__()
        self.vocoder, self.judge = vocoder, SoundLoss(config.sound, perceptual_loss, config.training.batches_per_step)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the loss of (B, T) float32; a scalar."""
        loss: Tensor = self.judge(_vocoded(self.vocoder, waveforms), waveforms)
        return loss


def train_vocoder(
    pack: Path,
    tuning: Path,
    output: Path,
    config: VocoderTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
    perceptual_loss: PerceptualLoss | None = None,
) -> TrainingResult:
    """Train a vocoder; `output/best` becomes a model directory with the smallest spectral distance.

    With discriminators it is the latest one that was validated, since their gain does not show in spectral distances.

    Args:
        pack: Training data: packed speech and noise.
        tuning: Validation data: a pack of other speakers.
        output: Folder of the training.
        config: Settings.
        max_minutes: Stop after this time.
        resume: Continue from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, stored in its directory.
        start_from: Vocoder to initialize from; its size replaces the configured one.
        perceptual_loss: Compares output and original by features of a trained network.

    Raises:
        DataError: A pack is missing.
    """
    speech = NoisySpeech(SpeechPack(pack), config.speech)
    held_out = NoisySpeech(SpeechPack(tuning), replace(config.speech, clean_prob=1.0, silent_prob=0.0))
    torch.manual_seed(config.training.seed)
    vocoder = Vocoder(config.model) if start_from is None else load_vocoder(start_from).train()
    size = sum(parameter.numel() for parameter in vocoder.parameters())
    logger.info("%.1f h of %d utterances, %.2f M parameters", speech.pack.hours, len(speech.pack), size / 1e6)
    validation = [
        make_batch(held_out, chosen, _VALIDATION_SEED).waveforms
        for chosen in fixed_batches(config.batch, config.validation)
    ]

    def save(module: nn.Module, folder: Path) -> None:
        network = module.vocoder
        assert isinstance(network, Vocoder)
        record = {**(provenance or {}), **provenance_of(perceptual_loss), "training": asdict(config)}
        hub.save_model(folder, asdict(network.config), network.state_dict(), KIND, CARD, record)

    return train(
        _Training(config, vocoder, perceptual_loss),
        fresh_batches(config.batch, config.epoch_batches),
        lambda module, waveforms: module(waveforms),
        lambda module: _validate(module, validation),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        monitor="loss" if config.sound.adversarial_from < 0 else "latest",
        save=save,
        prepare=lambda chosen: make_batch(speech, chosen).waveforms,
        count_items=lambda waveforms: waveforms.numel() / 16_000,
    )


def _vocoded(vocoder: nn.Module, waveforms: Tensor) -> Tensor:
    vocoded: Tensor = vocoder(log_mel(waveforms))[:, : waveforms.shape[1]]
    return vocoded.float()


def _validate(module: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Return the spectral distance, the perceptual loss, and `latest`, which falls with every batch."""
    sound_loss = module.judge
    assert isinstance(sound_loss, SoundLoss)
    device, total = next(module.parameters()).device, sum(map(len, batches))
    totals: dict[str, float] = {"latest": -float(sound_loss.batches)}
    for batch in batches:
        waveforms = batch.to(device)
        vocoded = _vocoded(module.vocoder, waveforms)  # type: ignore[arg-type]
        values = {"loss": spectral_distance(vocoded, waveforms)}
        if sound_loss.perceptual_loss is not None:
            values["listening"] = sound_loss.perceptual_loss.distance(vocoded, waveforms)
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(waveforms) / total
    return totals
