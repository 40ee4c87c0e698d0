"""Training of GenSE's language models on packed tokens, and packing of the tokens of noisy and clean speech."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.codec.codec import to_level
from audio_llm.errors import DataError, ModelFormatError
from audio_llm.gense.chunks import AHEAD, CONTEXT, LONGEST, SAMPLE_RATE
from audio_llm.gense.mask_model import MaskNetwork
from audio_llm.gense.models import GENSE, Parts, load_gense
from audio_llm.gense.network import Chain, GenseConfig, GenseNetwork, History, TokenPairs
from audio_llm.simulation.noisy import NoisyConfig, NoisyPair, NoisySpeech
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.training.batching import fixed_batches
from audio_llm.training.config import renamed
from audio_llm.training.loop import TrainingConfig, TrainingResult, train
from audio_llm.training.shards import ShardReader, write_shards

logger = logging.getLogger(__name__)

_COLUMNS = TokenPairs._fields
_PACK_BATCH = 16
PACK_S = (CONTEXT + LONGEST + 2 * AHEAD) / SAMPLE_RATE  # of a segment: as long as the longest window in use
CARD = "# GenSE\n\nSpeech enhancement by token language models, at 16 kHz.\n"


@dataclass(frozen=True)
class GenseTrainingConfig:
    """How to train the language models.

    Attributes:
        model: Sizes of the models; the numbers of tokens are those of tokenizer and codec.
        training: Settings of the training loop.
        batch: Segments in a batch.
        least_tokens: Shortest part of a segment that is trained on, in semantic tokens; the longest is the whole.
        predicted_prob: Fraction of batches with N2S's tokens in the prompt of S2S instead of the true ones.
        no_hierarchy_prob: Fraction of batches with no clean semantic tokens in the prompt of S2S.
        no_voice_prob: Fraction of batches with no acoustic codes in the prompt of S2S.
        masked_prob: Fraction of the other batches, in which these codes are those of the mask network's output.
        no_noisy_prob: Fraction of batches with no noisy semantic tokens in the prompt of S2S.
        most_wrong_past: Largest fraction of the previous clean tokens that is corrupted, drawn for each batch: replaced
            by the noisy speech's token or by a repetition. This reduces exposure bias: without it a model builds on
            its own errors.
        identity_prob: Fraction of batches with clean speech as input, which has to stay as it is.
        validation: Segments at each validation.
    """

    model: GenseConfig = field(default_factory=GenseConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_steps=100_000))
    batch: int = 6
    least_tokens: int = 15
    predicted_prob: float = renamed("predicted_share", 0.5)
    no_hierarchy_prob: float = renamed("no_hierarchy_share", 0.1)
    no_voice_prob: float = renamed("no_voice_share", 0.1)
    masked_prob: float = renamed("masked_share", 0.5)
    no_noisy_prob: float = renamed("no_noisy_share", 0.1)
    most_wrong_past: float = 0.5
    identity_prob: float = renamed("identity_share", 0.05)
    validation: int = 48


@dataclass(frozen=True)
class TokenPackConfig:
    """Size and content of a token pack.

    Attributes:
        pairs: Simulation of noisy speech; the clean side has no reverberation.
        count: Number of segments.
        seed: Seed of the first segment; each further one has the next seed.
    """

    pairs: NoisyConfig = field(
        default_factory=lambda: NoisyConfig(
            seconds=PACK_S, early_s=0.0, silent_prob=0.03, clipped_prob=0.05, narrow_prob=0.1, room_prob=0.4
        )
    )
    count: int = 20_000
    seed: int = 0


def pack_tokens(pack: Path, parts: Parts, mask: MaskNetwork, output: Path, config: TokenPackConfig) -> int:
    """Write the tokens of noisy and clean speech; return the number of segments.

    Args:
        pack: Packed speech and noise.
        parts: Tokenizer and codec.
        mask: The mask network.
        output: Folder of the token pack.
        config: Settings.
    """
    speech = NoisySpeech(SpeechPack(pack, least_dynamics_db=24.0), config.pairs)

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, config.count, _PACK_BATCH):
            seeds = range(config.seed + first, config.seed + min(first + _PACK_BATCH, config.count))
            pairs = [speech.pair(seed) for seed in seeds]
            yield from _token_rows(pairs, parts, mask)
            if first % (64 * _PACK_BATCH) == 0:
                logger.info("%d of %d segments", first, config.count)

    return write_shards(rows(), output, extra=parts.names())


def train_gense(
    pack: Path,
    tuning: Path,
    parts: Parts,
    output: Path,
    config: GenseTrainingConfig,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    start_from: str | Path | None = None,
) -> TrainingResult:
    """Train N2S and S2S together; `output/best` becomes a model directory with the lowest cross-entropies.

    Args:
        pack: Training data: packed tokens.
        tuning: Validation data: packed tokens of other speakers and noises.
        parts: Tokenizer and codec of both packs.
        output: Folder of the training.
        config: Settings.
        max_minutes: Stop after this time.
        resume: Continue from `output/last`.
        device: `auto`, `cpu` or `cuda`.
        provenance: Origin of the model, stored in its directory.
        start_from: Model to initialize from; its size replaces the configured one.

    Raises:
        DataError: A pack is missing, or was written with other parts.
        ModelFormatError: The model to initialize from has other parts.
    """
    reader, held_out = ShardReader(pack), ShardReader(tuning)
    for data in (reader, held_out):
        if any(data.extra.get(key) != expected for key, expected in parts.names().items()):
            remedy = "pack the tokens again, or name the tokenizer and the codec that they come from"
            raise DataError(f"the tokens come from other models: {data.extra}", path=data.folder, remedy=remedy)
    model_config = replace(config.model, semantic=parts.tokenizer.size, acoustic=parts.codec.size, ratio=parts.ratio)
    torch.manual_seed(config.training.seed)
    network = GenseNetwork(model_config, parts.vectors()) if start_from is None else _start(start_from, parts)
    config = replace(config, model=network.config)
    network.train()
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    logger.info("%d segments, parameters %s", len(reader), sizes)
    count = min(config.validation, len(held_out))
    validation = [_collate(held_out, chosen) for chosen in fixed_batches(config.batch, count)]

    def save(module: nn.Module, folder: Path) -> None:
        assert isinstance(module, GenseNetwork)
        record = {**(provenance or {}), "training": asdict(config)}
        settings = {"network": asdict(module.config), **parts.names()}
        hub.save_model(folder, settings, module.state_dict(), GENSE, CARD, record)

    return train(
        network,
        lambda epoch: _batches(len(reader), epoch, config),
        lambda module, batch: _loss(module(*batch)),
        lambda module: _validate(module, validation, config),
        output,
        config.training,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        save=save,
        prepare=lambda drawn: _drawn(reader, drawn, config),
        count_items=lambda batch: batch[0].clean_semantic.numel() / parts.tokenizer.frame_rate,
    )


def _start(name: str | Path, parts: Parts) -> GenseNetwork:
    model = load_gense(name)
    if model.parts.names() != parts.names():
        remedy = "give the tokenizer and the codec that it was trained with"
        raise ModelFormatError("was trained with other parts", path=name, remedy=remedy)
    return model.network


def _token_rows(pairs: list[NoisyPair], parts: Parts, mask: MaskNetwork) -> Iterator[dict[str, np.ndarray]]:
    gains = torch.tensor([to_level(pair.noisy) for pair in pairs])[:, None]
    sounds = {name: torch.from_numpy(np.stack([getattr(pair, name) for pair in pairs])) for name in ("noisy", "clean")}
    with torch.inference_mode():
        sounds["masked"] = mask(sounds["noisy"])
    streams, ratio = {}, parts.ratio
    for name, sound in sounds.items():
        lengths = torch.full((len(pairs),), sound.shape[1])
        streams[f"{name}_semantic"] = parts.tokenizer.encode(sound * gains, lengths).tokens.numpy().astype(np.int32)
        streams[f"{name}_acoustic"] = parts.codec.encode(sound * gains, lengths).codes.numpy().astype(np.int32)
    count = min(streams["noisy_semantic"].shape[1], streams["noisy_acoustic"].shape[1] // ratio)
    for index in range(len(pairs)):
        yield {name: streams[name][index, : count * (ratio if name.endswith("acoustic") else 1)] for name in _COLUMNS}


def _batches(count: int, epoch: int, config: GenseTrainingConfig) -> list[tuple[list[int], int]]:
    """Return the batches of an epoch: indices of segments, and a seed for the random draws."""
    rng = np.random.default_rng([config.training.seed, epoch])
    order = rng.permutation(count).tolist()
    starts = range(0, count - config.batch + 1, config.batch) if count >= config.batch else range(1)
    return [(order[start : start + config.batch], int(rng.integers(1 << 62))) for start in starts]


def _drawn(
    reader: ShardReader, drawn: tuple[list[int], int], config: GenseTrainingConfig
) -> tuple[TokenPairs, Chain, History]:
    numbers, seed = drawn
    rng = np.random.default_rng(seed)
    pairs = _collate(reader, numbers)
    size = pairs.clean_semantic.shape[1]
    count = int(rng.integers(min(config.least_tokens, size), size + 1))
    start, ratio = int(rng.integers(size - count + 1)), config.model.ratio
    pairs = TokenPairs(
        *(part[:, start : start + count] for part in pairs[:2]),
        *(part[:, start * ratio : (start + count) * ratio] for part in pairs[2:]),
    )
    if rng.random() < config.identity_prob:
        clean = pairs.clean_acoustic
        pairs = TokenPairs(pairs.clean_semantic, pairs.clean_semantic, clean, clean, clean)
    no_hierarchy, no_voice, no_noisy = (
        rng.random() < prob for prob in (config.no_hierarchy_prob, config.no_voice_prob, config.no_noisy_prob)
    )
    clean_semantic_kind = "none" if no_hierarchy else "predicted" if rng.random() < config.predicted_prob else "oracle"
    acoustic = "none" if no_voice else "masked" if rng.random() < config.masked_prob else "noisy"
    chain = Chain(not no_noisy or (no_hierarchy and no_voice), clean_semantic_kind, acoustic)
    return pairs, chain, _corrupted_history(pairs, chain, config.most_wrong_past * rng.random(), rng)


def _corrupted_history(pairs: TokenPairs, chain: Chain, fraction: float, rng: np.random.Generator) -> History:
    prompted = pairs.masked_acoustic if chain.acoustic == "masked" else pairs.noisy_acoustic
    semantic = _corrupted(pairs.clean_semantic, pairs.noisy_semantic, fraction, rng)
    return History(semantic, _corrupted(pairs.clean_acoustic, prompted, fraction, rng))


def _corrupted(clean: Tensor, noisy: Tensor, fraction: float, rng: np.random.Generator) -> Tensor:
    """Return clean tokens (B, T), a fraction of them replaced by the noisy token or the token before."""
    is_corrupted = torch.from_numpy(rng.random(clean.shape) < fraction)
    is_repeated = torch.from_numpy(rng.random(clean.shape) < 0.5)
    before = torch.cat([clean[:, :1], clean[:, :-1]], dim=1)
    return torch.where(is_corrupted, torch.where(is_repeated, before, noisy), clean)


def _collate(reader: ShardReader, numbers: Any) -> TokenPairs:
    rows = [reader[number] for number in numbers]
    return TokenPairs(*(torch.from_numpy(np.stack([row[name] for row in rows]).astype(np.int64)) for name in _COLUMNS))


def _loss(losses: dict[str, Tensor]) -> Tensor:
    return losses["n2s"] + losses["s2s"]


def _validate(module: nn.Module, batches: list[TokenPairs], config: GenseTrainingConfig) -> dict[str, float]:
    """Return cross-entropies, also of S2S without parts of its prompt, and token error rates before and after N2S.

    The loss is computed with a corrupted history, similar to use; the other values with the true history.
    """
    device = next(module.parameters()).device
    rows: dict[str, list[float]] = {}
    chains = {
        "s2s_oracle": Chain(clean_semantic="oracle"),
        "s2s_no_hierarchy": Chain(clean_semantic="none"),
        "s2s_no_voice": Chain(acoustic="none"),
        "s2s_masked": Chain(acoustic="masked"),
    }
    for cpu_pairs in batches:
        pairs = TokenPairs(*(part.to(device) for part in cpu_pairs))
        losses = module(pairs, Chain())
        history = _corrupted_history(cpu_pairs, Chain(), 0.5 * config.most_wrong_past, np.random.default_rng(0))
        corrupted = module(pairs, Chain(), History(*(part.to(device) for part in history)))
        values = {"loss": _loss(corrupted), "n2s_wrong_past": corrupted["n2s"], "s2s_wrong_past": corrupted["s2s"]}
        values |= {"n2s": losses["n2s"], "s2s": losses["s2s"], "token_errors": losses["errors"]}
        values["token_errors_before"] = (pairs.noisy_semantic != pairs.clean_semantic).float().mean()
        values |= {name: module(pairs, chain)["s2s"] for name, chain in chains.items()}
        for name, value in values.items():
            rows.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in rows.items()}
