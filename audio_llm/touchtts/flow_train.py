"""Training of the flow on packed utterances: the velocity from noise to their mel spectra (flow matching)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence as Rows
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.codec.mel import HOP_LENGTH, LOG_FLOOR, N_MELS, log_mel
from audio_llm.errors import ConfigError, DataError
from audio_llm.tokenizer.base import SemanticTokenizer
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.flow import FRAMES, FlowConfig, FlowNetwork, Given, chunk_mask
from audio_llm.touchtts.models import FLOW, check_speaker, load_flow, speech_vectors, tokenizer_entry
from audio_llm.training.batching import fixed_batches, fresh_batches
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train

logger = logging.getLogger(__name__)

CARD = "# TouchTTS's flow\n\nSemantic tokens to mel spectra of speech.\n"
_VALIDATION_SEED = 1 << 40
_MEASURED = 300  # utterances that the standard deviation of the spectra is measured on
_REFERENCE_S = 3.0  # longest reference, in seconds


@dataclass(frozen=True)
class FlowTrainingConfig:
    """How to train the flow.

    Attributes:
        model: Size of the network.
        training: Settings of the training loop.
        tokens: Largest number of tokens of an excerpt.
        batch: Excerpts in a batch.
        epoch_batches: Batches in an epoch.
        main_voice: Voice that is drawn most often; empty: all speakers are drawn alike.
        main_prob: Probability of the main voice.
        chunks: Chunk sizes in tokens, one of which is drawn for a batch.
        full_prob: Probability of a batch with attention over the whole excerpt.
        prompt_prob: Probability that the beginning of an excerpt is given as a prompt.
        longest_prompt: Largest fraction of an excerpt that is a prompt.
        drop_prob: Probability that the conditioning is dropped, for guidance.
        wrong_tokens: Largest fraction of tokens that are replaced at random, as a language model's may be wrong.
        validation: Excerpts at each validation, half of them of the main voice.
    """

    model: FlowConfig = field(default_factory=FlowConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    tokens: int = 80
    batch: int = 12
    epoch_batches: int = 1000
    main_voice: str = ""
    main_prob: float = renamed("main_share", 0.6)
    chunks: tuple[int, ...] = (5, 10, 25)
    full_prob: float = renamed("full_share", 0.5)
    prompt_prob: float = renamed("prompt_share", 0.5)
    longest_prompt: float = 0.3
    drop_prob: float = renamed("drop_share", 0.2)
    wrong_tokens: float = 0.1
    validation: int = 64

    def __post_init__(self) -> None:
        if not self.chunks or min(*self.chunks, self.tokens, self.batch) < 1:
            raise ConfigError("chunks, tokens and batch", remedy="give 1 or more of each")


class _Batch(NamedTuple):
    """Excerpts of utterances.

    Attributes:
        tokens: (B, N) int64, -1 after each end and where the conditioning is dropped.
        ahead: (B, lookahead) int64, the tokens after the excerpt.
        mel: (B, 2 N, 80) float32, normalized.
        valid: (B, 2 N) bool.
        known: (B, 2 N) bool, frames of the prompt.
        reference: (B, M, 80) float32, normalized, of the same speaker; or the speaker vector, (B, 1, 192).
        reference_lengths: (B,) int64; 0 where the conditioning is dropped.
        noise: (B, 2 N, 80) float32.
        moment: (B,) float32.
        chunk: Tokens per chunk; 0: attention over the whole excerpt.
    """

    tokens: Tensor
    ahead: Tensor
    mel: Tensor
    valid: Tensor
    known: Tensor
    reference: Tensor
    reference_lengths: Tensor
    noise: Tensor
    moment: Tensor
    chunk: int


class _Training(nn.Module):
    """The flow with its training loss."""

    def __init__(self, flow: FlowNetwork) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, batch: _Batch) -> Tensor:
        """Return the mean squared error of the velocity of each stretch, (B,) float32."""
        flow = self.flow
        is_conditioned = (batch.reference_lengths > 0)[:, None]
        voice = flow.voice(batch.reference, batch.reference_lengths) * is_conditioned
        given = Given(batch.tokens, voice, batch.mel, batch.known)
        moment = batch.moment[:, None, None]
        x = (1.0 - moment) * batch.noise + moment * batch.mel
        size = batch.valid.shape[1]
        mask = torch.where(batch.valid, 0.0, torch.finfo(torch.float32).min)[:, None, None]
        if batch.chunk:
            mask = mask.minimum(chunk_mask(size, FRAMES * batch.chunk, flow.config.left_frames, mask.device))
        # a frame after the end attends to itself, since a softmax over nothing is undefined
        mask = mask.masked_fill(torch.eye(size, dtype=torch.bool, device=mask.device), 0.0)
        velocity = flow(x, batch.moment, flow.inputs(given, batch.ahead), mask).float()
        error = (velocity - (batch.mel - batch.noise)).square().mean(-1)
        scored = batch.valid & ~batch.known
        return (error * scored).sum(1) / scored.sum(1).clamp_min(1)


def train_flow(
    packs: Rows[Path],
    tuning: Rows[Path],
    tokenizer: SemanticTokenizer,
    tokenizer_name: str,
    output: Path,
    config: FlowTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
) -> TrainingResult:
    """Train the flow; `output/best` becomes a model directory with the lowest loss.

    Args:
        packs: Packed training utterances; synthetic ones are ignored.
        tuning: Packed validation utterances, of other texts, which select the best model.
        tokenizer: Tokenizer of the packs.
        tokenizer_name: Name of its model.
        output: Folder of the training.
        config: How to train.
        max_minutes: Stop after this time.
        resume: Resume from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, for its directory.
        start_from: Flow to initialize from; its size replaces the configuration's.

    Raises:
        DataError: A pack is missing, has no recorded utterance, or was made with another tokenizer or another speaker
            encoder than the flow to initialize from.
        ModelFormatError: The flow to initialize from was trained with another tokenizer.
    """
    stretches, held_out = (Stretches(UtterancePack(*folders), tokenizer, config) for folders in (packs, tuning))
    torch.manual_seed(config.training.seed)
    if start_from is None:
        file, sha256 = stretches.pack.speaker
        network = replace(config.model, speech=tokenizer.size, speaker_file=file, speaker_sha256=sha256)
        flow = FlowNetwork(network, speech_vectors(tokenizer))
        stretches.measure(flow, config.main_prob)
    else:
        flow = load_flow(start_from, tokenizer).train()
    for data in (stretches, held_out):
        check_speaker(flow.config, data.pack)
    config = replace(config, model=flow.config)
    size = sum(parameter.numel() for parameter in flow.parameters())
    logger.info("%d recorded utterances, %.2f M parameters", len(stretches.rows), size / 1e6)
    exact = replace(config, main_prob=0.5, prompt_prob=0.0, drop_prob=0.0, wrong_tokens=0.0)
    validation = [
        (
            name,
            held_out.collate(flow, seeds, replace(exact, full_prob=full_probability, chunks=(10,)), _VALIDATION_SEED),
        )
        for seeds in fixed_batches(config.batch, config.validation)
        for name, full_probability in (("full", 1.0), ("chunked", 0.0))
    ]

    def save(module: nn.Module, folder: Path) -> None:
        network = module.flow
        assert isinstance(network, FlowNetwork)
        record = {**(provenance or {}), "training": asdict(config)}
        settings = {
            "network": asdict(network.config),
            "tokenizer": tokenizer_entry(tokenizer, tokenizer_name),
        }
        hub.save_model(folder, settings, network.state_dict(), FLOW, CARD, record)

    return train(
        _Training(flow),
        fresh_batches(config.batch, config.epoch_batches),
        lambda module, batch: module(batch).mean(),
        lambda module: _validate(module, validation),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=save,
        prepare=lambda seeds: stretches.collate(flow, seeds, config),
        count_items=lambda batch: float(batch.valid.sum()) * HOP_LENGTH / 16_000,
    )


class Stretches:
    """Draws excerpts of the recorded utterances of a pack.

    Args:
        pack: The utterances.
        tokenizer: Tokenizer of the pack.
        config: Names the main voice.

    Raises:
        DataError: There is no recorded utterance, or the tokens are another tokenizer's.
    """

    def __init__(self, pack: UtterancePack, tokenizer: SemanticTokenizer, config: FlowTrainingConfig) -> None:
        if pack.tokenizer != tokenizer.fingerprint:
            raise DataError("the utterances were packed with another tokenizer", remedy="pack them with this one")
        self.pack, self.rows = pack, np.flatnonzero(pack.samples > 0)
        if not len(self.rows):
            raise DataError(
                "there is no recorded utterance", remedy="pack recorded speech; synthetic speech is not used"
            )
        voices = np.array(pack.voices)
        self._main = self.rows[voices[self.rows] == config.main_voice]
        # square roots, so that neither one speaker with an hour nor many with a sentence each dominate
        speakers: dict[str, list[int]] = {}
        for row in self.rows.tolist():
            if voices[row] != config.main_voice:
                speakers.setdefault(pack.speakers[row], []).append(row)
        self._other_rows = [np.array(rows) for rows in speakers.values()]
        weights = np.sqrt([pack.samples[rows].sum() for rows in self._other_rows])
        self._weights = weights / weights.sum() if len(weights) else weights

    def measure(self, flow: FlowNetwork, main_probability: float) -> None:
        """Set a flow's mean and standard deviation of every band, over utterances as they are drawn in training."""
        rng = np.random.default_rng(0)
        frames = torch.cat([self._mel(self._draw(rng, main_probability)[0]) for _ in range(_MEASURED)])
        flow.mean.copy_(frames.mean(0))
        flow.spread.copy_(frames.std(0).clamp_min(0.1))

    def collate(self, flow: FlowNetwork, seeds: range, config: FlowTrainingConfig, offset: int = 0) -> _Batch:
        """Return the batch of some seeds; what its excerpts share is drawn by the first."""
        shared = np.random.default_rng([seeds.start + offset, 1])
        chunk = 0 if shared.random() < config.full_prob else int(shared.choice(config.chunks))
        drawn = [self._stretch(flow, np.random.default_rng([seed + offset, 0]), config) for seed in seeds]
        columns = list(zip(*drawn, strict=True))
        tokens, valid = (_padded(columns[n], value) for n, value in ((0, -1), (3, False)))
        mel, known, noise = (_padded(columns[n], value) for n, value in ((2, 0.0), (4, False), (6, 0.0)))
        lengths = torch.tensor(
            [
                len(reference) if is_conditioned else 0
                for reference, is_conditioned in zip(columns[5], columns[8], strict=True)
            ]
        )
        return _Batch(
            tokens,
            torch.stack(columns[1]),
            mel,
            valid,
            known,
            _padded(columns[5], 0.0),
            lengths,
            noise,
            torch.tensor(columns[7]),
            chunk,
        )

    def _stretch(self, flow: FlowNetwork, rng: np.random.Generator, config: FlowTrainingConfig) -> tuple[Any, ...]:
        row, reference = self._draw(rng, config.main_prob)
        tokens = torch.from_numpy(self.pack.tokens(row).astype(np.int64))
        count = min(len(tokens), config.tokens)
        start = int(rng.integers(len(tokens) - count + 1))
        mel = flow.normalize(self._mel(row)[FRAMES * start : FRAMES * (start + count)])
        wrong = torch.from_numpy(rng.random(len(tokens)) < config.wrong_tokens * rng.random())
        tokens = torch.where(wrong, torch.from_numpy(rng.integers(flow.config.speech, size=len(tokens))), tokens)
        ahead = torch.full((flow.config.lookahead,), -1)
        following = tokens[start + count :][: flow.config.lookahead]
        ahead[: len(following)] = following
        tokens = tokens[start : start + count]
        known = torch.zeros(FRAMES * count, dtype=torch.bool)
        if rng.random() < config.prompt_prob:
            known[: int(rng.uniform(0.0, config.longest_prompt) * FRAMES * count)] = True
        is_conditioned = rng.random() >= config.drop_prob
        if not is_conditioned:
            tokens, ahead, known = torch.full_like(tokens, -1), torch.full_like(ahead, -1), known & False
        voice = self._voice(flow, reference)
        noise = torch.from_numpy(rng.standard_normal((FRAMES * count, N_MELS), dtype=np.float32))
        moment = 1.0 - math.cos(0.5 * math.pi * rng.random())
        valid = torch.ones(FRAMES * count, dtype=torch.bool)
        return tokens, ahead, mel, valid, known, voice, noise, moment, is_conditioned

    def _draw(self, rng: np.random.Generator, main_probability: float) -> tuple[int, int]:
        """Return an utterance, and another one of the same speaker if there is one."""
        if len(self._main) and (rng.random() < main_probability or not self._other_rows):
            rows = self._main
        else:
            rows = self._other_rows[int(rng.choice(len(self._other_rows), p=self._weights))]
        row = int(rng.choice(rows))
        candidates = rows[rows != row]
        return row, int(rng.choice(candidates)) if len(candidates) else row

    def _voice(self, flow: FlowNetwork, row: int) -> Tensor:
        """Return the reference of an utterance's voice (see `FlowNetwork.voice`)."""
        if flow.config.speaker_file:
            return torch.from_numpy(self.pack.vector(row))[None]
        return flow.normalize(self._mel(row))[: int(_REFERENCE_S * 16_000 / HOP_LENGTH)]

    def _mel(self, row: int) -> Tensor:
        """Return the log-mel frames (2 N, 80) of an utterance's tokens."""
        waveform = torch.from_numpy(self.pack.pcm(row).astype(np.float32) / 32768.0)
        mel, count = log_mel(waveform[None])[0], FRAMES * int(self.pack.counts[row])
        return nn.functional.pad(mel, (0, 0, 0, max(0, count - len(mel))), value=LOG_FLOOR)[:count]


def _padded(parts: Rows[Tensor], value: float) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)


def _validate(module: nn.Module, batches: list[tuple[str, _Batch]]) -> dict[str, float]:
    """Return the mean squared error of the velocity with full attention, in chunks, and as `loss` their mean."""
    from accelerate.utils import send_to_device

    device = next(module.parameters()).device
    errors: dict[str, list[Tensor]] = {}
    for name, batch in batches:
        errors.setdefault(name, []).append(module(send_to_device(batch, device)))
    means = {name: float(torch.cat(values).mean()) for name, values in errors.items()}
    return {"loss": sum(means.values()) / len(means), **means}
