"""Training of TouchTTS's language model on packed talks: saying what is written, and writing what was said."""

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
from audio_llm.touchtts.data import TalkPack
from audio_llm.touchtts.layout import SPEECH, stack_rows
from audio_llm.touchtts.models import TALK, load_talk_lm, speech_vectors, tokenizer_entry
from audio_llm.touchtts.script import PIECE, Script, fit_durations
from audio_llm.touchtts.talk_lm import TalkLm, TalkLmConfig, continuous, script_of, speech_example, text_example
from audio_llm.training.batching import batches_by_length
from audio_llm.training.loop import TrainingConfig, TrainingResult, train

logger = logging.getLogger(__name__)

CARD = "# TouchTTS's language model\n\nText to semantic tokens of speech, and back.\n"
_VALIDATION_SEED = 1 << 40
_FITTED = 4000  # utterances, at most, that durations are fitted to


@dataclass(frozen=True)
class TalkTrainingConfig:
    """How to train the language model.

    Attributes:
        model: Its size; voices and what it knows of time come from the data.
        training: The loop's settings.
        batch_places: Tokens of a batch, text and padding included.
        repeats: How often talks of a voice come in an epoch; once where none is given.
        asr_share: Of batches in which speech is written down, where there is recorded speech.
        continuous_share: Of these, with what tokens were cut from in place of tokens, where the tokenizer tells.
        stretch: Standard deviation of the logarithm of how much faster than truly time goes by, so that speech need
            not take just the time that was expected.
        most_wrong_past: Of the tokens that the model is told it said, the largest share that is not true.
        validation: Talks of each kind at each validation.
    """

    model: TalkLmConfig = field(default_factory=TalkLmConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    batch_places: int = 4000
    repeats: dict[str, int] = field(default_factory=dict)
    asr_share: float = 0.3
    continuous_share: float = 0.5
    stretch: float = 0.1
    most_wrong_past: float = 0.3
    validation: int = 60

    def __post_init__(self) -> None:
        if not 0.0 <= self.asr_share < 1.0 or self.batch_places < 1:
            raise ConfigError(f"asr_share {self.asr_share}", remedy="give 0 or more and below 1, and batch_places of 1")


class _Batch(NamedTuple):
    """Rows of one task.

    Attributes:
        sequence: (B, N) each.
        targets: (B, N) int64.
        features: (B, N, states) float32; (B, N, 0) where tokens say everything.
        name: Range of what is to come.
    """

    sequence: Sequence
    targets: Tensor
    features: Tensor
    name: str


def train_talk_lm(
    packs: Rows[Path],
    tuning: Rows[Path],
    tokenizer: SemanticTokenizer,
    tokenizer_name: str,
    output: Path,
    config: TalkTrainingConfig,
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
        packs: Packed talks to learn from.
        tuning: The same, of other texts, which decide which model is the best.
        tokenizer: That made their tokens.
        tokenizer_name: Of its model.
        output: Folder of the training.
        config: How to train.
        max_minutes: Stop after this time.
        resume: Go on from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: What made the model, for its directory.
        start_from: A model to start from; its settings count, not the configuration's.
        llm: Folder of a language model of text to grow (see `GrownLm`), as transformers has it: it learns to say and to
            write the pieces of words that it knows. Not with `start_from`.

    Raises:
        UsageError: Two models are named to start from.
        ModelNotFoundError: There is no such language model.
        DataError: A pack is missing, or its tokens are another tokenizer's.
        ModelFormatError: The model to start from was trained with another tokenizer, or cannot be grown.
    """
    if llm is not None and start_from is not None:
        raise UsageError("two models to start from are named", remedy="grow one, or go on with one that was grown")
    known = None if start_from is None else load_talk_lm(start_from, tokenizer).train()
    base = None if llm is None else load_causal_lm(hub.find_model(llm))
    script = script_of(base) if known is None else known.script
    data, held_out = (_Talks(TalkPack(*folders), tokenizer, config, script) for folders in (packs, tuning))
    torch.manual_seed(config.training.seed)
    lm = known or TalkLm(fitted(config.model, data.pack, tokenizer, script), speech_vectors(tokenizer), base)
    unknown = set(data.pack.voices) - set(lm.config.voices)
    if unknown:
        remedy = "train a new model, or leave these talks out"
        raise ModelFormatError(f"does not know the voices {', '.join(sorted(unknown))}", path=start_from, remedy=remedy)
    heard = config.continuous_share if lm.config.states else 0.0
    config = replace(config, model=lm.config, continuous_share=heard)
    size = sum(parameter.numel() for parameter in lm.parameters())
    logger.info("%d talks, %d of them recorded, %.2f M parameters", len(data.pack), len(data.recorded), size / 1e6)
    for name, rate in zip(lm.config.voices, lm.config.rates, strict=True):
        logger.info("voice %s: %.2f of the expected time", name, rate)
    validation = held_out.for_validation(lm, config, set(lm.config.voices))
    if not validation["say"]:
        raise DataError("no tuning talk has a voice of the training", remedy="tune on talks of the same voices")

    grown_from = {} if llm is None else {"llm": Path(llm).resolve().name}

    def save(module: nn.Module, folder: Path) -> None:
        assert isinstance(module, TalkLm)
        made_by = {**(provenance or {}), "training": asdict(config), **grown_from}
        settings = {
            "network": asdict(module.config),
            "tokenizer": tokenizer_entry(tokenizer, tokenizer_name),
        }
        hub.save_model(folder, settings, module.state_dict(), TALK, CARD, made_by, module.assets())

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


def fitted(config: TalkLmConfig, pack: TalkPack, tokenizer: SemanticTokenizer, script: Script) -> TalkLmConfig:
    """Return a configuration with the voices of a pack, and how long its texts take."""
    chosen = np.random.default_rng(0).permutation(len(pack))[:_FITTED]
    units = np.stack([script.to_say(text).counts(script.units) for text in pack.spoken])
    durations = fit_durations(units[chosen], pack.counts[chosen].astype(np.float64))
    expected = units @ durations
    voices = tuple(sorted(set(pack.voices)))
    own = np.array(pack.voices)
    rates = tuple(float(pack.counts[own == name].sum() / expected[own == name].sum()) for name in voices)
    width = tokenizer.width if isinstance(tokenizer, S3Tokenizer) else 0
    return replace(
        config,
        voices=voices,
        durations=tuple(durations.tolist()),
        rates=rates,
        speech=tokenizer.size,
        states=width,
        pieces=script.ranges.get(PIECE, 0),
    )


class _Talks:
    """Talks of a pack, as batches."""

    def __init__(
        self, pack: TalkPack, tokenizer: SemanticTokenizer, config: TalkTrainingConfig, script: Script
    ) -> None:
        if pack.tokenizer != tokenizer.fingerprint:
            raise DataError("the talks were packed with another tokenizer", remedy="pack them with this one")
        self.pack, self.seed = pack, config.training.seed
        self.written = [script.to_write(DEFAULT_NORMALIZER(text)) for text in pack.texts]
        has_words = np.array([len(written) > 0 for written in self.written])
        self.recorded = np.flatnonzero((pack.samples > 0) & has_words)
        self.said = np.repeat(np.arange(len(pack)), [config.repeats.get(voice, 1) for voice in pack.voices])
        self.said_places = pack.counts + np.array([len(script.to_say(text).numbers) + 6 for text in pack.spoken])
        self.written_places = pack.counts + np.array([len(written) + 5 for written in self.written])

    def batches(self, epoch: int, config: TalkTrainingConfig) -> list[tuple[str, list[tuple[int, int]]]]:
        """Return the batches of an epoch: a task, and (talk, seed) each."""
        rng = np.random.default_rng([self.seed, epoch])
        made = [("say", b) for b in batches_by_length(self.said, self.said_places, config.batch_places, rng)]
        share = config.asr_share if len(self.recorded) else 0.0
        wanted = round(len(made) * share / (1.0 - share))
        writing: list[tuple[str, list[tuple[int, int]]]] = []
        while len(writing) < wanted:
            for batch in batches_by_length(self.recorded, self.written_places, config.batch_places, rng):
                writing.append(("listen" if rng.random() < config.continuous_share else "write", batch))
        made += writing[:wanted]
        return [made[place] for place in rng.permutation(len(made))]

    def collate(self, lm: TalkLm, task: str, chosen: Rows[tuple[int, int]], config: TalkTrainingConfig) -> _Batch:
        """Return a batch of a task: `say`, `write` down tokens, or `listen` to what they were cut from."""
        examples = [self._example(lm, task, row, np.random.default_rng(seed), config) for row, seed in chosen]
        sequence = stack_rows([row for row, _ in examples])
        size = sequence.ids.shape[1]
        targets = torch.cat([nn.functional.pad(own, (0, size - own.shape[1]), value=-1) for _, own in examples])
        features = torch.zeros(*sequence.ids.shape, 0)
        if task == "listen":
            states = [torch.from_numpy(self.pack.states(row)).float() for row, _ in chosen]
            sequence, features = continuous(sequence, nn.utils.rnn.pad_sequence(states, batch_first=True))
        return _Batch(sequence, targets, features, SPEECH if task == "say" else lm.script.written)

    def for_validation(self, lm: TalkLm, config: TalkTrainingConfig, voices: set[str]) -> dict[str, list[_Batch]]:
        """Return batches that are always the same: of each task, and of text that belongs to other speech."""
        exact = replace(config, stretch=0.0, most_wrong_past=0.0)
        rng = np.random.default_rng(0)
        found: dict[str, list[_Batch]] = {}
        for task, rows in (("say", np.arange(len(self.pack))), ("write", self.recorded), ("listen", self.recorded)):
            wanted = config.validation if task != "listen" or config.continuous_share else 0
            rows = rng.permutation([row for row in rows if self.pack.voices[row] in voices])[:wanted]
            places = self.said_places if task == "say" else self.written_places
            groups = list(batches_by_length(rows, places, config.batch_places, rng))
            found[task] = [self.collate(lm, task, group, exact) for group in groups]
        return found

    def _example(
        self, lm: TalkLm, task: str, row: int, rng: np.random.Generator, config: TalkTrainingConfig
    ) -> tuple[Sequence, Tensor]:
        tokens = torch.from_numpy(self.pack.tokens(row).astype(np.int64))
        if task != "say":
            return text_example(lm, tokens, self.written[row])
        past = _partly_wrong(tokens, config.most_wrong_past * rng.random(), rng)
        stretch = float(np.exp(rng.normal(0.0, config.stretch))) if config.stretch else 1.0
        return speech_example(lm, self.pack.spoken[row], self.pack.voices[row], tokens, past, stretch)


def _partly_wrong(tokens: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Return tokens (T,), of which a share is the one before once more, or any of the same speech."""
    if not share:
        return tokens
    wrong = torch.from_numpy(rng.random(len(tokens)) < share)
    twice = torch.from_numpy(rng.random(len(tokens)) < 0.5)
    other = tokens[torch.from_numpy(rng.integers(len(tokens), size=len(tokens)))]
    before = torch.cat([tokens[:1], tokens[:-1]])
    return torch.where(wrong, torch.where(twice, before, other), tokens)


def _loss(module: nn.Module, batch: _Batch) -> Tensor:
    return _entropies(module, batch).mean()


def _entropies(module: nn.Module, batch: _Batch) -> Tensor:
    features = batch.features if batch.features.shape[2] else None
    found: Tensor = module(batch.sequence, batch.targets, batch.name, features)
    return found


def _validate(module: nn.Module, batches: dict[str, list[_Batch]], config: TalkTrainingConfig) -> dict[str, float]:
    """Return nats per token of each task; `loss` weighs them as the training does."""
    from accelerate.utils import send_to_device

    assert isinstance(module, TalkLm)
    found: dict[str, float] = {}
    for task, own in batches.items():
        values = [_entropies(module, send_to_device(batch, module.durations.device)) for batch in own]
        found[task] = float(torch.cat(values).mean()) if values else 0.0
    heard, share = config.continuous_share, config.asr_share
    written = heard * found["listen"] + (1.0 - heard) * found["write"]
    return {"loss": (1.0 - share) * found["say"] + share * written, **found}
