"""Training of the supervised tokenizer: CTC on clean and degraded speech, and consistent tokens of the two views.

Each utterance has two views, clean and degraded by noise and reverberation. Both are recognized from their tokens, and
the degraded view's values before quantization are drawn towards the clean ones. A CTC recognizer may serve as a teacher
by its frame-level character probabilities, also for utterances without text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm import hub
from audio_llm.asr.conformer import output_lengths
from audio_llm.asr.ctc import KIND as CTC
from audio_llm.asr.ctc import CtcPosteriors, CtcRecognizer, load_network
from audio_llm.asr.ctc_model import BLANK, SYMBOLS, CtcModel, encode_symbols, frames_needed
from audio_llm.errors import ConfigError, DataError
from audio_llm.features import frame_lengths, valid_mask
from audio_llm.metrics import word_errors
from audio_llm.simulation.noisy import NoisyConfig, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.tokenizer.s3 import KIND, load_s3_network
from audio_llm.tokenizer.s3_model import S3Config, S3Network, S3Output, log_mel
from audio_llm.training.batching import batches_by_length
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.shards import ShardReader, write_shards

logger = logging.getLogger(__name__)

_VALIDATION_SEED = 1 << 40
CARD = "# A tokenizer\n\nSemantic tokens of English speech at 16 kHz, 25 a second.\n"


def _degraded() -> NoisyConfig:
    return NoisyConfig(silent_prob=0.0, clean_prob=0.1, snr_db=(-3.0, 25.0), room_prob=0.35, clipped_prob=0.02)


@dataclass(frozen=True)
class S3TrainingConfig:
    """How to train the tokenizer.

    Attributes:
        model: Size of the network.
        training: Settings of the training loop.
        degraded: Degradation of the second view of an utterance; with `clean_prob` 1 both are clean.
        batch_seconds: Sound in a batch in seconds, padding included, each utterance counted once.
        max_seconds: Longer utterances are skipped.
        teacher_weight: Weight of the loss against the teacher's probabilities, where there is a teacher.
        consistency_weight: Weight of the consistency loss between the two views before quantization.
        validation_items: Utterances at each validation.
    """

    model: S3Config = field(default_factory=S3Config)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    degraded: NoisyConfig = renamed("spoilt", default_factory=_degraded)  # noqa: RUF009 (a dataclass field)
    batch_seconds: float = 40.0
    max_seconds: float = 16.0
    teacher_weight: float = 0.5
    consistency_weight: float = renamed("likeness", 1.0)
    validation_items: int = 150


class S3Batch(NamedTuple):
    """Utterances, the clean views first, then the degraded ones in the same order.

    Attributes:
        mel: (2 B, F, 80) float32, normalized.
        lengths: (2 B,) int64, frames of each.
        targets: (sum of symbols,) int64, of the B texts in sequence; none for utterances without text.
        target_lengths: (B,) int64, symbols of each.
        teacher: (B, N, 29) float32, the teacher's probabilities; (B, N, 0) without a teacher.
    """

    mel: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    teacher: Tensor


def pack_teacher(pack: Path, recognizer: CtcRecognizer, output: Path) -> int:
    """Write a recognizer's frame-level log-probabilities of every utterance of a pack; return their number."""
    speech = SpeechPack(pack)

    def rows() -> Any:
        for number in range(len(speech)):
            waveform = speech.pcm(number).astype(np.float32) / 32768.0
            (log_probs,) = recognizer.log_probs([waveform])
            yield {"log_probs": log_probs.astype(np.float16)}

    return write_shards(rows(), output)


def train_s3(
    pack: Path,
    tuning: Path,
    output: Path,
    config: S3TrainingConfig,
    *,
    teacher: Path | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
) -> TrainingResult:
    """Train a tokenizer; `output/best` becomes a model directory with the lowest loss on clean and degraded speech.

    Args:
        pack: Training data: packed speech and noise.
        tuning: Validation data: a pack of other speakers and noises.
        output: Folder of the training.
        config: Settings.
        teacher: Result of `pack_teacher` for `pack`.
        max_minutes: Stop after this time.
        resume: Continue from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, stored in its directory.
        start_from: Tokenizer to initialize from, whose size replaces the configured one; or a CTC recognizer of the
            configured width, whose layers are copied.

    Raises:
        DataError: A pack is missing, has no text, or the teacher's probabilities belong to another pack.
    """
    data = _Utterances(pack, config, teacher)
    held_out = _Utterances(tuning, config)
    torch.manual_seed(config.training.seed)
    model = S3Network(config.model) if start_from is None else _start(start_from, config.model)
    size = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%.1f h of %d utterances, %.2f M parameters", data.hours, len(data.rows), size / 1e6)
    validation = held_out.in_order(config.validation_items, config.batch_seconds)

    def save(network: nn.Module, folder: Path) -> None:
        assert isinstance(network, S3Network)
        record = {**(provenance or {}), "training": asdict(config)}
        hub.save_model(folder, asdict(network.config), network.state_dict(), KIND, CARD, record)

    return train(
        model,
        lambda epoch: data.batches(epoch, config),
        lambda network, batch: _loss(network(batch.mel, batch.lengths), batch, config),
        lambda network: _validate(network, held_out, validation, config),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=save,
        prepare=data.collate,
        count_items=lambda batch: float(batch.lengths.sum()) / 100.0,
    )


def _start(name: str | Path, config: S3Config) -> S3Network:
    folder = hub.find_model(name)
    if hub.model_kind(folder) != CTC:
        return load_s3_network(folder).train()
    network = S3Network(config)
    adopt(network, load_network(folder))
    return network


def adopt(network: S3Network, recognizer: CtcModel) -> None:
    """Copy the layers of a recognizer to a tokenizer, blocks in order; the layers at the quantizer stay as they are.

    Where a recognizer folds two frames into one, its first layer is summed and its last one averaged over them, as an
    approximate initialization.

    Raises:
        ConfigError: The two differ in width, or the recognizer has fewer blocks.
    """
    old, new = recognizer.config, network.config
    alike = ("channels", "width", "heads", "feedforward", "kernel")
    if any(getattr(old, name) != getattr(new, name) for name in alike) or old.layers < new.before + new.after:
        remedy = "give model.before, model.after and the widths of the recognizer"
        raise ConfigError(f"a tokenizer {new} cannot start with the layers of {old}", remedy=remedy)
    blocks = [*network.before, *network.after]
    for block, source in zip(blocks, recognizer.blocks, strict=False):
        block.load_state_dict(source.state_dict())
    with torch.no_grad():
        network.front.first.load_state_dict(recognizer.front.first.state_dict())
        network.front.second.load_state_dict(recognizer.front.second.state_dict())
        network.front.project.weight.copy_(recognizer.front.project.weight.unflatten(1, (old.fold, -1)).sum(1))
        network.front.project.bias.copy_(recognizer.front.project.bias)
        network.output.weight.copy_(recognizer.output.weight.unflatten(0, (old.fold, -1)).mean(0))
        network.output.bias.copy_(recognizer.output.bias.unflatten(0, (old.fold, -1)).mean(0))


class _Utterances:
    """The utterances of a pack that are usable for training."""

    def __init__(self, pack: Path, config: S3TrainingConfig, teacher: Path | None = None) -> None:
        self.speech = NoisySpeech(SpeechPack(pack), config.degraded)
        self.teacher = None if teacher is None else ShardReader(teacher)
        samples = self.speech.pack.samples
        if self.teacher is not None and len(self.teacher) != len(samples):
            remedy = "compute the teacher's probabilities for this pack"
            raise DataError(f"{len(self.teacher)} utterances, the pack has {len(samples)}", path=teacher, remedy=remedy)
        self.symbols = [encode_symbols(words) or [] for words in self.speech.pack.words]
        counts = output_lengths(frame_lengths(torch.from_numpy(samples))).tolist()
        fits = np.array([frames_needed(s) < count for s, count in zip(self.symbols, counts, strict=True)])
        known = np.array([bool(s) or self.teacher is not None for s in self.symbols])
        self.rows = np.flatnonzero(fits & known & (samples <= config.max_seconds * 16_000))
        if not len(self.rows):
            raise DataError("no utterance with words and short enough", path=pack, remedy="pack labeled speech")
        self._seed = config.training.seed
        self._samples = samples

    @property
    def hours(self) -> float:
        """Duration of the utterances in hours."""
        return float(self._samples[self.rows].sum()) / 16_000 / 3600

    def batches(self, epoch: int, config: S3TrainingConfig) -> list[list[tuple[int, int]]]:
        """Return the batches of an epoch, (utterance, seed) each."""
        rng = np.random.default_rng([self._seed, epoch])
        limit = int(config.batch_seconds * 16_000)
        return list(batches_by_length(self.rows, self._samples, limit, rng))

    def in_order(self, count: int, batch_seconds: float) -> list[list[tuple[int, int]]]:
        """Return `count` utterances with text, always the same ones and degraded alike."""
        labeled = [int(row) for row in self.rows if self.symbols[row]]
        rows = [labeled[index] for index in np.random.default_rng(0).permutation(len(labeled))[:count]]
        rows.sort(key=lambda row: self._samples[row])
        size = max(1, int(batch_seconds * 16_000 / max(self._samples[row] for row in rows)))
        return [[(row, _VALIDATION_SEED + row) for row in rows[i : i + size]] for i in range(0, len(rows), size)]

    def collate(self, chosen: Sequence[tuple[int, int]]) -> S3Batch:
        """Return both views of some utterances."""
        pairs = [self.speech.utterance(row, seed) for row, seed in chosen]
        sounds = [torch.from_numpy(sound) for sound in [p.clean for p in pairs] + [p.noisy for p in pairs]]
        lengths = torch.tensor([len(sound) for sound in sounds])
        mel, frames = log_mel(nn.utils.rnn.pad_sequence(sounds, batch_first=True), lengths)
        symbols = [self.symbols[row] for row, _ in chosen]
        teacher = torch.zeros(len(chosen), int(output_lengths(frames).max()), 0)
        if self.teacher is not None:
            rows = [torch.from_numpy(self.teacher[row]["log_probs"]).float().exp() for row, _ in chosen]
            silent = torch.nn.functional.one_hot(torch.tensor(BLANK), len(SYMBOLS)).float()
            rows = [row if len(row) else silent[None] for row in rows]
            teacher = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        targets = torch.tensor([number for numbers in symbols for number in numbers], dtype=torch.int64)
        return S3Batch(mel, frames, targets, torch.tensor([len(numbers) for numbers in symbols]), teacher)


def _loss(output: S3Output, batch: S3Batch, config: S3TrainingConfig) -> Tensor:
    count = len(batch.target_lengths)
    labeled = batch.target_lengths > 0
    loss = output.log_probs.new_zeros(())
    mask = valid_mask(output.lengths[:count], output.log_probs.shape[1])
    for log_probs in output.log_probs.split(count):
        if bool(labeled.any()):
            args = (batch.targets, output.lengths[:count][labeled], batch.target_lengths[labeled])
            ctc = functional.ctc_loss(
                log_probs[labeled].transpose(0, 1), *args, blank=BLANK, reduction="sum", zero_infinity=True
            )
            loss = loss + 0.5 * ctc / batch.target_lengths.sum()
        if config.teacher_weight and batch.teacher.shape[2]:
            frames = min(log_probs.shape[1], batch.teacher.shape[1])
            cross = -(batch.teacher[:, :frames] * log_probs[:, :frames]).sum(-1)
            loss = loss + 0.5 * config.teacher_weight * cross[mask[:, :frames]].mean()
    if config.consistency_weight:
        clean, degraded = output.quantized.bounded.split(count)
        loss = loss + config.consistency_weight * (degraded - clean.detach()).square()[mask].mean()
    return loss


def _validate(
    network: nn.Module, data: _Utterances, batches: list[list[tuple[int, int]]], config: S3TrainingConfig
) -> dict[str, float]:
    """Return the loss, the word error rates of clean and degraded speech, the tokens' change rate and entropy."""
    assert isinstance(network, S3Network)
    device = network.output.weight.device
    losses, references, changed, tokens = [], [], [], []
    texts: list[list[str]] = [[], []]
    for chosen in batches:
        batch = S3Batch(*(part.to(device) for part in data.collate(chosen)))
        output = network(batch.mel, batch.lengths)
        losses.append((float(_loss(output, batch, config)), len(chosen)))
        references += [data.speech.pack.words[row] for row, _ in chosen]
        mask = valid_mask(output.lengths[: len(chosen)], output.log_probs.shape[1])
        clean, degraded = output.quantized.codes.split(len(chosen))
        changed.append((clean != degraded)[mask])
        tokens.append(clean[mask])
        for view, log_probs in enumerate(output.log_probs.split(len(chosen))):
            rows = zip(log_probs.double().cpu().numpy(), output.lengths, strict=False)
            texts[view] += [CtcPosteriors(row[: int(size)]).greedy_text() for row, size in rows]
    probabilities = torch.bincount(torch.cat(tokens)).float()
    probabilities = probabilities[probabilities > 0] / probabilities.sum()
    return {
        "loss": sum(value * count for value, count in losses) / sum(count for _, count in losses),
        "wer_clean": word_errors(references, texts[0]).rate,
        "wer_spoilt": word_errors(references, texts[1]).rate,
        "changed": float(torch.cat(changed).float().mean()),
        "entropy_bits": float(-(probabilities * probabilities.log2()).sum()),
    }
