"""A small character Transformer language model, for rescoring."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audio_llm.errors import DataError, ModelFormatError
from audio_llm.training.loop import TrainingConfig, TrainingResult, train

KIND = "char-lm"
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
_FIRST_CHARACTER = 4
_IDS = {character: number for number, character in enumerate(CHARACTERS, _FIRST_CHARACTER)}
_IGNORED = -100


@dataclass(frozen=True)
class CharLmConfig:
    """Size of the network; the default has 4.9 million parameters.

    Attributes:
        width: Width of the hidden states.
        layers: Transformer blocks.
        heads: Attention heads; a divisor of the width.
        feed_forward: Width inside a block's gated feed-forward part.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 720


class CharLm(nn.Module):
    """Log probabilities of texts of the characters a to z, apostrophe and space; a transformers Llama.

    All other characters count as one unknown character.

    Args:
        config: Size of the network; weights are drawn from torch's global generator.
    """

    def __init__(self, config: CharLmConfig | None = None) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.config = config or CharLmConfig()
        self.network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=_FIRST_CHARACTER + len(CHARACTERS),
                hidden_size=self.config.width,
                num_hidden_layers=self.config.layers,
                num_attention_heads=self.config.heads,
                num_key_value_heads=self.config.heads,
                intermediate_size=self.config.feed_forward,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
                use_cache=False,
                pad_token_id=PAD,
                bos_token_id=BOS,
                eos_token_id=EOS,
            )
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return log p of each text, end token included.

        Args:
            tokens: (B, T) int64 from `encode_texts`, padded on the right.

        Returns:
            (B,) float32, natural logs.
        """
        # Padding is on the right and attention is causal, so no mask is needed: padded positions are not counted.
        logits = self.network(input_ids=tokens[:, :-1]).logits.float()
        targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == PAD, _IGNORED)
        losses = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none")
        return -losses.sum(dim=1)

    @torch.no_grad()
    def log_probs(self, texts: Sequence[str], batch_characters: int = 16_384) -> list[float]:
        """Return log p of each text, end token included.

        Args:
            texts: Normalized texts.
            batch_characters: Maximum characters of a batch, padding included.
        """
        self.eval()
        device = next(self.parameters()).device
        totals = [0.0] * len(texts)
        lengths = np.array([len(text) + 2 for text in texts])
        for batch in _batches(lengths, batch_characters, np.argsort(lengths, kind="stable")):
            tokens = encode_texts([texts[number] for number in batch]).to(device)
            for number, value in zip(batch, self(tokens).tolist(), strict=True):
                totals[number] = value
        return totals

    def save(self, folder: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> Path:
        """Write a model directory (see `audio_llm.hub`), weights in half precision; return it."""
        from audio_llm.hub import save_model

        tensors = {name: tensor.half() for name, tensor in self.state_dict().items()}
        return save_model(folder, asdict(self.config), tensors, KIND, _CARD, provenance)

    @classmethod
    def load(cls, name_or_dir: str | os.PathLike[str], device: str = "cpu") -> CharLm:
        """Read a model directory that `save` wrote.

        Raises:
            ModelNotFoundError: There is no such model.
            ModelFormatError: It is damaged or of another kind.
        """
        from audio_llm.hub import load_model
        from audio_llm.training.config import config_from_dict

        loaded = load_model(name_or_dir, KIND, device)
        model = cls(config_from_dict(CharLmConfig, loaded.config, loaded.path)).to(device)
        try:
            model.load_state_dict(loaded.tensors)
        except RuntimeError as error:
            raise ModelFormatError(f"weights do not fit: {error}", path=loaded.path, remedy="train it again") from None
        return model.eval()


def encode_texts(texts: Sequence[str]) -> torch.Tensor:
    """Return (B, T) int64: start token, characters, end token, padding on the right."""
    rows = [[BOS, *(_IDS.get(character, UNKNOWN) for character in text), EOS] for text in texts]
    tokens = torch.full((len(rows), max(map(len, rows), default=2)), PAD, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens


def train_char_lm(
    model: CharLm,
    texts: Sequence[str],
    validation_texts: Sequence[str],
    output: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    batch_characters: int = 8192,
    seed: int = 0,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Train a model in place; each text is one sentence. `best/` in the output folder becomes a model directory.

    Args:
        model: The network.
        texts: Normalized sentences, shuffled in every epoch.
        validation_texts: Sentences that select the best checkpoint, by bits per character.
        output: Folder to write.
        config: Steps, learning rate and so on.
        batch_characters: Maximum characters of a batch, padding included.
        seed: Seed of the order.
        max_minutes: Time limit in minutes.
        resume: Resume a training in the folder.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: There is no text.
    """
    if not texts or not validation_texts:
        raise DataError("a language model needs texts to train on and texts to validate on")

    def validate(network: nn.Module) -> dict[str, float]:
        assert isinstance(network, CharLm)
        characters = sum(len(text) + 1 for text in validation_texts)
        return {"bits_per_character": -sum(network.log_probs(validation_texts)) / characters / float(np.log(2))}

    def save(network: nn.Module, folder: Path) -> None:
        assert isinstance(network, CharLm)
        network.save(folder, {"seed": seed, "sentences": len(texts)})

    return train(
        model,
        _epochs(texts, batch_characters, seed),
        _mean_loss,
        validate,
        Path(output),
        config,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        monitor="bits_per_character",
        save=save,
        prepare=lambda batch: encode_texts([texts[number] for number in batch]),
        count_items=lambda tokens: float((tokens != PAD).sum()),
    )


def _mean_loss(network: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return -network(tokens).sum() / (tokens[:, 1:] != PAD).sum()


def _epochs(texts: Sequence[str], batch_characters: int, seed: int) -> Callable[[int], list[list[int]]]:
    """Return a function from epoch to batches of text indices: similar lengths together, batches in random order."""
    lengths = np.array([len(text) + 2 for text in texts])

    def batches(epoch: int) -> list[list[int]]:
        generator = np.random.default_rng((seed, epoch))
        # A little noise on the length, so that batches differ between epochs.
        order = np.argsort(lengths * generator.uniform(0.9, 1.1, len(lengths)))
        packed = list(_batches(lengths, batch_characters, order))
        return [packed[number] for number in generator.permutation(len(packed))]

    return batches


def _batches(lengths: np.ndarray, batch_characters: int, order: np.ndarray) -> Iterator[list[int]]:
    """Cut `order` into batches whose padded size stays within the limit (at least one text)."""
    batch: list[int] = []
    longest = 0
    for number in order.tolist():
        if batch and max(longest, int(lengths[number])) * (len(batch) + 1) > batch_characters:
            yield batch
            batch, longest = [], 0
        batch.append(number)
        longest = max(longest, int(lengths[number]))
    if batch:
        yield batch


_CARD = """# Character language model

A Transformer over a to z, apostrophe and space, trained on normalized English sentences. It scores texts:
`audio_llm.lm.char_lm.CharLm.load(folder).log_probs(texts)`.
"""
