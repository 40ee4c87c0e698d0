"""Training of the CTC recogniser: batches of packed features, masks, the CTC loss, word error rate by greedy text."""

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
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.shards import ShardReader, decode_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CtcTrainingConfig:
    """How to train the recogniser.

    Attributes:
        model: Size of the network.
        training: The loop's settings.
        batch_seconds: Sound in a batch, padding included.
        max_seconds: Longer utterances are left out.
        time_masks: Stretches of frames blanked out (SpecAugment).
        time_mask_s: Longest stretch in seconds.
        band_masks: Stretches of mel bands blanked out.
        band_mask: Widest stretch in bands.
        stretch: Utterances are made longer or shorter by up to this share.
        halfway: Weight of the loss in the middle of the network.
        phone_weight: Weight of telling phones apart in the middle, where the pack knows them (spoken texts).
        short_first: The first epoch goes from short to long utterances, which CTC learns from sooner.
        validation_items: Utterances of the tuning part that are recognised at each validation.
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
    """Utterances ready for the network.

    Attributes:
        mel: (B, F, 80) float32, normalised, zeros behind each end.
        lengths: (B,) int64, frames of each.
        targets: (sum of symbols,) int64, one text after another.
        target_lengths: (B,) int64, symbols of each.
        phones: (B, F) int64, phone of each feature frame, 0 where none is known.
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
    """Train a recogniser; `output/best` becomes a model directory with the lowest word error rate.

    Args:
        packs: Folders of packed utterances to learn from; a folder given twice counts twice.
        tuning: Folder of packed utterances that decide which model is the best.
        output: Folder of the training.
        config: How to train.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: What made the model, for its directory.
        start_from: A model to start from instead of random weights; its size counts, not the configuration's.

    Raises:
        DataError: A pack is missing or has nothing short enough.
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
    """Return the CTC loss per symbol, the middle layer's mixed in with weight `halfway`; a scalar."""

    def one(log_probs: torch.Tensor) -> torch.Tensor:
        args = (log_probs.transpose(0, 1), batch.targets, output.lengths, batch.target_lengths)
        total = functional.ctc_loss(*args, blank=BLANK, reduction="sum", zero_infinity=True)
        return total / batch.target_lengths.sum().clamp_min(1)

    if output.halfway is None:
        return one(output.log_probs)
    return (1.0 - halfway) * one(output.log_probs) + halfway * one(output.halfway)


def phone_loss(output: CtcOutput, batch: CtcBatch) -> torch.Tensor:
    """Return the cross-entropy per output frame whose phone is known; 0 where the network tells none apart."""
    if output.phones is None:
        return output.log_probs.new_zeros(())
    targets = batch.phones[:, SUBSAMPLING // 2 :: SUBSAMPLING]
    frames = min(targets.shape[1], output.phones.shape[1])
    targets = targets[:, :frames] - 1
    total = functional.nll_loss(output.phones[:, :frames].transpose(1, 2), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp_min(1)


def evaluate(model: nn.Module, data: Utterances, config: CtcTrainingConfig) -> dict[str, float]:
    """Return loss per symbol, word and character error rate of greedy texts on the first utterances."""
    import jiwer

    device = next(model.parameters()).device
    losses, references, texts = [], [], []
    for chosen in data.in_order(config.validation_items, config.batch_seconds):
        batch = data.collate(Batch(chosen, None), config).to(device)
        output = model(batch.mel, batch.lengths)
        losses.append((float(ctc_loss(output, batch, 0.0)), len(chosen)))
        texts += greedy_texts(output)
        references += [data.texts[i] for i in chosen]
    loss = sum(value * count for value, count in losses) / sum(count for _, count in losses)
    logger.info("heard: %s | said: %s", texts[0], references[0])
    return {"loss": loss, "wer": float(jiwer.wer(references, texts)), "cer": float(jiwer.cer(references, texts))}


def greedy_texts(output: CtcOutput) -> list[str]:
    """Return the text of each utterance's best alignment."""
    rows = output.log_probs.cpu().numpy()
    return [CtcPosteriors(row[: int(length)]).greedy_text() for row, length in zip(rows, output.lengths, strict=True)]


@torch.inference_mode()
def recognize_packed(
    model: CtcModel, pack: Path, passes: int, dropout: float, seed: int
) -> list[tuple[str, list[str]]]:
    """Return (reference, texts heard) of every utterance of a pack: pairs for a Denoising LM.

    The first pass hears the sound as it is, each further one with masks, another speed and dropout drawn anew, so that
    utterances that the network was trained on are misheard as new ones are.

    Args:
        model: The network.
        pack: Folder that `ctc_data.pack` wrote.
        passes: How often each utterance is heard.
        dropout: Rate in the further passes.
        seed: Of all draws.
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
        logger.info("%s, pass %d of %d: %d utterances heard", pack.name, number + 1, passes, len(data))
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
        items: Their numbers.
        seed: Of masks and stretching; None for neither.
    """

    items: list[int]
    seed: int | None


class Utterances:
    """Packed utterances in memory-mapped shards.

    Args:
        folders: Packs, as written by `ctc_data.pack`.
        max_seconds: Longer utterances are left out.

    Raises:
        DataError: A pack is missing, or nothing in them is short enough.
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
        """Return the batches of an epoch: of like lengths, in random order; the first epoch short ones first."""
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
        """Return the first `count` utterances in batches of like lengths."""
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
        """Draw a new length; an utterance spoken fast must keep a frame for each letter."""
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
    save_ctc(model, folder, "# A CTC recogniser\n\nCharacters of English speech at 16 kHz.\n", full_provenance)
