"""Training of the CTC recognizer: batches of packed features, masks, the CTC loss, word error rate by greedy text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audio_llm import features
from audio_llm.asr.ctc import CtcPosteriors, load_network, save_ctc
from audio_llm.asr.ctc_model import BLANK, SUBSAMPLING, CtcConfig, CtcModel, CtcOutput, encode_symbols
from audio_llm.errors import DataError
from audio_llm.metrics import character_error_rate, word_errors
from audio_llm.text import NORMALIZERS
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.shards import ShardReader, decode_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CtcTrainingConfig:
    """Configuration of the training of the recognizer.

    Attributes:
        model: Size of the network.
        training: Settings of the training loop.
        batch_seconds: Seconds of sound in a batch, padding included.
        max_seconds: Longest utterance in seconds; longer ones are skipped.
        time_masks: Stretches of frames blanked out (SpecAugment).
        time_mask_s: Longest stretch in seconds.
        band_masks: Stretches of mel bands blanked out.
        band_mask: Widest stretch in bands.
        stretch: Largest relative change of an utterance's length.
        halfway: Weight of the intermediate CTC loss.
        phone_weight: Weight of the phone loss at the middle layer, for synthetic utterances, whose phones are known.
        short_first: Order the first epoch from short to long utterances, with which CTC converges sooner.
        validation_items: Utterances recognized at each validation.
    """

    model: CtcConfig = field(default_factory=CtcConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=20_000))
    batch_seconds: float = 120.0
    max_seconds: float = 20.0
    time_masks: int = 2
    time_mask_s: float = 0.3
    band_masks: int = 2
    band_mask: int = 16
    stretch: float = 0.1
    halfway: float = 0.3
    phone_weight: float = 0.5
    short_first: bool = True
    validation_items: int = 200


@dataclass(frozen=True)
class CtcBatch:
    """Batch of utterances.

    Attributes:
        mel: (B, F, 80) float32, normalized, zero-padded.
        lengths: (B,) int64, feature frames of each.
        targets: (sum of symbols,) int64, concatenated texts.
        target_lengths: (B,) int64, symbols of each text.
        phones: (B, F) int64, phone of each feature frame, 0 where it is unknown.
    """

    mel: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    phones: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> CtcBatch:
        """Return the batch on another device."""
        moved = (getattr(self, name).to(device, non_blocking=non_blocking) for name in self.__dataclass_fields__)
        return CtcBatch(*moved)


def train_ctc(
    packs: Sequence[Path],
    tuning: Path,
    output: Path,
    config: CtcTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
) -> TrainingResult:
    """Train a recognizer; `output/best` becomes a model directory with the lowest word error rate.

    Args:
        packs: Folders of training shards; a folder given twice counts twice.
        tuning: Folder of validation shards.
        output: Output folder of the training.
        config: Configuration of the training.
        max_minutes: Time limit.
        resume: Continue from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Provenance to store in the model directory.
        start_from: Model to initialize from; its size replaces that of the configuration.

    Raises:
        DataError: A pack is missing or has no utterance that is short enough.
    """
    data = Utterances(packs, config.max_seconds)
    held_out = Utterances([tuning], config.max_seconds)
    torch.manual_seed(config.training.seed)
    model = CtcModel(config.model) if start_from is None else load_network(start_from)
    config = replace(config, model=model.config)
    size = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%d utterances, %.1f h, %.2f M parameters", len(data), data.hours, size / 1e6)

    def loss(network: nn.Module, batch: CtcBatch) -> torch.Tensor:
        output = network(batch.mel, batch.lengths, halfway=config.halfway > 0)
        return ctc_loss(output, batch, config.halfway) + config.phone_weight * phone_loss(output, batch)

    return train(
        model,
        lambda epoch: data.batches(epoch, config),
        loss,
        lambda network: evaluate(network, held_out, config),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        monitor="wer",
        save=lambda network, folder: _save(network, folder, config, provenance),
        prepare=lambda chosen: data.collate(chosen, config),
        count_items=lambda batch: float(batch.lengths.sum()) / features.FRAME_RATE,
    )


def ctc_loss(output: CtcOutput, batch: CtcBatch, halfway: float) -> torch.Tensor:
    """Return the scalar CTC loss per symbol, in which the loss of the middle layer has the weight `halfway`."""

    def one(log_probs: torch.Tensor) -> torch.Tensor:
        args = (log_probs.transpose(0, 1), batch.targets, output.lengths, batch.target_lengths)
        total = functional.ctc_loss(*args, blank=BLANK, reduction="sum", zero_infinity=True)
        return total / batch.target_lengths.sum().clamp_min(1)

    if output.halfway is None:
        return one(output.log_probs)
    return (1.0 - halfway) * one(output.log_probs) + halfway * one(output.halfway)


def phone_loss(output: CtcOutput, batch: CtcBatch) -> torch.Tensor:
    """Return the phone cross-entropy per output frame with a known phone; 0 where the network has no phone output."""
    if output.phones is None:
        return output.log_probs.new_zeros(())
    targets = batch.phones[:, SUBSAMPLING // 2 :: SUBSAMPLING]
    frames = min(targets.shape[1], output.phones.shape[1])
    targets = targets[:, :frames] - 1
    total = functional.nll_loss(output.phones[:, :frames].transpose(1, 2), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp_min(1)


def evaluate(model: nn.Module, data: Utterances, config: CtcTrainingConfig) -> dict[str, float]:
    """Return loss per symbol, word and character error rate of greedy texts on the first utterances."""
    device = next(model.parameters()).device
    losses, references, texts = [], [], []
    for chosen in data.in_order(config.validation_items, config.batch_seconds):
        batch = data.collate(Batch(chosen, None), config).to(device)
        output = model(batch.mel, batch.lengths)
        losses.append((float(ctc_loss(output, batch, 0.0)), len(chosen)))
        texts += greedy_texts(output)
        references += [data.texts[i] for i in chosen]
    loss = sum(value * count for value, count in losses) / sum(count for _, count in losses)
    logger.info("hypothesis: %s | reference: %s", texts[0], references[0])
    plain = NORMALIZERS["raw"]
    rates = word_errors(references, texts, plain).rate, character_error_rate(references, texts, plain)
    return {"loss": loss, "wer": rates[0], "cer": rates[1]}


def greedy_texts(output: CtcOutput) -> list[str]:
    """Return the greedy text of each utterance."""
    rows = output.log_probs.cpu().numpy()
    return [CtcPosteriors(row[: int(length)]).greedy_text() for row, length in zip(rows, output.lengths, strict=True)]


@torch.inference_mode()
def recognize_packed(
    model: CtcModel, pack: Path, passes: int, dropout: float, seed: int
) -> list[tuple[str, list[str]]]:
    """Return (reference, hypotheses) of every utterance of a pack: training pairs of a Denoising LM.

    In the first pass the sound is unchanged. Each further pass draws other masks, another speed and other dropout, so
    that training utterances are misrecognized as unseen ones are.

    Args:
        model: The network.
        pack: Folder that `ctc_data.pack` wrote.
        passes: How often each utterance is recognized.
        dropout: Dropout rate of the further passes.
        seed: Seed of all random draws.
    """
    config = CtcTrainingConfig(model=model.config)
    data = Utterances([pack], config.max_seconds)
    hypotheses: list[list[str]] = [[] for _ in range(len(data))]
    for number in range(passes):
        torch.manual_seed(seed + number)
        for batch_number, chosen in enumerate(data.in_order(len(data), config.batch_seconds)):
            batch = data.collate(
                Batch(chosen, (seed << 40) + (number << 32) + batch_number if number else None), config
            )
            output = model.eval()(batch.mel, batch.lengths, dropout if number else 0.0)
            for i, text in zip(chosen, greedy_texts(output), strict=True):
                hypotheses[i].append(text)
        logger.info("%s, pass %d of %d: %d utterances recognized", pack.name, number + 1, passes, len(data))
    return list(zip(data.texts, hypotheses, strict=True))


@torch.inference_mode()
def log_probs_packed(model: CtcModel, pack: Path) -> list[tuple[str, np.ndarray]]:
    """Return (reference, (N, 29) float64 log-probabilities) of every utterance of a pack, to tune a search on."""
    config = CtcTrainingConfig(model=model.config)
    data = Utterances([pack], config.max_seconds)
    results: list[tuple[str, np.ndarray]] = []
    for chosen in data.in_order(len(data), config.batch_seconds):
        batch = data.collate(Batch(chosen, None), config)
        output = model.eval()(batch.mel, batch.lengths)
        for i, log_probs, length in zip(chosen, output.log_probs.double().numpy(), output.lengths, strict=True):
            results.append((data.texts[i], log_probs[: int(length)]))
    return results


@dataclass(frozen=True)
class Batch:
    """Utterances chosen for a batch.

    Attributes:
        items: Indices of the utterances.
        seed: Seed of masks and stretching; None for neither.
    """

    items: list[int]
    seed: int | None


class Utterances:
    """Packed utterances in memory-mapped shards.

    Args:
        folders: Packs, as written by `ctc_data.pack`.
        max_seconds: Longest utterance in seconds; longer ones are skipped.

    Raises:
        DataError: A pack is missing, or has no utterance that is short enough.
    """

    def __init__(self, folders: Sequence[Path], max_seconds: float) -> None:
        self._readers = [ShardReader(folder) for folder in folders]
        self._positions: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self.frames: list[int] = []
        self._symbols: list[list[int]] = []
        for number, reader in enumerate(self._readers):
            rows = zip(reader.lengths("mel").tolist(), reader.column("text"), strict=True)
            for row, (frames, text) in enumerate(rows):
                symbols = encode_symbols(decode_text(text))
                if symbols and 0 < frames <= max_seconds * features.FRAME_RATE:
                    self._positions.append((number, row))
                    self.frames.append(frames)
                    self.texts.append(decode_text(text))
                    self._symbols.append(symbols)
        if not self._positions:
            raise DataError(f"no utterance of at most {max_seconds:g} s", path=folders[0] if folders else None)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def hours(self) -> float:
        """Sound in hours."""
        return sum(self.frames) / features.FRAME_RATE / 3600

    def batches(self, epoch: int, config: CtcTrainingConfig) -> list[Batch]:
        """Return batches of similar lengths in random order; short ones first in the first epoch."""
        rng = np.random.default_rng([config.training.seed, epoch])
        lengths = np.array(self.frames)
        order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)), kind="stable")
        batches = self._cut(order.tolist(), config.batch_seconds)
        if epoch > 0 or not config.short_first:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return [
            Batch(batch, int(seed))
            for batch, seed in zip(batches, rng.integers(1 << 62, size=len(batches)), strict=True)
        ]

    def in_order(self, count: int, batch_seconds: float) -> list[list[int]]:
        """Return the first `count` utterances in batches of similar lengths."""
        order = sorted(range(min(count, len(self))), key=lambda i: self.frames[i])
        return self._cut(order, batch_seconds)

    def collate(self, batch: Batch, config: CtcTrainingConfig) -> CtcBatch:
        """Return the features and symbols of a batch, stretched and masked as its seed decides."""
        rng = None if batch.seed is None else np.random.default_rng(batch.seed)
        mels, phones = [], []
        for i in batch.items:
            number, row = self._positions[i]
            arrays = self._readers[number][row]
            mel = features.from_uint8(torch.from_numpy(arrays["mel"]))
            known = torch.from_numpy(arrays["phones"]).long() if "phones" in arrays else torch.zeros(len(mel)).long()
            size = len(mel) if rng is None else self._stretched(len(mel), len(self._symbols[i]), rng, config)
            if size != len(mel):
                known = known[torch.arange(size) * len(mel) // size]
                mel = functional.interpolate(mel.T[None], size=size, mode="linear", align_corners=False)[0].T
            mels.append(mel)
            phones.append(known)
        lengths = torch.tensor([len(mel) for mel in mels])
        padded = features.normalize(nn.utils.rnn.pad_sequence(mels, batch_first=True), lengths)
        if rng is not None:
            for mel, length in zip(padded, lengths.tolist(), strict=True):
                _mask(mel, length, rng, config)
        symbols = [self._symbols[i] for i in batch.items]
        targets = torch.tensor([number for numbers in symbols for number in numbers])
        sizes = torch.tensor([len(numbers) for numbers in symbols])
        return CtcBatch(padded, lengths, targets, sizes, nn.utils.rnn.pad_sequence(phones, batch_first=True))

    def _cut(self, order: list[int], batch_seconds: float) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        longest = 0
        for i in order:
            longest = max(longest, self.frames[i])
            if batches[-1] and (len(batches[-1]) + 1) * longest > batch_seconds * features.FRAME_RATE:
                batches.append([])
                longest = self.frames[i]
            batches[-1].append(i)
        return batches

    def _stretched(self, frames: int, symbols: int, rng: np.random.Generator, config: CtcTrainingConfig) -> int:
        """Draw a new length that leaves enough frames for the letters."""
        size = round(frames * (1 + float(rng.uniform(-config.stretch, config.stretch))))
        return frames if size < 5 * symbols else size


def _mask(mel: torch.Tensor, frames: int, rng: np.random.Generator, config: CtcTrainingConfig) -> None:
    """Blank out stretches of time and bands of one utterance (F, 80) in place."""
    longest = min(round(config.time_mask_s * features.FRAME_RATE), frames // 5)
    for _ in range(config.time_masks):
        size = int(rng.integers(0, longest + 1))
        start = int(rng.integers(0, frames - size + 1))
        mel[start : start + size] = 0.0
    for _ in range(config.band_masks):
        size = int(rng.integers(0, config.band_mask + 1))
        start = int(rng.integers(0, features.N_MELS - size + 1))
        mel[:, start : start + size] = 0.0


def _save(model: nn.Module, folder: Path, config: CtcTrainingConfig, provenance: dict[str, Any] | None) -> None:
    assert isinstance(model, CtcModel)
    full_provenance = {**(provenance or {}), "training": asdict(config)}
    save_ctc(model, folder, "# A CTC recognizer\n\nCharacters of English speech at 16 kHz.\n", full_provenance)
