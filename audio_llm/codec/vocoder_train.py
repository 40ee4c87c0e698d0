"""Training of the vocoder: stretches of packed speech, to come back from their mel spectra."""

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
        seconds=1.28, clean_share=0.95, silent_share=0.01, snr_db=(5.0, 25.0), room_share=0.05, clipped_share=0.0,
        narrow_share=0.02, level_db=(-32.0, -20.0), tone_db=3.0,
    )  # fmt: skip


@dataclass(frozen=True)
class VocoderTrainingConfig:
    """How to train the vocoder.

    Attributes:
        model: Its size.
        training: The loop's settings.
        speech: How stretches are drawn; what comes out should be what goes in.
        batch: Stretches in a batch.
        epoch_batches: Batches in an epoch.
        sound: Weights of what the sound is judged by.
        validation: Stretches of the tuning part at each validation, all without noise.
    """

    model: VocoderConfig = field(default_factory=VocoderConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    speech: NoisyConfig = field(default_factory=_speech)
    batch: int = 12
    epoch_batches: int = 1000
    sound: SoundLossConfig = field(default_factory=SoundLossConfig)
    validation: int = 64


class _Training(nn.Module):
    """The vocoder, and what its sounds are judged by, as one thing to optimise."""

    def __init__(self, config: VocoderTrainingConfig, vocoder: Vocoder, listener: PerceptualLoss | None) -> None:
        super().__init__()
        self.vocoder, self.judge = vocoder, SoundLoss(config.sound, listener, config.training.batches_per_step)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the loss of (B, T) float32; a scalar."""
        loss: Tensor = self.judge(_made(self.vocoder, waveforms), waveforms)
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
    listener: PerceptualLoss | None = None,
) -> TrainingResult:
    """Train a vocoder; `output/best` becomes a model directory with the smallest spectral distance.

    With discriminators it is the latest one that was validated: what they are for no distance of spectra tells.

    Args:
        pack: Packed speech and noise to learn from.
        tuning: The same, of other people, which decides which model is the best.
        output: Folder of the training.
        config: How to train.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: What made the model, for its directory.
        start_from: A vocoder to start from; its size counts, not the configuration's.
        listener: Hears the sound, for it to keep what a listener notices.

    Raises:
        DataError: A pack is missing.
    """
    speech = NoisySpeech(SpeechPack(pack), config.speech)
    held_out = NoisySpeech(SpeechPack(tuning), replace(config.speech, clean_share=1.0, silent_share=0.0))
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
        made_by = {**(provenance or {}), **provenance_of(listener), "training": asdict(config)}
        hub.save_model(folder, asdict(network.config), network.state_dict(), KIND, CARD, made_by)

    return train(
        _Training(config, vocoder, listener),
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


def _made(vocoder: nn.Module, waveforms: Tensor) -> Tensor:
    made: Tensor = vocoder(log_mel(waveforms))[:, : waveforms.shape[1]]
    return made.float()


def _validate(module: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Return the spectral distance, how far off a listener is, and a number that falls with every batch learned."""
    judge = module.judge
    assert isinstance(judge, SoundLoss)
    device, total = next(module.parameters()).device, sum(map(len, batches))
    found: dict[str, float] = {"latest": -float(judge.batches)}
    for batch in batches:
        waveforms = batch.to(device)
        made = _made(module.vocoder, waveforms)  # type: ignore[arg-type]
        values = {"loss": spectral_distance(made, waveforms)}
        if judge.listener is not None:
            values["listening"] = judge.listener.distance(made, waveforms)
        for name, value in values.items():
            found[name] = found.get(name, 0.0) + float(value) * len(waveforms) / total
    return found
