"""Training of the Denoising LM on packed pairs, with texts corrupted on the fly."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm.dlm import decode, vocab
from audio_llm.dlm.model import DenoisingLM, ModelConfig, batch_sources, batch_targets, load, save
from audio_llm.dlm.noise import NoiseConfig, corrupt, substitute_characters
from audio_llm.dlm.pack import CONFUSIONS_NAME, PackedPairs, read_packed
from audio_llm.metrics import word_errors
from audio_llm.simulation.confusions import Confusions
from audio_llm.training.batching import batches_by_length
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DlmTrainConfig:
    """Everything that determines a training, except the data.

    Attributes:
        model: Size of the network.
        training: Steps, learning rate, seed.
        noise: How texts are corrupted.
        pair_fraction: Fraction of examples that are pairs from a recognizer; the rest are corrupted texts.
        first_prob: Probability that a pair uses the recognizer's best hypothesis; else any of its hypotheses is drawn.
        batch_characters: Largest number of characters in a batch.
        label_smoothing: Probability spread evenly over the characters of texts (see `sequence_loss`).
        validation_sentences: Number of validation pairs that are decoded for the word error rate.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000, learning_rate=1e-3))
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    pair_fraction: float = renamed("pair_share", 0.35)
    first_prob: float = renamed("first_share", 0.6)
    batch_characters: int = 3000
    label_smoothing: float = 0.01
    validation_sentences: int = 100


def train_dlm(
    data: Path,
    output: Path,
    config: DlmTrainConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    start_from: str | Path | None = None,
) -> TrainingResult:
    """Train on a packed folder; write the best model to `output/best`.

    Args:
        data: Folder written by `pack`, with a `train` and a `tune` part.
        output: Folder for logs and checkpoints.
        config: Configuration of the training.
        max_minutes: Time limit of this call in minutes.
        resume: Resume from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        start_from: Model of the same size to initialize from; None: random weights.
    """
    torch.manual_seed(config.training.seed)
    model = DenoisingLM(config.model)
    if start_from is not None:
        model.load_state_dict(load(start_from).state_dict())
    packed = read_packed(data / "train")
    confusions = Confusions.load(data / CONFUSIONS_NAME)
    tune = read_packed(data / "tune")

    def prepare(batch: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        examples = [_example(packed, row, seed, confusions, config) for row, seed in batch]
        return to_tensors([e[0] for e in examples], [e[1] for e in examples])

    return train(
        model,
        lambda epoch: batches(packed, config, epoch),
        lambda m, batch: sequence_loss(m, batch, config.label_smoothing),
        lambda m: _validate(m, tune, config),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=lambda m, folder: save(_plain(m), folder, provenance={"seed": config.training.seed}),
        prepare=prepare,
        count_items=lambda batch: float(batch[0].shape[0]),
    )


def sequence_loss(model: nn.Module, batch: tuple[Tensor, ...], label_smoothing: float) -> Tensor:
    """Return the cross-entropy per character in nats with label smoothing, over characters that are not padding.

    The smoothing excludes the end symbol. If the end could occur anywhere with probability smoothing / V (6 nats), it
    would cost less than the uncertain characters of a long text, and beam search would prefer the empty text.

    Args:
        model: A DenoisingLM, possibly wrapped.
        batch: source (B, S), source lengths (B,), target input (B, T), target output (B, T), all int64.
        label_smoothing: Probability spread evenly over the characters of texts, where the target is not the end.
    """
    source, lengths, target_in, target_out = batch
    log_probabilities = model(source, lengths, target_in)
    valid = target_out != vocab.PAD
    chosen = log_probabilities.gather(2, target_out[:, :, None])[:, :, 0]
    spread = log_probabilities[:, :, vocab.FIRST_SYMBOL :].mean(-1)
    smoothing = label_smoothing * (target_out != vocab.EOS)
    per_character = (1.0 - smoothing) * chosen + smoothing * spread
    return -(per_character * valid).sum() / valid.sum()


def batches(packed: PackedPairs, config: DlmTrainConfig, epoch: int) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of (row, seed): all texts once, and pairs drawn up to their fraction; equal for equal arguments."""
    rng = np.random.default_rng((config.training.seed, epoch))
    texts = np.flatnonzero(~packed.is_pair)
    pairs = np.flatnonzero(packed.is_pair)
    if not len(texts):
        drawn = pairs
    elif not len(pairs) or config.pair_fraction <= 0.0:
        drawn = texts
    else:
        count = int(len(texts) * config.pair_fraction / (1.0 - config.pair_fraction))
        drawn = np.concatenate([texts, rng.choice(pairs, size=count)])
    yield from batches_by_length(drawn, packed.lengths, config.batch_characters, rng)


def to_tensors(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return source (B, S), source lengths (B,), target input (B, T), target output (B, T), all int64."""
    return (*batch_sources(hypotheses), *batch_targets(references))


def _example(
    packed: PackedPairs, row: int, seed: int, confusions: Confusions, config: DlmTrainConfig
) -> tuple[str, str]:
    """Return (hypothesis, reference), drawn from the seed only."""
    rng = np.random.default_rng(seed)
    reference = packed.references[row]
    if not packed.is_pair[row]:
        return corrupt(reference, confusions, config.noise, rng), reference
    hypotheses = packed.hypotheses[row]
    rank = 0 if rng.random() < config.first_prob else int(rng.integers(len(hypotheses)))
    return substitute_characters(hypotheses[rank], config.noise, rng), reference


def _validate(model: nn.Module, tune: PackedPairs, config: DlmTrainConfig) -> Mapping[str, float]:
    plain = _plain(model)
    first = [hypotheses[0] for hypotheses in tune.hypotheses]
    totals = decode.log_probs(plain, first, tune.references)
    count = config.validation_sentences
    corrected = [candidate.text for candidate in decode.greedy(plain, first[:count])]
    echoed = [candidate.text for candidate in decode.greedy(plain, tune.references[:count])]
    return {
        "loss": -sum(totals) / sum(len(reference) + 1 for reference in tune.references),
        "wer_before": word_errors(tune.references[:count], first[:count]).rate,
        "wer": word_errors(tune.references[:count], corrected).rate,
        "kept": float(np.mean([a == b for a, b in zip(echoed, tune.references, strict=False)])),
    }


def _plain(model: Any) -> DenoisingLM:
    """Return the model without the wrapper of distributed training."""
    plain = getattr(model, "module", model)
    assert isinstance(plain, DenoisingLM)
    return plain
