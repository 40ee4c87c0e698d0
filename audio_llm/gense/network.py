"""GenSE's two language models, N2S and S2S, in one module to train, store and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.gense.prompts import (
    ACOUSTIC,
    SEMANTIC,
    Segment,
    n2s_prompt,
    n2s_target,
    s2s_prompt,
    s2s_target,
)
from audio_llm.lm.sampling import GREEDY, Sampling
from audio_llm.lm.token_lm import Continuation, Sequence, TokenLm, TokenLmConfig, join


@dataclass(frozen=True)
class GenseConfig:
    """Size of the models.

    Attributes:
        semantic: Number of semantic tokens.
        acoustic: Number of acoustic codes.
        ratio: Acoustic codes per semantic token.
        n2s: Size of the model of semantic tokens; its ranges and segments are set here.
        s2s: Size of the model of acoustic codes.
    """

    semantic: int = 1000
    acoustic: int = 8192
    ratio: int = 4
    n2s: TokenLmConfig = field(default_factory=lambda: TokenLmConfig(width=160, layers=3, feed_forward=432))
    s2s: TokenLmConfig = field(default_factory=TokenLmConfig)

    def __post_init__(self) -> None:
        ranges = {SEMANTIC: self.semantic}
        object.__setattr__(self, "n2s", replace(self.n2s, ranges=ranges, segments=len(Segment)))
        ranges = {SEMANTIC: self.semantic, ACOUSTIC: self.acoustic}
        object.__setattr__(self, "s2s", replace(self.s2s, ranges=ranges, segments=len(Segment)))


class TokenPairs(NamedTuple):
    """Tokens of noisy speech, and of the same speech without noise.

    Attributes:
        noisy_semantic: (B, T) int64.
        clean_semantic: (B, T) int64.
        noisy_acoustic: (B, T x ratio) int64.
        clean_acoustic: (B, T x ratio) int64.
        masked_acoustic: (B, T x ratio) int64, of the mask network's output.
    """

    noisy_semantic: Tensor
    clean_semantic: Tensor
    noisy_acoustic: Tensor
    clean_acoustic: Tensor
    masked_acoustic: Tensor


class History(NamedTuple):
    """Inputs that replace the true clean tokens as the models' own previous outputs.

    Attributes:
        semantic: (B, T) int64, replaces the clean semantic tokens.
        acoustic: (B, T x ratio) int64, replaces the clean acoustic codes.
    """

    semantic: Tensor
    acoustic: Tensor


@dataclass(frozen=True)
class Chain:
    """Parts of the prompt of S2S; each ablation of the method is one choice of them.

    Attributes:
        noisy_semantic: Whether the noisy semantic tokens are included.
        clean_semantic: The true ones (`oracle`), those `predicted` by N2S, or `none`: without hierarchy.
        acoustic: Acoustic codes of the `noisy` speech or of the mask network's output (`masked`); `none`: nothing
            conveys the speaker's voice.
    """

    noisy_semantic: bool = True
    clean_semantic: str = "predicted"
    acoustic: str = "noisy"


class GenseNetwork(nn.Module):
    """The two models.

    Args:
        config: Their sizes.
        vectors: Quantized vectors of the tokens, by range (see `TokenLm`).
    """

    def __init__(self, config: GenseConfig, vectors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.config = config
        vectors = vectors or {}
        self.n2s = TokenLm(config.n2s, {k: v for k, v in vectors.items() if k == SEMANTIC})
        self.s2s = TokenLm(config.s2s, vectors)

    def forward(self, pairs: TokenPairs, chain: Chain, history: History | None = None) -> dict[str, Tensor]:
        """Return cross-entropies in nats per token, `n2s` and `s2s`, and N2S's token error rate, `errors`.

        The previous tokens are the true ones (teacher forcing), or those of `history`. With predicted tokens in the
        chain S2S gets N2S's most likely token at each position.
        """
        ratio = self.config.ratio
        history = history or History(pairs.clean_semantic, pairs.clean_acoustic)
        prompt = n2s_prompt(pairs.noisy_semantic, self.n2s.vocabulary, ratio)
        target = n2s_target(history.semantic, self.n2s.vocabulary, ratio)
        logits = _next(self.n2s, prompt, target, SEMANTIC)
        n2s = functional.cross_entropy(logits.flatten(0, 1), pairs.clean_semantic.flatten())
        predicted = logits.detach().argmax(-1)
        clean = {"oracle": pairs.clean_semantic, "predicted": predicted, "none": None}[chain.clean_semantic]
        prompt = s2s_prompt(
            pairs.noisy_semantic if chain.noisy_semantic else None,
            clean,
            {"noisy": pairs.noisy_acoustic, "masked": pairs.masked_acoustic, "none": None}[chain.acoustic],
            self.s2s.vocabulary,
            ratio,
            chain.acoustic == "masked",
        )
        logits = _next(self.s2s, prompt, s2s_target(history.acoustic, self.s2s.vocabulary), ACOUSTIC)
        s2s = functional.cross_entropy(logits.flatten(0, 1), pairs.clean_acoustic.flatten())
        return {"n2s": n2s, "s2s": s2s, "errors": (predicted != pairs.clean_semantic).float().mean()}

    def clean_tokens(
        self,
        noisy: Tensor,
        given: Tensor | None = None,
        sampling: Sampling = GREEDY,
        generator: torch.Generator | None = None,
        copied: tuple[Tensor, ...] = (),
        copy_weight: float = 0.0,
    ) -> Continuation:
        """Return N2S's clean tokens (as `ids`, 0.. of the range) for noisy semantic tokens (B, T) int64.

        Args:
            noisy: Noisy semantic tokens.
            given: (B, G) int64, the first clean tokens, where they are known already.
            sampling: Decoding.
            generator: Random generator of the draws.
            copied: Tokens (B, T) int64 that get probability of their own, such as `noisy` itself.
            copy_weight: Weight of each of `copied` in the probabilities at each position.
        """
        vocabulary = self.n2s.vocabulary
        prompt = n2s_prompt(noisy, vocabulary, self.config.ratio)
        known = noisy[:, :0] if given is None else given
        count = noisy.shape[1] - known.shape[1]
        whole = n2s_target(functional.pad(known, (0, count)), vocabulary, self.config.ratio)
        votes = None
        if copied and copy_weight:
            one_hot_tokens = [functional.one_hot(tokens, self.config.semantic).float() for tokens in copied]
            votes = copy_weight * torch.stack(one_hot_tokens).sum(0)[:, known.shape[1] :]
        continuation = _continue(self.n2s, prompt, whole, known.shape[1], SEMANTIC, sampling, generator, votes)
        return Continuation(vocabulary.decode(SEMANTIC, continuation.ids), continuation.log_probs)

    def clean_codes(
        self,
        prompt: Sequence,
        count: int,
        sampling: Sampling,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Continuation:
        """Return S2S's clean codes (B, count), 0.. of the range.

        Args:
            prompt: The result of `s2s_prompt`.
            count: Total number of codes.
            sampling: Decoding.
            given: (B, G) int64, the first clean codes, where they are known already.
            generator: Random generator of the draws.
        """
        vocabulary = self.s2s.vocabulary
        known = prompt.ids[:, :0] if given is None else given
        whole = s2s_target(functional.pad(known, (0, count - known.shape[1])), vocabulary)
        continuation = _continue(self.s2s, prompt, whole, known.shape[1], ACOUSTIC, sampling, generator)
        return Continuation(vocabulary.decode(ACOUSTIC, continuation.ids), continuation.log_probs)


def _continue(
    lm: TokenLm,
    prompt: Sequence,
    whole: Sequence,
    known: int,
    name: str,
    sampling: Sampling,
    generator: torch.Generator | None,
    votes: Tensor | None = None,
) -> Continuation:
    """Generate what follows the first `known` tokens of `whole`; return the ids of the whole."""
    first, rest = (Sequence(*(part[:, cut] for part in whole)) for cut in (slice(known), slice(known, None)))
    continuation = lm.generate(join([prompt, first]), rest, name, sampling, generator, votes)
    return Continuation(torch.cat([first.ids, continuation.ids], dim=1), continuation.log_probs)


def _next(lm: TokenLm, prompt: Sequence, target: Sequence, name: str) -> Tensor:
    """Return logits (B, T, R) float32 of each target token, given the prompt and the target tokens before it."""
    hidden = lm(join([prompt, Sequence(*(part[:, :-1] for part in target))]))
    return lm.logits(hidden[:, prompt.ids.shape[1] - 1 :], name).float()
