"""Training of the neural corrector on N-best lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm.doctor import resolve_device
from audio_llm.errors import UsageError
from audio_llm.ger import decode
from audio_llm.ger.batches import Collator
from audio_llm.ger.checkpoint import build, save
from audio_llm.ger.data import ListData, split_by_reference
from audio_llm.ger.distillation import DistillationSettings, Distiller, language_probe
from audio_llm.ger.model import Batch, GerSettings, RobustGer
from audio_llm.metrics import word_errors
from audio_llm.text import NORMALIZERS
from audio_llm.training.batching import batches_by_length
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train

logger = logging.getLogger(__name__)

_DISTILLER = "distiller."  # prefix of the names of the distiller's tensors in a checkpoint
_RAW = NORMALIZERS["raw"]  # the texts are normalized already


@dataclass(frozen=True)
class GerTrainConfig:
    """Settings of a training, apart from the data and the language model.

    Attributes:
        ger: Prompt, noise embedding and adapters.
        training: Steps, learning rate, seed.
        normalizer: Name of the normalizer of hypotheses and references.
        no_audio_prob: Probability of a list without hypotheses, so that a model from scratch learns a language model.
        batch_tokens: Maximum tokens of a batch, padding included.
        validation_fraction: Fraction of the lists, by reference, held out for validation if no others are given.
        validation_lists: Number of validation lists decoded for the word error rate.
        distillation: Audio noise distillation (see `distillation`); needs data with audio, and a single process.
    """

    ger: GerSettings = field(default_factory=GerSettings)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=2000, learning_rate=5e-4))
    normalizer: str = "spoken"
    no_audio_prob: float = renamed("blind_share", 0.0)
    batch_tokens: int = 6000
    validation_fraction: float = renamed("tune_share", 0.1)
    validation_lists: int = 100
    distillation: DistillationSettings | None = None


def train_ger(
    data: ListData,
    llm: str | Path,
    output: Path,
    config: GerTrainConfig,
    *,
    tuning: ListData | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train; write a model directory to `output/best`.

    Args:
        data: Training lists.
        llm: Folder of a transformers causal language model, or of a `ger` model to initialize from.
        output: Folder for logs and checkpoints.
        config: Settings of the training.
        tuning: Validation lists that select the best model; None: a fraction of `data`.
        max_minutes: Time limit of this call in minutes.
        resume: Resume from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Recorded in the model, besides seed and language model.

    Raises:
        UsageError: Distillation is configured, but the data has no audio, there is no adapter or more than one process.
    """
    if tuning is None:
        data, tuning = split_by_reference(data, config.validation_fraction, config.training.seed)
    torch.manual_seed(config.training.seed)
    checkpoint = replace(build(llm, config.ger), normalizer=config.normalizer)
    model, collator = checkpoint.model, checkpoint.collator
    if model.adapter is not None and checkpoint.fresh_adapter:
        model.set_noise_size(_noise_size(data, collator, config))
    if resolve_device(device) == "cpu":  # a third faster than the fused attention for short texts
        model.llm.set_attn_implementation("eager")
    distiller = _distiller(model, data, config) if config.distillation is not None else None
    lengths = _lengths(data, config)

    def prepare(batch: Sequence[tuple[int, int]]) -> Batch:
        examples = [_example(data, row, seed, config) for row, seed in batch]
        collated = collator.batch([e[0] for e in examples], [e[1] for e in examples])
        return _with_sounds(collated, data, [row for row, _ in batch]) if distiller is not None else collated

    def keep(m: nn.Module, folder: Path) -> None:
        save(folder, replace(checkpoint, model=_plain(m)), recorded)

    recorded = {"seed": config.training.seed, "lists": len(data), **(provenance or {})}
    return train(
        _Training(model, distiller),
        lambda epoch: _batches(data, lengths, config, epoch),
        lambda m, batch: m(batch),
        lambda m: _validate(_plain(m), tuning, collator, config) | _probe(_plain(m), tuning, collator, distiller),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=keep,
        prepare=lambda batch: _to_dict(prepare(batch)),
        count_items=lambda batch: float(batch["valid"].sum()),
    )


class _Training(nn.Module):
    """The model with its loss as `forward`, as several processes need it.

    Distillation takes a step with its own optimizer before the corrector's (RobustGER, alg. 1); its state is in the
    checkpoints.
    """

    def __init__(self, model: RobustGer, distiller: Distiller | None) -> None:
        super().__init__()
        self.model = model
        self._distiller = distiller

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss = self.model.loss(Batch(**batch))
        adapter, distiller = self.model.adapter, self._distiller
        if distiller is None or adapter is None:
            return loss
        noise, valid = self.model.scale_noise(batch["noise"]), batch["noise_valid"]
        if len(noise) > 1:
            distiller.update(noise, valid, batch["noisy"], batch.get("clean"))
        return loss - distiller.settings.weight * distiller.loss_term(adapter.tuned(noise), valid, batch["noisy"])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._distiller is not None:
            destination.update({f"{prefix}{_DISTILLER}{n}": t for n, t in self._distiller.state_dict().items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        names = {name: name[len(prefix + _DISTILLER) :] for name in state_dict if name.startswith(prefix + _DISTILLER)}
        tensors = {names[name]: state_dict.pop(name) for name in names}
        if self._distiller is not None:
            self._distiller.load_state_dict(tensors)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _distiller(model: RobustGer, data: ListData, config: GerTrainConfig) -> Distiller:
    assert config.distillation is not None
    if model.adapter is None or data.noisy is None:
        remedy = "give prepared lists with audio features and keep use_noise, or omit distillation"
        raise UsageError("distillation needs audio features and a noise adapter", remedy=remedy)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("distillation runs in one process only", remedy="start it without torchrun")
    if config.distillation.negatives != "shuffle" and data.clean is None:
        raise UsageError("there are no audio features without noise", remedy="use distillation.negatives=shuffle")
    widths = model.adapter.noise_width, model.adapter.tuned_width, data.noisy.shape[1]
    distiller = Distiller(*widths, config.training.learning_rate, config.distillation, seed=config.training.seed)
    distiller.network.fit_audio(torch.from_numpy(data.noisy))
    return distiller


def _with_sounds(batch: Batch, data: ListData, rows: Sequence[int]) -> Batch:
    sounds = {"noisy": data.noisy, "clean": data.clean}
    return replace(
        batch, **{n: torch.from_numpy(array[list(rows)]) for n, array in sounds.items() if array is not None}
    )


def _probe(model: RobustGer, tuning: ListData, collator: Collator, distiller: Distiller | None) -> dict[str, float]:
    """Return the bounds for true and for shuffled texts; see `distillation.LanguageProbe`."""
    if distiller is None or tuning.noisy is None:
        return {}
    noise, valid = collator.noises(tuning.hypotheses)
    sounds = [
        None if array is None else torch.from_numpy(array).to(model.device) for array in (tuning.noisy, tuning.clean)
    ]
    noisy, clean = sounds
    assert noisy is not None
    noise, valid = model.scale_noise(noise.to(model.device)), valid.to(model.device)
    probe = language_probe(distiller, noise, valid, noisy, clean, generator=torch.Generator().manual_seed(0))
    return {
        "mine": probe.true_text,
        "mine_shuffled": probe.shuffled_text,
        "mine_reads_sound_only": float(probe.reads_audio_only),
    }


def _to_dict(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vars(batch).items() if tensor is not None}


def _batches(
    data: ListData, lengths: np.ndarray, config: GerTrainConfig, epoch: int
) -> Iterator[list[tuple[int, int]]]:
    rng = np.random.default_rng((config.training.seed, epoch))
    return batches_by_length(np.arange(len(data)), lengths, config.batch_tokens, rng)


def _example(data: ListData, row: int, seed: int, config: GerTrainConfig) -> tuple[tuple[str, ...], str]:
    """Return (hypotheses, reference), drawn from the seed alone."""
    blind = np.random.default_rng(seed).random() < config.no_audio_prob
    return () if blind else data.hypotheses[row], data.references[row]


def _lengths(data: ListData, config: GerTrainConfig) -> np.ndarray:
    """Return the approximate tokens of each row: a quarter of its characters, plus the prompt's markers."""
    count = config.ger.prompt.hypotheses
    compact = config.ger.prompt.form == "compact"
    shown = [set(h[:count]) if compact else h[:count] for h in data.hypotheses]
    letters = [sum(map(len, s)) + len(r) for s, r in zip(shown, data.references, strict=True)]
    return np.array(letters) // 4 + (8 if compact else 80)


def _noise_size(data: ListData, collator: Collator, config: GerTrainConfig) -> Tensor:
    """Return the root mean squares (2,) of the rows of whole texts and of those of words, over up to 500 lists."""
    rng = np.random.default_rng(config.training.seed)
    rows = rng.permutation(len(data))[:500]
    noise, _ = collator.noises([data.hypotheses[row] for row in rows])
    halves = noise.unflatten(1, (2, -1)).pow(2).mean(dim=(0, 2, 3)).sqrt()
    return halves.clamp_min(1e-6)


def _validate(model: RobustGer, tuning: ListData, collator: Collator, config: GerTrainConfig) -> dict[str, float]:
    total = count = 0.0
    rows = np.arange(len(tuning))
    rng = np.random.default_rng(0)
    for batch in batches_by_length(rows, _lengths(tuning, config), config.batch_tokens, rng):
        collated = collator.batch([tuning.hypotheses[r] for r, _ in batch], [tuning.references[r] for r, _ in batch])
        collated = collated.to(model.device)
        learned = float((collated.labels >= 0).sum())
        total += float(model.loss(collated)) * learned
        count += learned
    picked = rows[: config.validation_lists]
    hypotheses = [tuning.hypotheses[row] for row in picked]
    written = decode.greedy(model, collator, hypotheses)
    references = [tuning.references[row] for row in picked]
    first = [texts[0] for texts in hypotheses]
    unchanged = [w.text == f for w, f, r in zip(written, first, references, strict=True) if f == r]
    return {
        "loss": total / max(1.0, count),
        "wer_before": word_errors(references, first, _RAW).rate,
        "wer": word_errors(references, [w.text for w in written], _RAW).rate,
        "kept": float(np.mean(unchanged)) if unchanged else 1.0,
    }


def _plain(model: Any) -> RobustGer:
    """Return the model without the wrapper for several processes."""
    inner = getattr(model, "module", model)
    return inner.model  # type: ignore[no-any-return]
