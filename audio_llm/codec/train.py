"""Training of the codec to reconstruct segments of packed speech, some of them noisy."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.codec.codec import KIND, load_codec_network
from audio_llm.codec.losses import spectral_distance
from audio_llm.codec.model import CodecConfig, CodecNetwork
from audio_llm.codec.sound_loss import SoundLoss, SoundLossConfig
from audio_llm.errors import ConfigError
from audio_llm.quantizers.group_reorg import GroupVQ, reorganize
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.perceptual import PerceptualLoss, provenance_of

logger = logging.getLogger(__name__)

_VALIDATION_SEED = 1 << 40
CARD = "# A codec\n\nSpeech at 16 kHz as one stream of codes.\n"


def _mostly_clean() -> NoisyConfig:
    return NoisyConfig(
        seconds=1.5, clean_prob=0.75, silent_prob=0.01, snr_db=(0.0, 25.0), room_prob=0.15, clipped_prob=0.0,
        narrow_prob=0.05, level_db=(-32.0, -18.0),
    )  # fmt: skip


@dataclass(frozen=True)
class CodecTrainingConfig:
    """How to train the codec.

    Attributes:
        model: Size of the network.
        training: Settings of the training loop.
        speech: Simulation of the segments; the target is the input, including its noise.
        batch: Segments in a batch.
        epoch_batches: Batches in an epoch.
        quantizer_weight: Weight of the quantizer's loss.
        sound: Weights of the losses of decoded speech.
        frozen_codes: Whether only the decoder is trained: encoder and quantizer of the start model stay as they are, so
            that the codes keep their meaning and language models of them stay valid.
        more_blocks: Decoder blocks appended to those of the start model; at first they change nothing.
        validation: Segments at each validation, all without noise.
    """

    model: CodecConfig = field(default_factory=CodecConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    speech: NoisyConfig = field(default_factory=_mostly_clean)
    batch: int = 12
    epoch_batches: int = 1000
    quantizer_weight: float = 1.0
    sound: SoundLossConfig = field(default_factory=SoundLossConfig)
    frozen_codes: bool = False
    more_blocks: int = 0
    validation: int = 64

    def __post_init__(self) -> None:
        if self.more_blocks < 0:
            raise ConfigError(f"more_blocks is {self.more_blocks}", remedy="give 0 or more")


class SpeechBatch(NamedTuple):
    """Segments of speech: (B, T) float32 at 16 kHz."""

    waveforms: Tensor


class _Training(nn.Module):
    """The codec and its loss as one module to optimize."""

    def __init__(
        self, config: CodecTrainingConfig, codec: CodecNetwork, perceptual_loss: PerceptualLoss | None = None
    ) -> None:
        super().__init__()
        self.config, self.codec = config, codec
        self.judge = SoundLoss(config.sound, perceptual_loss, config.training.batches_per_step)
        if config.frozen_codes:
            for part in codec.coding_parts():
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> _Training:
        """Set the training mode; frozen parts stay in eval mode."""
        super().train(mode)
        if self.config.frozen_codes:
            for part in self.codec.coding_parts():
                part.eval()
        return self

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the loss of (B, T) float32; a scalar."""
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        output = self.codec(waveforms, lengths)
        loss: Tensor = self.judge(output.waveforms, waveforms)
        return loss + self.config.quantizer_weight * output.quantized.loss


def train_codec(
    pack: Path,
    tuning: Path,
    output: Path,
    config: CodecTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
    perceptual_loss: PerceptualLoss | None = None,
) -> TrainingResult:
    """Train a codec; `output/best` becomes a model directory with the smallest spectral distance.

    Args:
        pack: Training data: packed speech and noise.
        tuning: Validation data: a pack of other speakers.
        output: Folder of the training.
        config: Settings.
        max_minutes: Stop after this time.
        resume: Continue from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, stored in its directory.
        start_from: Codec to initialize from; its size replaces the configured one. Its `group` codebooks are
            reorganized where the configuration has a `reorganized` one: stage 2 of the method.
        perceptual_loss: Compares decoded and original speech by features of a trained network.

    Raises:
        ConfigError: Codes are to be frozen, or blocks added, without a codec to initialize from.
        DataError: A pack is missing.
    """
    speech = NoisySpeech(SpeechPack(pack), config.speech)
    held_out = NoisySpeech(SpeechPack(tuning), replace(config.speech, clean_prob=1.0, silent_prob=0.0))
    torch.manual_seed(config.training.seed)
    if start_from is None and (config.frozen_codes or config.more_blocks):
        raise ConfigError("there are no codes to freeze and no decoder to extend", remedy="name a codec to start from")
    codec = CodecNetwork(config.model) if start_from is None else _start(start_from, config)
    config = replace(config, model=codec.config)
    size = sum(parameter.numel() for parameter in codec.parameters())
    logger.info("%.1f h of %d utterances, %.2f M parameters", speech.pack.hours, len(speech.pack), size / 1e6)
    validation = [
        make_batch(held_out, chosen, _VALIDATION_SEED) for chosen in fixed_batches(config.batch, config.validation)
    ]

    def save(module: nn.Module, folder: Path) -> None:
        network = module.codec
        assert isinstance(network, CodecNetwork)
        record = {**(provenance or {}), **provenance_of(perceptual_loss), "training": asdict(config)}
        hub.save_model(folder, asdict(network.config), network.state_dict(), KIND, CARD, record)

    return train(
        _Training(config, codec, perceptual_loss),
        fresh_batches(config.batch, config.epoch_batches),
        lambda module, batch: module(batch.waveforms),
        lambda module: _validate(module, validation),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=save,
        prepare=lambda chosen: make_batch(speech, chosen),
        count_items=lambda batch: batch.waveforms.numel() / 16_000,
    )


def make_batch(speech: NoisySpeech, seeds: range, offset: int = 0) -> SpeechBatch:
    """Return the segments drawn by these seeds."""
    return SpeechBatch(torch.from_numpy(np.stack([speech.pair(seed + offset).noisy for seed in seeds])))


def reorganized(codec: CodecNetwork, config: CodecConfig) -> CodecNetwork:
    """Return the codec of stage 2: one codebook of pairs of the most used codes, everything else as in stage 1.

    Args:
        codec: Codec trained with `group` codebooks.
        config: Configuration of stage 2; its number of codes is split evenly between the halves, the first half has the
            odd factor of 2.

    Raises:
        ConfigError: The number of codes is no power of 2.
    """
    if config.codes & (config.codes - 1):
        raise ConfigError(f"{config.codes} codes do not split into two halves", remedy="give a power of 2")
    groups = codec.quantizer
    assert isinstance(groups, GroupVQ)
    first = 1 << -(-(config.codes.bit_length() - 1) // 2)
    new = CodecNetwork(replace(codec.config, quantizer="reorganized", codes=config.codes))
    weights = {name: value for name, value in codec.state_dict().items() if not name.startswith("quantizer.")}
    new.load_state_dict(weights, strict=False)
    new.quantizer = reorganize(groups, first, config.codes // first)
    return new


def extended(codec: CodecNetwork, blocks: int) -> CodecNetwork:
    """Return a codec with so many more decoder blocks, which change nothing yet."""
    count = codec.config.decoder_blocks
    new = CodecNetwork(replace(codec.config, decoder_blocks=count + blocks))
    new.load_state_dict(codec.state_dict(), strict=False)
    for block in new.decoder.blocks[count:]:
        nn.init.zeros_(block.get_parameter("scale"))
    return new


def _start(name: str | Path, config: CodecTrainingConfig) -> CodecNetwork:
    codec = load_codec_network(name).train()
    if codec.config.quantizer == "group" and config.model.quantizer == "reorganized":
        if config.frozen_codes:
            raise ConfigError("a codebook that is reorganized changes its codes", remedy="leave out frozen_codes")
        codec = reorganized(codec, config.model)
    return extended(codec, config.more_blocks) if config.more_blocks else codec


def _validate(module: nn.Module, batches: list[SpeechBatch]) -> dict[str, float]:
    """Return the spectral distance, the perceptual loss, and the number and perplexity of the codes in use."""
    codec, sound_loss = module.codec, module.judge
    assert isinstance(codec, CodecNetwork)
    assert isinstance(sound_loss, SoundLoss)
    perceptual_loss = sound_loss.perceptual_loss
    device = codec.enter.weight.device
    distances, perceptual, codes = [], [], []
    for batch in batches:
        waveforms = batch.waveforms.to(device)
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=device)
        output = codec(waveforms, lengths)
        decoded = output.waveforms.float()
        distances.append((float(spectral_distance(decoded, waveforms)), len(waveforms)))
        if perceptual_loss is not None:
            perceptual.append((float(perceptual_loss.distance(decoded, waveforms)), len(waveforms)))
        codes.append(output.quantized.codes.flatten())
    total = sum(count for _, count in distances)
    uses = torch.bincount(torch.cat(codes), minlength=codec.quantizer.size).float()
    probabilities = uses[uses > 0] / uses.sum()
    perplexity = float((-(probabilities * probabilities.log()).sum()).exp())
    loss = sum(value * count for value, count in distances) / total
    metrics = {"loss": loss}
    if perceptual_loss is not None:
        metrics["listening"] = sum(value * count for value, count in perceptual) / total
    return {**metrics, "codes_used": float((uses > 0).sum()), "perplexity": perplexity}
