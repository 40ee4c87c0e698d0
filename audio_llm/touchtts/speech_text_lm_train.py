"""Training of TouchTTS's language model on packed utterances: synthesis (text to tokens) and transcription."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Rows
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.errors import ConfigError, DataError, ModelFormatError, UsageError
from audio_llm.lm.causal import load_causal_lm
from audio_llm.lm.token_lm import Sequence
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.tokenizer.base import SemanticTokenizer
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.models import SPEECH_TEXT_LM, load_speech_text_lm, speech_vectors, tokenizer_entry
from audio_llm.touchtts.sequence_layout import SPEECH, stack_rows
from audio_llm.touchtts.speech_text_lm import (
    SpeechTextLm,
    SpeechTextLmConfig,
    continuous,
    speech_example,
    text_example,
    text_tokens_of,
)
from audio_llm.touchtts.text_tokens import PIECE, TextTokens, fit_durations
from audio_llm.training.batching import batches_by_length
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train

logger = logging.getLogger(__name__)

CARD = "# TouchTTS's language model\n\nText to semantic tokens of speech, and back.\n"
_VALIDATION_SEED = 1 << 40
_FITTED = 4000  # utterances at most that durations are fitted to


@dataclass(frozen=True)
class SpeechTextLmTrainingConfig:
    """How to train the language model.

    Attributes:
        model: Size of the model; voices and durations come from the data.
        training: Settings of the training loop.
        batch_positions: Tokens in a batch, text and padding included.
        repeats: How often the utterances of a voice occur in an epoch (default: once).
        asr_prob: Fraction of batches that are transcription, where there is recorded speech.
        continuous_prob: Fraction of transcription batches with continuous features in place of tokens, where the
            tokenizer has them.
        stretch: Standard deviation of the logarithm of a random factor on time, so that real durations may differ from
            the expected ones.
        most_wrong_past: Largest fraction of corrupted speech tokens in the context.
        validation: Utterances of each task at each validation.
    """

    model: SpeechTextLmConfig = field(default_factory=SpeechTextLmConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    batch_positions: int = renamed("batch_places", 4000)
    repeats: dict[str, int] = field(default_factory=dict)
    asr_prob: float = renamed("asr_share", 0.3)
    continuous_prob: float = renamed("continuous_share", 0.5)
    stretch: float = 0.1
    most_wrong_past: float = 0.3
    validation: int = 60

    def __post_init__(self) -> None:
        if not 0.0 <= self.asr_prob < 1.0 or self.batch_positions < 1:
            raise ConfigError(
                f"asr_prob {self.asr_prob}", remedy="give 0 or more and below 1, and batch_positions of 1"
            )


class _Batch(NamedTuple):
    """Sequences of one task.

    Attributes:
        sequence: (B, N) each.
        targets: (B, N) int64.
        features: (B, N, states) float32; (B, N, 0) where tokens are the input.
        name: Vocabulary range of the targets.
    """

    sequence: Sequence
    targets: Tensor
    features: Tensor
    name: str


def train_speech_text_lm(
    packs: Rows[Path],
    tuning: Rows[Path],
    tokenizer: SemanticTokenizer,
    tokenizer_name: str,
    output: Path,
    config: SpeechTextLmTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
    llm: str | Path | None = None,
) -> TrainingResult:
    """Train the language model; `output/best` becomes a model directory with the lowest loss.

    Args:
        packs: Packed training utterances.
        tuning: Packed validation utterances, of other texts, which select the best model.
        tokenizer: Tokenizer of the packs.
        tokenizer_name: Name of its model.
        output: Folder of the training.
        config: How to train.
        max_minutes: Stop after this time.
        resume: Resume from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, for its directory.
        start_from: Model to initialize from; its settings replace the configuration's.
        llm: Folder of a pretrained LLM in transformers format to initialize from (see `GrownLm`); its word pieces
            become the text tokens. Excludes `start_from`.

    Raises:
        UsageError: Both `llm` and `start_from` are given.
        ModelNotFoundError: No such pretrained LLM.
        DataError: A pack is missing, or was made with another tokenizer.
        ModelFormatError: The model to initialize from was trained with another tokenizer, or is not supported.
    """
    if llm is not None and start_from is not None:
        raise UsageError(
            "two models to initialize from", remedy="give either a pretrained LLM or a model to start from"
        )
    known = None if start_from is None else load_speech_text_lm(start_from, tokenizer).train()
    base = None if llm is None else load_causal_lm(hub.find_model(llm))
    text_tokens = text_tokens_of(base) if known is None else known.text_tokens
    data, held_out = (
        _TaskBatches(UtterancePack(*folders), tokenizer, config, text_tokens) for folders in (packs, tuning)
    )
    torch.manual_seed(config.training.seed)
    lm = known or SpeechTextLm(
        fit_durations_config(config.model, data.pack, tokenizer, text_tokens), speech_vectors(tokenizer), base
    )
    unknown = set(data.pack.voices) - set(lm.config.voices)
    if unknown:
        remedy = "train a new model, or leave these utterances out"
        raise ModelFormatError(f"has no voices {', '.join(sorted(unknown))}", path=start_from, remedy=remedy)
    continuous_fraction = config.continuous_prob if lm.config.states else 0.0
    config = replace(config, model=lm.config, continuous_prob=continuous_fraction)
    size = sum(parameter.numel() for parameter in lm.parameters())
    logger.info("%d utterances, %d of them recorded, %.2f M parameters", len(data.pack), len(data.recorded), size / 1e6)
    for name, rate in zip(lm.config.voices, lm.config.rates, strict=True):
        logger.info("voice %s: %.2f of the expected duration", name, rate)
    validation = held_out.for_validation(lm, config, set(lm.config.voices))
    if not validation["say"]:
        raise DataError(
            "no validation utterance has a voice of the training", remedy="validate on utterances of the same voices"
        )

    pretrained = {} if llm is None else {"llm": Path(llm).resolve().name}

    def save(module: nn.Module, folder: Path) -> None:
        assert isinstance(module, SpeechTextLm)
        record = {**(provenance or {}), "training": asdict(config), **pretrained}
        settings = {
            "network": asdict(module.config),
            "tokenizer": tokenizer_entry(tokenizer, tokenizer_name),
        }
        hub.save_model(folder, settings, module.state_dict(), SPEECH_TEXT_LM, CARD, record, module.assets())

    return train(
        lm,
        lambda epoch: data.batches(epoch, config),
        _loss,
        lambda module: _validate(module, validation, config),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=save,
        prepare=lambda drawn: data.collate(lm, drawn[0], drawn[1], config),
        count_items=lambda batch: float((batch.targets >= 0).sum()),
    )


def fit_durations_config(
    config: SpeechTextLmConfig, pack: UtterancePack, tokenizer: SemanticTokenizer, text_tokens: TextTokens
) -> SpeechTextLmConfig:
    """Return a configuration with the voices of a pack and durations fitted to it."""
    chosen = np.random.default_rng(0).permutation(len(pack))[:_FITTED]
    units = np.stack([text_tokens.encode_input(text).counts(text_tokens.units) for text in pack.normalized])
    durations = fit_durations(units[chosen], pack.counts[chosen].astype(np.float64))
    expected = units @ durations
    voices = tuple(sorted(set(pack.voices)))
    voice_names = np.array(pack.voices)
    rates = tuple(
        float(pack.counts[voice_names == name].sum() / expected[voice_names == name].sum()) for name in voices
    )
    width = tokenizer.width if isinstance(tokenizer, S3Tokenizer) else 0
    return replace(
        config,
        voices=voices,
        durations=tuple(durations.tolist()),
        rates=rates,
        speech=tokenizer.size,
        states=width,
        pieces=text_tokens.ranges.get(PIECE, 0),
    )


class _TaskBatches:
    """Batches of the utterances of a pack for each task."""

    def __init__(
        self,
        pack: UtterancePack,
        tokenizer: SemanticTokenizer,
        config: SpeechTextLmTrainingConfig,
        text_tokens: TextTokens,
    ) -> None:
        if pack.tokenizer != tokenizer.fingerprint:
            raise DataError("the utterances were packed with another tokenizer", remedy="pack them with this one")
        self.pack, self.seed = pack, config.training.seed
        self.transcripts = [text_tokens.encode_output(DEFAULT_NORMALIZER(text)) for text in pack.texts]
        has_words = np.array([len(transcript) > 0 for transcript in self.transcripts])
        self.recorded = np.flatnonzero((pack.samples > 0) & has_words)
        self.tts_rows = np.repeat(np.arange(len(pack)), [config.repeats.get(voice, 1) for voice in pack.voices])
        self.tts_lengths = pack.counts + np.array(
            [len(text_tokens.encode_input(text).numbers) + 6 for text in pack.normalized]
        )
        self.asr_lengths = pack.counts + np.array([len(transcript) + 5 for transcript in self.transcripts])

    def batches(self, epoch: int, config: SpeechTextLmTrainingConfig) -> list[tuple[str, list[tuple[int, int]]]]:
        """Return the batches of an epoch: a task, and (row, seed) of each utterance."""
        rng = np.random.default_rng([self.seed, epoch])
        batches = [("say", b) for b in batches_by_length(self.tts_rows, self.tts_lengths, config.batch_positions, rng)]
        fraction = config.asr_prob if len(self.recorded) else 0.0
        count = round(len(batches) * fraction / (1.0 - fraction))
        writing: list[tuple[str, list[tuple[int, int]]]] = []
        while len(writing) < count:
            for batch in batches_by_length(self.recorded, self.asr_lengths, config.batch_positions, rng):
                writing.append(("listen" if rng.random() < config.continuous_prob else "write", batch))
        batches += writing[:count]
        return [batches[index] for index in rng.permutation(len(batches))]

    def collate(
        self, lm: SpeechTextLm, task: str, chosen: Rows[tuple[int, int]], config: SpeechTextLmTrainingConfig
    ) -> _Batch:
        """Return a batch of a task.

        The tasks are `say` (synthesis), `write` (transcription of tokens) and `listen` (of continuous features).
        """
        examples = [self._example(lm, task, row, np.random.default_rng(seed), config) for row, seed in chosen]
        sequence = stack_rows([row for row, _ in examples])
        size = sequence.ids.shape[1]
        targets = torch.cat(
            [nn.functional.pad(row_targets, (0, size - row_targets.shape[1]), value=-1) for _, row_targets in examples]
        )
        features = torch.zeros(*sequence.ids.shape, 0)
        if task == "listen":
            states = [torch.from_numpy(self.pack.states(row)).float() for row, _ in chosen]
            sequence, features = continuous(sequence, nn.utils.rnn.pad_sequence(states, batch_first=True))
        return _Batch(sequence, targets, features, SPEECH if task == "say" else lm.text_tokens.output_range)

    def for_validation(
        self, lm: SpeechTextLm, config: SpeechTextLmTrainingConfig, voices: set[str]
    ) -> dict[str, list[_Batch]]:
        """Return fixed validation batches of each task, without random stretch or corruption."""
        exact = replace(config, stretch=0.0, most_wrong_past=0.0)
        rng = np.random.default_rng(0)
        batches: dict[str, list[_Batch]] = {}
        for task, rows in (("say", np.arange(len(self.pack))), ("write", self.recorded), ("listen", self.recorded)):
            count = config.validation if task != "listen" or config.continuous_prob else 0
            rows = rng.permutation([row for row in rows if self.pack.voices[row] in voices])[:count]
            lengths = self.tts_lengths if task == "say" else self.asr_lengths
            groups = list(batches_by_length(rows, lengths, config.batch_positions, rng))
            batches[task] = [self.collate(lm, task, group, exact) for group in groups]
        return batches

    def _example(
        self, lm: SpeechTextLm, task: str, row: int, rng: np.random.Generator, config: SpeechTextLmTrainingConfig
    ) -> tuple[Sequence, Tensor]:
        tokens = torch.from_numpy(self.pack.tokens(row).astype(np.int64))
        if task != "say":
            return text_example(lm, tokens, self.transcripts[row])
        past = _partly_wrong(tokens, config.most_wrong_past * rng.random(), rng)
        stretch = float(np.exp(rng.normal(0.0, config.stretch))) if config.stretch else 1.0
        return speech_example(lm, self.pack.normalized[row], self.pack.voices[row], tokens, past, stretch)


def _partly_wrong(tokens: Tensor, fraction: float, rng: np.random.Generator) -> Tensor:
    """Return tokens (T,), a fraction of which is replaced by the previous token or a random one of the same speech."""
    if not fraction:
        return tokens
    wrong = torch.from_numpy(rng.random(len(tokens)) < fraction)
    twice = torch.from_numpy(rng.random(len(tokens)) < 0.5)
    other = tokens[torch.from_numpy(rng.integers(len(tokens), size=len(tokens)))]
    before = torch.cat([tokens[:1], tokens[:-1]])
    return torch.where(wrong, torch.where(twice, before, other), tokens)


def _loss(module: nn.Module, batch: _Batch) -> Tensor:
    return _entropies(module, batch).mean()


def _entropies(module: nn.Module, batch: _Batch) -> Tensor:
    features = batch.features if batch.features.shape[2] else None
    entropies: Tensor = module(batch.sequence, batch.targets, batch.name, features)
    return entropies


def _validate(
    module: nn.Module, batches: dict[str, list[_Batch]], config: SpeechTextLmTrainingConfig
) -> dict[str, float]:
    """Return nats per token of each task; `loss` weights them as in training."""
    from accelerate.utils import send_to_device

    assert isinstance(module, SpeechTextLm)
    losses: dict[str, float] = {}
    for task, task_batches in batches.items():
        values = [_entropies(module, send_to_device(batch, module.durations.device)) for batch in task_batches]
        losses[task] = float(torch.cat(values).mean()) if values else 0.0
    continuous_fraction, asr_fraction = config.continuous_prob, config.asr_prob
    written = continuous_fraction * losses["listen"] + (1.0 - continuous_fraction) * losses["write"]
    return {"loss": (1.0 - asr_fraction) * losses["say"] + asr_fraction * written, **losses}
