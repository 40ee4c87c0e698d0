"""A pretrained text language model extended by new ranges of tokens, such as speech tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from audio_llm.errors import ModelFormatError
from audio_llm.lm.token_lm import TokenLm, TokenLmConfig

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
)  # `model_type` of transformers: rotary positions that can be passed in


class GrownLm(TokenLm):
    """A `TokenLm` that takes its network, and the tokens of its last range, from a pretrained model.

    Args:
        config: Ranges, the last one as large as the pretrained vocabulary, segments and dropout; the other sizes are
            replaced by the pretrained model's.
        base: Causal language model of transformers; becomes part of this one. If its layers use a sliding window, rows
            must be shorter than the window: here attention is over everything before.
        vectors: As for `TokenLm`, of the ranges before the last.

    Raises:
        ModelFormatError: The family does not accept given positions.
    """

    def __init__(self, config: TokenLmConfig, base: Any, vectors: Mapping[str, Tensor] | None = None) -> None:
        family = base.config.model_type
        if family not in FAMILIES:
            remedy = f"choose one of the families {', '.join(FAMILIES)}"
            raise ModelFormatError(f"a language model of the family {family!r} cannot be extended", remedy=remedy)
        sizes = {
            "width": base.config.hidden_size,
            "layers": base.config.num_hidden_layers,
            "heads": base.config.num_attention_heads,
            "feed_forward": base.config.intermediate_size,
        }
        super().__init__(replace(config, **sizes), vectors, base.float().get_decoder())
        self._known = list(config.ranges)[-1]
        known = self.network.embed_tokens.weight.detach()
        self.own = nn.Embedding(self.vocabulary.span(self._known).start, known.shape[1])
        with torch.no_grad():
            self.own.weight.copy_(known.mean(0) + known.std(0) * torch.randn_like(self.own.weight))
        for parameter in (*self.segments.parameters(), *self.shared.parameters()):
            nn.init.zeros_(parameter)  # initially the outputs equal the pretrained model's
        self.head = None if base.config.tie_word_embeddings else base.get_output_embeddings()

    def embeddings(self) -> Tensor:
        """Return the input and output embeddings of the new tokens, those before the last range."""
        return self._featured(self.own.weight)

    def table(self, name: str, specials: Collection[int] = ()) -> Tensor:
        """See `TokenLm.table`."""
        if name != self._known:
            return super().table(name, specials)
        weight: Tensor = (self.network.embed_tokens if self.head is None else self.head).weight
        return torch.cat([self.embeddings()[list(specials)], weight]) if specials else weight

    def _embed(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        first = len(embeddings)
        known = self.network.embed_tokens((ids - first).clamp_min(0))
        return torch.where((ids < first)[..., None], embeddings[ids.clamp_max(first - 1)], known)
