"""N-best lists -> padded batches for the neural corrector: prompts, labels, noise embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audio_llm.ger.encoders import TextEncoder
from audio_llm.ger.model import IGNORED, Batch
from audio_llm.ger.noise import NoiseSettings, noise_embedding
from audio_llm.ger.prompt import Prompt, PromptEncoder


@dataclass(frozen=True)
class Collator:
    """Turns lists into batches.

    Attributes:
        prompts: Encodes lists as prompts.
        encoder: Text encoder of the noise embedding; None: zeros that are not valid, for a model without adapter.
        noise: Settings of the noise embedding.
    """

    prompts: PromptEncoder
    encoder: TextEncoder | None
    noise: NoiseSettings

    def batch(self, texts: Sequence[Sequence[str]], responses: Sequence[str | None]) -> Batch:
        """Return the batch of lists and their responses.

        Args:
            texts: Hypotheses of each list, normalized, best first, with duplicates.
            responses: The true text of each, or None.
        """
        prompts = [self.prompts.encode(t, r) for t, r in zip(texts, responses, strict=True)]
        return self.pad(prompts, texts)

    def pad(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> Batch:
        """Return the batch of encoded prompts, with the noise embeddings of their lists."""
        ids = _pad([p.ids for p in prompts], self.prompts.pad)
        labels = [(IGNORED,) * p.response + p.ids[p.response :] for p in prompts]
        lengths = torch.tensor([len(p.ids) for p in prompts])
        noise, noise_valid = self.noises(texts)
        return Batch(
            ids,
            _pad([p.positions for p in prompts], 0),
            _pad([p.segments for p in prompts], 0),
            torch.arange(ids.shape[1]) < lengths[:, None],
            _pad(labels, IGNORED),
            noise,
            noise_valid,
        )

    def noises(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Return the noise embeddings of lists, (B, U, d) float32, and their valid rows, (B, U) bool."""
        if self.encoder is None:
            return torch.zeros(len(texts), 1, 1), torch.zeros(len(texts), 1, dtype=torch.bool)
        pairs = [noise_embedding(t, self.encoder, self.noise) for t in texts]
        return torch.from_numpy(np.stack([p[0] for p in pairs])), torch.from_numpy(np.stack([p[1] for p in pairs]))


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows], dtype=torch.int64)
