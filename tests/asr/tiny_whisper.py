"""Tiny random Whisper models with Whisper's own vocabulary layout, in the transformers and the CTranslate2 form."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SPACE = "Ġ"
WORDS = [consonant + vowel for consonant in "bdfg" for vowel in "aeiou"]  # all that these models write
LETTERS = [SPACE, *"abdefgiou"]
MARKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
TEXT_TOKENS = 50256  # of GPT-2; multilingual models have an empty token after them, by which ctranslate2 knows them
LANGUAGE_CODES = list(LANGUAGES)[:99]
TIMESTAMPS = 1501
_UNUSED = -30.0  # added to the logit of every token that is neither a word nor the end mark
_END = 3.0  # added to the logit of the end mark, so that texts end


@functools.cache
def make_tokenizer(multilingual: bool) -> WhisperTokenizer:
    """Return a byte-level BPE with one token for each of `WORDS`, unused tokens, and Whisper's marks at its numbers."""
    starts = [SPACE + consonant for consonant in "bdfg"]
    used = [*LETTERS, *starts, *(SPACE + word for word in WORDS)]
    unused = [f"{SPACE}unused{number}" for number in range(TEXT_TOKENS - len(used))]
    unused += [""] if multilingual else []
    merges = [(SPACE, consonant) for consonant in "bdfg"] + [(SPACE + word[0], word[1]) for word in WORDS]
    vocabulary = {token: number for number, token in enumerate([*used, *unused, "<|endoftext|>"])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    marks = [f"<|{mark}|>" for mark in ("startoftranscript", *LANGUAGE_CODES, *MARKS)]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    tokenizer.add_tokens([f"<|{number * 0.02:.2f}|>" for number in range(TIMESTAMPS)])
    return tokenizer


def make_transformers_whisper(
    folder: Path, multilingual: bool = True, seed: int = 0, bands: int = 80, width: int = 32
) -> Path:
    """Save a random Whisper of 2 + 2 layers that writes `WORDS` and nothing else; return its folder."""
    tokenizer = make_tokenizer(multilingual)
    ids = tokenizer.get_vocab()
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    marks = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    sizes = {"d_model": width, "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width, "num_mel_bins": bands}
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    torch.manual_seed(seed)
    config = WhisperConfig(vocab_size=len(tokenizer), init_std=0.4, **sizes, **layers, **heads, **marks)
    model = WhisperForConditionalGeneration(config).eval()
    _randomize_biases(model)
    _limit_to_words(model, [ids[SPACE + word] for word in WORDS], end)
    tasks = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    languages = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGE_CODES}
    multilingual_settings = {"lang_to_id": languages, "task_to_id": tasks} if multilingual else {}
    model.generation_config = GenerationConfig(
        **marks,
        **multilingual_settings,
        max_length=448,
        suppress_tokens=[*range(1, len(LETTERS)), *(ids[f"<|{mark}|>"] for mark in MARKS[:-1])],
        begin_suppress_tokens=[ids[SPACE], end],
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        alignment_heads=[[0, 1], [1, 0]],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=bands).save_pretrained(folder)
    return folder


def convert_to_ctranslate2(source: Path, folder: Path, quantization: str | None = None) -> Path:
    """Convert a transformers Whisper with the ctranslate2 package, with the files that published folders have."""
    from ctranslate2.converters import TransformersConverter

    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(source), copy_files=files).convert(str(folder), quantization=quantization)
    return folder


def make_ctranslate2_whisper(
    folder: Path, multilingual: bool = True, seed: int = 0, quantization: str | None = None, bands: int = 80
) -> Path:
    """Save a random Whisper as CTranslate2 reads it; quantization as `int8`, `float16`, None for float32."""
    with tempfile.TemporaryDirectory() as temporary:
        source = make_transformers_whisper(Path(temporary), multilingual, seed, bands)
        return convert_to_ctranslate2(source, folder, quantization)


@torch.no_grad()
def _randomize_biases(model: WhisperForConditionalGeneration) -> None:
    """Give biases and norms values, which a new model has at 0 and 1, so that none is equal to another."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.1 * torch.randn_like(parameter))


@torch.no_grad()
def _limit_to_words(model: WhisperForConditionalGeneration, words: list[int], end: int) -> None:
    """Keep the first feature before the output at 1 and make its weight the offset of each logit."""
    decoder = model.model.decoder
    decoder.layer_norm.weight[0], decoder.layer_norm.bias[0] = 0.0, 1.0
    decoder.embed_tokens.weight[:, 0] = _UNUSED
    decoder.embed_tokens.weight[words, 0] = 0.0
    decoder.embed_tokens.weight[end, 0] = _END
