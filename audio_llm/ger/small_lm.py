"""A small decoder-only language model from scratch, as a transformers folder: tokenizer and Llama from a config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from audio_llm.ger.prompt import COMPACT_TOKENS, END, PAD


@dataclass(frozen=True)
class SmallLmSettings:
    """Size of the model.

    Attributes:
        vocabulary: Number of tokens, including the special ones and the 256 bytes.
        width: Width of the hidden states.
        layers: Decoder layers.
        heads: Attention heads.
        feed_forward: Inner width of the feed-forward part.
        max_positions: Maximum length in tokens.
    """

    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 704
    max_positions: int = 2048


def create_small_lm(texts: Iterable[str], folder: Path, settings: SmallLmSettings, seed: int = 0) -> Path:
    """Train a byte-level BPE tokenizer and write it with a Llama of random weights; return the folder.

    Args:
        texts: Normalized sentences for the tokenizer.
        folder: The transformers folder to write.
        settings: Size of the model.
        seed: Seed of the weights.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(COMPACT_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f" {text}" for text in texts), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        pad_token_id=wrapped.pad_token_id,
        eos_token_id=wrapped.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
