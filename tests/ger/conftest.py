"""Tiny language models, a tokenizer trained on the fly, and a corrector that knows a few lists by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SENTENCES = (
    "the cat sat on the mat",
    "a big dog ran home",
    "we went to the sea",
    "it rains in the night",
    "i see you there",
    "write two letters to the mayor",
    "don't wake the baby",
    "she sells shells",
)
HYPOTHESES = (
    ("the hat sat on the mat", "the cat sad on the mat", "the hat sat on the mat"),
    ("a big dock ran home", "a pig dog ran home", "a big dog ran home"),
    ("we when to the sea", "we went to the see"),
    ("it reigns in the knight", "it rains in the knight", "it reigns in the night"),
    ("i sea you there",),
    ("right two letters to the mayor", "write to letters to the mare", "right to letters"),
    ("don't wake the babe", "dont wake the baby"),
    ("she sells shells", "she sells shells", "she sells shells"),
)


@pytest.fixture(scope="session")
def memorized() -> list[tuple[tuple[str, ...], str]]:
    """(hypotheses, true text) of the lists that `trained` knows."""
    return list(zip(HYPOTHESES, SENTENCES, strict=True))


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: byte-level BPE tokenizer with the compact prompt's tokens, Llama of random weights."""
    from audio_llm.ger.small_lm import SmallLmSettings, create_small_lm

    settings = SmallLmSettings(vocabulary=340, width=48, layers=2, heads=4, feed_forward=64, max_positions=512)
    texts = [*SENTENCES, *(text for hypotheses in HYPOTHESES for text in hypotheses)]
    return create_small_lm(texts, tmp_path_factory.mktemp("llm") / "small", settings)


@pytest.fixture(scope="session")
def tokenizer(small_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(small_folder)


@pytest.fixture(scope="session")
def trained(small_folder: Path, memorized: list[tuple[tuple[str, ...], str]]) -> Any:
    """A corrector, a `GerCheckpoint`, that knows the memorized lists; leave it as it is."""
    import torch

    from audio_llm.ger.checkpoint import build
    from audio_llm.ger.model import GerSettings
    from audio_llm.ger.noise import NoiseSettings
    from audio_llm.ger.prompt import PromptSettings

    torch.set_num_threads(1)
    torch.manual_seed(0)
    prompt = PromptSettings("compact", hypotheses=3, restart_positions=True)
    noise = NoiseSettings(hypotheses=3, width=16)
    checkpoint = build(small_folder, GerSettings(prompt, noise, number_hypotheses=True, tune="all"))
    batch = checkpoint.collator.batch([hypotheses for hypotheses, _ in memorized], [true for _, true in memorized])
    optimizer = torch.optim.AdamW(checkpoint.model.parameters(), lr=1e-2, weight_decay=0.0)
    checkpoint.model.train()
    for _ in range(200):
        loss = checkpoint.model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(checkpoint.model.parameters(), 1.0)
        optimizer.step()
        if float(loss.detach()) < 0.01:
            break
    checkpoint.model.eval().requires_grad_(False)
    return checkpoint
