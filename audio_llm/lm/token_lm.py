"""A decoder-only language model over ranges of tokens: transformers' Llama, built from a configuration.

Positions are given, not counted: tokens of different streams at the same time share a position, which aligns them; a
learned embedding of the segment distinguishes the streams. Attention masks are additive (0 and the lowest float), the
only form that is causal with every attention implementation of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audio_llm.errors import ConfigError
from audio_llm.lm.sampling import GREEDY, Sampling, draw, median
from audio_llm.lm.vocabulary import PAD, Vocabulary

_FEW_LEVELS = 32


@dataclass(frozen=True)
class TokenLmConfig:
    """Size of the model.

    Attributes:
        ranges: Name and number of tokens of each range.
        segments: Number of streams that are distinguished.
        width: Width of the hidden states.
        layers: Transformer blocks.
        heads: Attention heads; a divisor of the width.
        feed_forward: Width inside a block's gated feed-forward part.
        dropout: Dropout of the embeddings in training.
    """

    ranges: dict[str, int] = field(default_factory=dict)
    segments: int = 4
    width: int = 176
    layers: int = 6
    heads: int = 4
    feed_forward: int = 480
    dropout: float = 0.1


class Sequence(NamedTuple):
    """Tokens with their segments and positions.

    Attributes:
        ids: (B, N) int64, `PAD` for padding.
        segments: (B, N) int64.
        positions: (B, N) float32.
    """

    ids: Tensor
    segments: Tensor
    positions: Tensor


class Continuation(NamedTuple):
    """Generated tokens.

    Attributes:
        ids: (B, T) int64.
        log_probs: (B, T) float32, natural logarithm of each token's probability before it was drawn (temperature 1).
    """

    ids: Tensor
    log_probs: Tensor


class TokenLm(nn.Module):
    """The model.

    Args:
        config: Its size; weights are drawn from torch's global generator.
        vectors: Code vectors of the tokens of a range, (R, D) float32 by name of the range (`Quantizer.decode` of all
            tokens): tokens with common coordinates share parameters. Not stored with the weights.
        network: A transformers decoder of that size; None: a new Llama.
    """

    def __init__(
        self, config: TokenLmConfig, vectors: Mapping[str, Tensor] | None = None, network: Any | None = None
    ) -> None:
        super().__init__()
        self.config, self.vocabulary = config, Vocabulary(config.ranges)
        self.network: Any = _new_llama(config, self.vocabulary.size) if network is None else network
        self._cache_name = cache_name(self.network)
        self.segments = nn.Embedding(config.segments, config.width)
        nn.init.normal_(self.segments.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.shared = nn.ModuleDict()
        self._levels: dict[str, list[int]] = {}  # levels of every coordinate, for tokens that form a grid
        for name, table in (vectors or {}).items():
            features, levels = _features(table, len(self.vocabulary.span(name)))
            if math.prod(levels) == len(table):
                self._levels[name] = levels
            self.register_buffer(f"features_{name}", features, persistent=False)
            layer = nn.Linear(features.shape[1], config.width, bias=False)
            nn.init.normal_(layer.weight, std=0.02)
            self.shared[name] = layer

    def forward(self, sequence: Sequence, features: Tensor | None = None) -> Tensor:
        """Return hidden states (B, N, width) float32; each depends only on its token and those before it.

        Args:
            sequence: The tokens.
            features: (B, N, width) float32, added to the token embeddings; None: nothing is added.
        """
        mask = additive_mask(sequence.ids != PAD)
        return self.run(sequence, self.embeddings(), mask, None, features)

    def logits(self, hidden: Tensor, name: str, specials: Collection[int] = ()) -> Tensor:
        """Return logits (..., R) of the next token in a range, for hidden states (..., width).

        Args:
            hidden: Hidden states from `forward`.
            name: Name of the range.
            specials: Special tokens that are allowed as well; their logits precede the range's.
        """
        return hidden @ self.table(name, specials).T

    def table(self, name: str, specials: Collection[int] = ()) -> Tensor:
        """Return the output embeddings (R, width) of a range's tokens, preceded by those of the special tokens."""
        span, embeddings = self.vocabulary.span(name), self.embeddings()
        vectors = embeddings[span.start : span.stop]
        return torch.cat([embeddings[list(specials)], vectors]) if specials else vectors

    def embeddings(self) -> Tensor:
        """Return the input and output embeddings (V, width) of the tokens."""
        return self._featured(self.network.embed_tokens.weight)

    def _embed(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Return the embeddings (B, N, width) of tokens (B, N)."""
        return embeddings[ids]

    def _featured(self, weight: Tensor) -> Tensor:
        """Return embeddings (V, width) with the shared features of the tokens added."""
        for name, layer in self.shared.items():
            span = self.vocabulary.span(name)
            vectors = weight[span.start : span.stop] + layer(getattr(self, f"features_{name}"))
            weight = torch.cat([weight[: span.start], vectors, weight[span.stop :]])
        return weight

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence,
        target: Sequence,
        name: str,
        sampling: Sampling = GREEDY,
        generator: torch.Generator | None = None,
        votes: Tensor | None = None,
    ) -> Continuation:
        """Continue prompts by a known number of tokens of one range.

        Args:
            prompt: The given tokens; rows may be padded on the left.
            target: Segments and positions (B, T) of the tokens to generate; its ids are ignored.
            name: The range to draw from.
            sampling: Sampling options.
            generator: Source of the draws.
            votes: (B, T, R) float32, external probabilities of the range's tokens at each position, which may sum to
                less than 1; the model's probabilities are scaled by the rest. None: the model only.

        Raises:
            ConfigError: `sampling.median` is set for tokens that do not form a grid of levels.
        """
        span, table = self.vocabulary.span(name), self.table(name)
        run = Decoding(self, prompt)
        ids, log_probs = [], []
        for step in range(target.positions.shape[1]):
            logits = (run.hidden @ table.T).float()
            if votes is not None:
                model_weight = 1.0 - votes[:, step].sum(-1, keepdim=True)
                logits = (model_weight * logits.softmax(-1) + votes[:, step]).log()
            drawn = self._next(logits, name, sampling, generator)
            ids.append(drawn + span.start)
            log_probs.append(logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0])
            if step + 1 == target.positions.shape[1]:
                break
            run.feed(Sequence(ids[-1][:, None], *(part[:, step : step + 1] for part in target[1:])))
        empty = prompt.ids.new_zeros(len(prompt.ids), 0)
        if not ids:
            return Continuation(empty, empty.float())
        return Continuation(torch.stack(ids, dim=1), torch.stack(log_probs, dim=1))

    def _next(self, logits: Tensor, name: str, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
        if not sampling.median:
            return draw(logits, sampling, generator)
        if name not in self._levels:
            raise ConfigError(f"the {name} tokens form no grid and have no median", remedy="use another sampling")
        return median(logits.softmax(-1), getattr(self, f"features_{name}"), self._levels[name])

    def run(
        self, sequence: Sequence, embeddings: Tensor, mask: Tensor, cache: Any, features: Tensor | None = None
    ) -> Tensor:
        """Return hidden states, (B, N, width); a transformers cache is updated, if there is one."""
        x = self._embed(embeddings, sequence.ids) + self.segments(sequence.segments)
        if features is not None:
            x = x + features
        out = self.network(
            inputs_embeds=self.dropout(x),
            attention_mask=mask.to(x.dtype),
            position_ids=sequence.positions,
            use_cache=cache is not None,
            **{self._cache_name: cache},
        )
        hidden: Tensor = out.last_hidden_state
        return hidden


class Decoding:
    """Incremental decoding with a key-value cache.

    Args:
        lm: The model.
        prompt: The given tokens; rows may be padded on the left.
        features: As for `TokenLm.forward`, of the prompt.

    Attributes:
        hidden: (B, width) float32, hidden state of the last token, which predicts the next one.
    """

    def __init__(self, lm: TokenLm, prompt: Sequence, features: Tensor | None = None) -> None:
        from transformers import DynamicCache

        self._lm, self._embeddings, self._cache = lm, lm.embeddings(), DynamicCache()
        self._valid = prompt.ids != PAD
        hidden = lm.run(prompt, self._embeddings, additive_mask(self._valid), self._cache, features)
        self.hidden = hidden[:, -1]

    def feed(self, tokens: Sequence) -> None:
        """Append one token to each row, (B, 1)."""
        self._valid = torch.cat([self._valid, self._valid.new_ones(len(self._valid), 1)], dim=1)
        mask = _hidden_padding(self._valid)[:, None, None, :]
        self.hidden = self._lm.run(tokens, self._embeddings, mask, self._cache)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Select rows, in this order; a row may be selected several times; (B',) int64."""
        self._cache.batch_select_indices(rows)
        self._valid, self.hidden = self._valid[rows], self.hidden[rows]


def _new_llama(config: TokenLmConfig, size: int) -> nn.Module:
    """Return a Llama with random weights for a vocabulary of some size."""
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(
        LlamaConfig(  # type: ignore[call-arg]
            vocab_size=size,
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            pad_token_id=PAD,
            attn_implementation="sdpa",
        )
    )


def join(parts: list[Sequence]) -> Sequence:
    """Return the concatenation of sequences along time."""
    return Sequence(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))


def _features(vectors: Tensor, size: int) -> tuple[Tensor, list[int]]:
    """Return (R, D) features of tokens, one-hot levels of each coordinate with few levels, else its value.

    The second result is the number of levels of each coordinate; empty if one has many.

    Raises:
        ConfigError: There are vectors for more or fewer tokens than the range has.
    """
    if len(vectors) != size:
        raise ConfigError(f"{len(vectors)} vectors for {size} tokens", remedy="give those of the same quantizer")
    columns, counts = [], []
    for column in vectors.detach().float().T:
        levels = column.unique()
        columns.append((column[:, None] == levels).float() if len(levels) <= _FEW_LEVELS else column[:, None])
        counts.append(len(levels))
    return torch.cat(columns, dim=1), counts if max(counts) <= _FEW_LEVELS else []


def cache_name(network: nn.Module) -> str:
    """Return the name of the cache argument of a transformers model, which changed within version 5."""
    return "cache" if "cache" in signature(network.forward).parameters else "past_key_values"


def additive_mask(valid: Tensor) -> Tensor:
    """Return the causal mask (B, 1, N, N) float32: 0 for valid positions up to the query's; valid (B, N) bool."""
    size = valid.shape[1]
    past = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    # a padded position attends to itself, else its softmax would be over nothing
    seen = (past & valid[:, None, :]) | torch.eye(size, dtype=torch.bool, device=valid.device)
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]


def _hidden_padding(valid: Tensor) -> Tensor:
    return torch.where(valid, 0.0, torch.finfo(torch.float32).min)
