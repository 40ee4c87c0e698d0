"""Every run of the tests draws the same examples; what tests of several packages learn from, and language models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # others use the other cores; before numpy and torch read it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

pytest_plugins = ("package_index", "real_models")  # fixtures for tests of several packages

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

MOST_WORKERS = 8  # each holds torch: about 1 GB


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run on all cores; single files, which are over before other processes have started, in this one."""
    if all(".py" in argument for argument in config.args):
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_WORKERS)


@pytest.fixture
def no_installed_models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on which models the user has installed."""
    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path_factory.mktemp("no-models")))


FORMANTS_HZ = {"a": (750, 1250), "e": (450, 1900), "i": (300, 2300), "o": (480, 850), "u": (320, 700)}


def say(words: str, pitch_hz: float) -> np.ndarray:
    """Return vowels of 0.2 s with pauses between them, as a voice of that pitch would say them: (T,) float32."""
    time_s = np.arange(3200) / 16_000
    ramp = np.minimum(1.0, np.minimum(time_s, time_s[::-1]) / 0.02)
    pieces = [np.zeros(1600)]
    for letter in words:
        if letter == " ":
            pieces.append(np.zeros(1600))
            continue
        hertz = pitch_hz * np.arange(1, int(7000 / pitch_hz))[:, None]
        peaks = sum(1.0 / (1.0 + ((hertz - formant) / 120.0) ** 2) for formant in FORMANTS_HZ[letter])
        buzz = ((peaks + 1e-3) * np.sin(2 * np.pi * hertz * time_s + hertz)).sum(0)
        pieces += [0.3 * ramp * buzz / np.abs(buzz).max(), np.zeros(640)]
    return np.concatenate([*pieces, np.zeros(1600)]).astype(np.float32)


@pytest.fixture(scope="session")
def speech_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pack of ten utterances with words, of two people, and one noise."""
    from audio_llm.simulation.speech_pack import Utterance, write_speech_pack

    folder = tmp_path_factory.mktemp("speech-pack")
    texts = ("a e i", "o u", "i a", "ae o", "u i e")
    utterances = [
        Utterance(f"{speaker}-{number}", speaker, "made", words, 8000, 40.0, say(words, pitch_hz))
        for speaker, pitch_hz in (("low", 110.0), ("high", 210.0))
        for number, words in enumerate(texts)
    ]
    hiss = 0.1 * np.random.default_rng(0).standard_normal(40_000)
    write_speech_pack(folder, utterances, [np.cumsum(hiss - hiss.mean()).astype(np.float32) * 0.05])
    return folder


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., Any]:
    """Kind, size, seed -> a random causal language model in eval mode."""
    import torch
    import transformers as hf

    def make(kind: str = "llama", vocabulary: int = 64, layers: int = 3, seed: int = 0, **changes: Any) -> Any:
        common = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
        llama = {**common, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 512}
        gpt2 = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 512}
        config, network, values = {
            "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, llama),
            "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, llama),
            "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {**llama, "head_dim": 8}),
            "mistral": (hf.MistralConfig, hf.MistralForCausalLM, llama),
            "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, gpt2),
            "falcon": (hf.FalconConfig, hf.FalconForCausalLM, common),
        }[kind]
        special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        torch.manual_seed(seed)
        return network(config(**{**values, **special, **changes})).eval()

    return make


@pytest.fixture(scope="session")
def make_llm_folder(
    make_llm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Any]]:
    """Kind and changes as of `make_llm` -> a transformers folder with a tokenizer and its network."""
    from transformers import AutoTokenizer

    from audio_llm.ger.small_lm import SmallLmSettings, create_small_lm

    texts = ["the cat sat on the mat", "a dog ran home", "we see the dog", "he is here now", "so it goes", "come back"]
    settings = SmallLmSettings(vocabulary=300, width=16, layers=1, heads=2, feed_forward=16)

    def make(kind: str = "llama", **changes: Any) -> tuple[Path, Any]:
        folder = create_small_lm(texts, tmp_path_factory.mktemp("llm") / kind, settings)
        network = make_llm(kind, vocabulary=len(AutoTokenizer.from_pretrained(folder)), **changes)
        network.save_pretrained(folder)
        return folder, network

    return make
