"""A tiny speaking model with random weights, its model directory, and packed utterances of synthetic voices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audio_llm import hub
from audio_llm.codec.vocoder import Vocoder, VocoderConfig
from audio_llm.lm.causal import CausalLm, load_causal_lm
from audio_llm.lm.token_lm import TokenLmConfig
from audio_llm.quantizers import fsq
from audio_llm.simulation.speech_pack import SpeechPack
from audio_llm.tokenizer.s3 import KIND, S3Tokenizer
from audio_llm.tokenizer.s3_model import S3Config, S3Network, log_mel
from audio_llm.touchtts.data import TtsUtterance, pack_utterances
from audio_llm.touchtts.flow import FlowConfig, FlowNetwork
from audio_llm.touchtts.models import TouchModel, save_touchtts, speech_vectors
from audio_llm.touchtts.speech_text_lm import SpeechTextLm, SpeechTextLmConfig, text_tokens_of
from audio_llm.touchtts.text import SYMBOLS
from audio_llm.touchtts.text_tokens import PIECE

torch.set_num_threads(1)
S3 = S3Config(channels=4, width=16, before=1, after=1, heads=2, feedforward=32, kernel=5, levels=(5, 4, 4), dropout=0.0)
LM = TokenLmConfig(width=16, layers=2, heads=2, feed_forward=32, dropout=0.0)
FLOW = FlowConfig(80, width=16, layers=2, heads=2, feed_forward=32, lookahead=3, left_frames=30, steps=3, guidance=0.7)
VOCODER = VocoderConfig(width=16, blocks=1, fine_blocks=2, expansion=2)
TEXTS = ("a cat", "the dog ran", "we see it", "go home now", "he is here")
OTHER_TEXTS = ("so it goes", "come back", "all is well", "look at me", "not yet")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models with the tokenizer in `s3-tiny`, which distinguishes many sounds."""
    folder = tmp_path_factory.mktemp("touchtts")
    torch.manual_seed(0)
    network = S3Network(S3).train()
    noise = 0.1 * torch.randn(4, 16_000, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(fsq, "_MOMENTUM", 1.0)
        network.quantize(*log_mel(noise, torch.full((4,), 16_000)))
    hub.save_model(folder / "s3-tiny", asdict(S3), network.state_dict(), KIND, "Tiny.\n")
    return folder


@pytest.fixture(scope="session")
def tokenizer(home: Path) -> S3Tokenizer:
    """Return a tokenizer of 80 tokens."""
    return S3Tokenizer.load(home / "s3-tiny")


@pytest.fixture(scope="session")
def llm_folder(make_llm_folder: Callable[..., tuple[Path, Any]]) -> Path:
    """Return a transformers folder of a language model of text with random weights."""
    return make_llm_folder("qwen2")[0]


@pytest.fixture
def base(llm_folder: Path) -> CausalLm:
    """Return that language model."""
    return load_causal_lm(llm_folder)


@pytest.fixture
def speech_text_lm(tokenizer: S3Tokenizer) -> SpeechTextLm:
    """Return a language model with random weights that all matter."""
    torch.manual_seed(1)
    durations = tuple(1.0 + 0.1 * (number % 7) for number in range(len(SYMBOLS)))
    config = SpeechTextLmConfig(("reader", "robot"), durations, (1.0, 1.3), tokenizer.size, S3.width, lm=LM)
    return _loud(SpeechTextLm(config, speech_vectors(tokenizer)), 0.3)


@pytest.fixture
def pretrained_lm(tokenizer: S3Tokenizer, base: CausalLm) -> SpeechTextLm:
    """Return a language model on a pretrained LLM, with random weights that all matter."""
    torch.manual_seed(4)
    text_tokens = text_tokens_of(base)
    durations = tuple(1.0 + 0.1 * (number % 7) for number in range(text_tokens.units))
    pieces = text_tokens.ranges[PIECE]
    config = SpeechTextLmConfig(("reader", "robot"), durations, (1.0, 1.3), tokenizer.size, S3.width, pieces, LM)
    return _loud(SpeechTextLm(config, speech_vectors(tokenizer), base), 0.3)


@pytest.fixture
def flow(tokenizer: S3Tokenizer) -> FlowNetwork:
    """Return a flow with random weights that all matter."""
    return make_flow(tokenizer)


def make_flow(tokenizer: S3Tokenizer) -> FlowNetwork:
    torch.manual_seed(2)
    flow = _loud(FlowNetwork(FLOW, speech_vectors(tokenizer)), 0.25)
    flow.mean.fill_(-5.0)
    flow.spread.fill_(1.5)
    return flow


@pytest.fixture
def model(speech_text_lm: SpeechTextLm, flow: FlowNetwork, tokenizer: S3Tokenizer) -> TouchModel:
    """Return a speaking model of two voices; its weights are half-precision numbers, as a saved model's are."""
    torch.manual_seed(3)
    vocoder = _loud(Vocoder(VOCODER), 0.1)
    with torch.no_grad():
        vocoder.leave.bias[:321] -= 3.0  # quiet enough not to be clipped
    voices = {name: torch.randn(1, 16) for name in ("reader", "robot")}
    for tensor in (
        *voices.values(),
        *(t for part in (speech_text_lm, flow, vocoder) for t in part.state_dict().values()),
    ):
        tensor.copy_(tensor.half().float())
    return TouchModel(speech_text_lm, flow, vocoder, tokenizer, voices)


@pytest.fixture
def model_folder(model: TouchModel, home: Path) -> Path:
    """Return the model's directory, its tokenizer next to it."""
    folder = home / "touch-tiny"
    save_touchtts(folder, model, "s3-tiny", "Tiny.\n", {"made": "here"})
    return folder


@pytest.fixture(scope="session")
def sounds(speech_pack: Path) -> list[np.ndarray]:
    """Return ten synthetic utterances (T,) float32, five of a low voice, then five of a high one."""
    pack = SpeechPack(speech_pack)
    return [pack.pcm(number).astype(np.float32) / 32768.0 for number in range(10)]


@pytest.fixture(scope="session")
def utterances(sounds: list[np.ndarray], tokenizer: S3Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return packed utterances of two readers, and two of a robot that are synthetic."""

    def generate() -> Iterator[TtsUtterance]:
        for number, sound in enumerate(sounds):
            yield TtsUtterance(f"u{number}", "reader", "low" if number < 5 else "high", TEXTS[number % 5], sound)
        for number in (0, 6):
            yield TtsUtterance(f"r{number}", "robot", "robot", f"{TEXTS[number % 5]} again", sounds[number], True)

    folder = tmp_path_factory.mktemp("talks") / "talks"
    assert pack_utterances(generate(), tokenizer, folder) == 12
    return folder


@pytest.fixture(scope="session")
def tuning(sounds: list[np.ndarray], tokenizer: S3Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return packed utterances of other texts."""
    folder = tmp_path_factory.mktemp("tuning") / "talks"
    rows = [TtsUtterance(f"t{n}", "reader", "low", OTHER_TEXTS[n % 5], sounds[n]) for n in range(0, 10, 2)]
    assert pack_utterances(rows, tokenizer, folder) == 5
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection fail."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("an attempt to use the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(f"socket.socket.{name}", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def _loud(network: nn.Module, std: float) -> nn.Module:
    """Make weights large enough for everything to have an influence."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=std)
    return network.eval()
