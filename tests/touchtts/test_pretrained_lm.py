"""TouchTTS initialized from a pretrained LLM in a folder, with its word pieces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.cli import main
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.lm.grown_lm import GrownLm
from audio_llm.lm.token_lm import Sequence
from audio_llm.lm.vocabulary import EOS
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.models import TouchModel, load_speech_text_lm, load_touchtts, save_touchtts
from audio_llm.touchtts.recognizer import TouchRecognizer
from audio_llm.touchtts.sequence_layout import SPEECH
from audio_llm.touchtts.speech import TouchTTS
from audio_llm.touchtts.speech_text_lm import SpeechTextLm, continuous, speech_example, text_example
from audio_llm.touchtts.speech_text_lm_train import SpeechTextLmTrainingConfig, train_speech_text_lm
from audio_llm.touchtts.text import normalize_text
from audio_llm.touchtts.text_tokens import PIECE
from audio_llm.training.loop import TrainingConfig

torch.set_num_threads(1)
TOKENS = torch.tensor([5, 5, 60, 12, 33, 79, 0, 41])
SETTINGS = SpeechTextLmTrainingConfig(
    training=TrainingConfig(40, learning_rate=1e-2, warmup_steps=2, log_every=2, validate_every=5),
    batch_positions=300,
    validation=4,
    asr_prob=0.5,
)


def test_rows_hold_the_pieces_of_the_text(pretrained_lm: SpeechTextLm) -> None:
    text, vocabulary = normalize_text("The dog ran home."), pretrained_lm.lm.vocabulary
    row, targets = speech_example(pretrained_lm, text, "robot", TOKENS)
    numbers = pretrained_lm.text_tokens.encode_input(text).numbers
    assert vocabulary.decode(PIECE, row.ids[0, 3 : 3 + len(numbers)]).tolist() == numbers.tolist()
    assert pretrained_lm.text_tokens.decode(numbers.tolist()) == "The dog ran home."
    assert targets[0, -9:].tolist() == [*(TOKENS + 1).tolist(), 0]
    positions = row.positions[0, 3 : 3 + len(numbers)]
    assert (positions.diff() > 0).all()
    assert float(positions[-1]) < pretrained_lm.length(text)
    assert float(row.positions[0, -1]) == pytest.approx(pretrained_lm.length(text) * 7.5 / 8)
    with torch.no_grad():
        entropies = pretrained_lm(row, targets, SPEECH)
    assert -pretrained_lm.score_speech(text, "robot", TOKENS) == pytest.approx(float(entropies.sum()), abs=1e-3)
    other = pretrained_lm.score_speech(normalize_text("We see the dog."), "robot", TOKENS)
    assert other != pytest.approx(-float(entropies.sum()), abs=1e-3)


def test_it_speaks_within_bounds(pretrained_lm: SpeechTextLm) -> None:
    texts = [normalize_text("The dog ran home."), normalize_text("So it goes, and goes, and goes.")]
    steps = list(pretrained_lm.generate(texts, "reader", generator=torch.Generator().manual_seed(0)))
    for row, text in enumerate(texts):
        row_tokens = [step[row] for step in steps if step[row] >= 0]
        assert all(0 <= token < 80 for token in row_tokens)
        assert (
            0.5 * pretrained_lm.expected_tokens(text, "reader")
            < len(row_tokens)
            <= pretrained_lm.most_tokens(text, "reader")
        )


@pytest.mark.parametrize("lm_input", ["tokens", "continuous"])
def test_the_score_of_a_transcript_is_that_of_the_whole_row(pretrained_lm: SpeechTextLm, lm_input: str) -> None:
    states = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)) if lm_input == "continuous" else None

    def whole(numbers: list[int]) -> tuple[Sequence, Tensor, Tensor | None]:
        row, targets = text_example(pretrained_lm, TOKENS, torch.tensor(numbers, dtype=torch.int64))
        row, features = (row, None) if states is None else continuous(row, states)
        return row, targets, features

    with torch.no_grad():  # random weights write the end now and then
        row, _, features = whole(list(range(8)))
        usual = pretrained_lm.lm(row, None if features is None else pretrained_lm._projected(features))[0, -8:].mean(0)
        pretrained_lm.lm.own.weight[EOS] = 9.0 * usual / usual.square().sum()
    texts = pretrained_lm.transcribe(TOKENS, states, beam=3)
    assert texts
    for numbers, score in texts[:4]:
        row, targets, features = whole(numbers)
        with torch.no_grad():
            assert score == pytest.approx(-float(pretrained_lm(row, targets, PIECE, features).sum()), abs=1e-3)


@pytest.fixture
def pretrained_model(model: TouchModel, pretrained_lm: SpeechTextLm) -> TouchModel:
    with torch.no_grad():
        for tensor in pretrained_lm.state_dict().values():
            tensor.copy_(tensor.half().float())
    return replace(model, lm=pretrained_lm)


def test_a_model_directory_holds_all_of_it(pretrained_model: TouchModel, home: Path, sounds: list[np.ndarray]) -> None:
    folder = home / "pretrained"
    save_touchtts(folder, pretrained_model, "s3-tiny", "Tiny.\n")
    again = load_touchtts(folder)
    assert isinstance(again.lm.lm, GrownLm)
    for text in (
        "The dog ran home.",
        "Isn't 2nd  \u00c9 x\ny",
        "<s> a",
        "e\u0301",
    ):  # whatever class reads the tokenizer's files
        encoded = [m.lm.text_tokens.encode_output(text).tolist() for m in (pretrained_model, again)]
        assert encoded[0] == encoded[1]
    one, other = (TouchTTS(m).synthesize("The dog ran home. So it goes.", seed=3) for m in (pretrained_model, again))
    np.testing.assert_allclose(one.waveform, other.waveform, atol=1e-6)
    scores = [TouchRecognizer(m, "tiny").score(sounds[0], ["a cat"]) for m in (pretrained_model, again)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert scores[0][0] < 0.0
    assert hub.load_model(folder).config["lm"]["lm"]["width"] == again.lm.base.network.config.hidden_size
    assert "_name_or_path" not in json.loads((folder / "llm.json").read_text())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match="tokenizer"):
        load_touchtts(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["qwen2", "untied"])
def test_training_starts_from_the_pretrained_weights(
    make_llm_folder: Callable[..., tuple[Path, Any]],
    utterances: Path,
    tokenizer: S3Tokenizer,
    tmp_path: Path,
    kind: str,
) -> None:
    llm, network = make_llm_folder("llama" if kind == "untied" else kind, tie_word_embeddings=kind != "untied")
    out = tmp_path / "out"
    train_speech_text_lm([utterances], [utterances], tokenizer, "s3-tiny", out, SETTINGS, device="cpu", llm=llm)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    losses = [row["validation"] for row in rows if "validation" in row]
    for task in ("say", "write", "listen"):
        assert losses[-1][task] < 0.9 * losses[0][task], task
    lm = load_speech_text_lm(out / "best", tokenizer)
    assert lm.config.pieces == network.config.vocab_size
    assert lm.lm.config.layers == network.config.num_hidden_layers
    assert {"llm.json", "tokenizer.json"} <= {path.name for path in (out / "best").iterdir()}
    assert hub.load_model(out / "best").provenance["llm"] == llm.name
    with pytest.raises(UsageError, match="two models to initialize from"):
        train_speech_text_lm(
            [utterances], [utterances], tokenizer, "s3-tiny", out, SETTINGS, llm=llm, start_from=out / "best"
        )
    more = replace(SETTINGS, training=replace(SETTINGS.training, max_steps=2))
    train_speech_text_lm(
        [utterances], [utterances], tokenizer, "s3-tiny", tmp_path / "more", more, device="cpu", start_from=out / "best"
    )
    again = load_speech_text_lm(tmp_path / "more/best", tokenizer)
    assert again.config == lm.config


def test_the_first_weights_are_those_of_the_pretrained_model(
    make_llm_folder: Callable[..., tuple[Path, Any]], utterances: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    llm, network = make_llm_folder("llama")
    still = replace(SETTINGS, training=replace(SETTINGS.training, max_steps=1, learning_rate=0.0))
    train_speech_text_lm(
        [utterances], [utterances], tokenizer, "s3-tiny", tmp_path / "out", still, device="cpu", llm=llm
    )
    losses = hub.load_model(tmp_path / "out/best").tensors
    for name, tensor in network.model.state_dict().items():
        torch.testing.assert_close(torch.as_tensor(losses[f"lm.network.{name}"]), tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("part", "more", "message"),
    [
        ("flow", ["--llm", "LLM"], "--llm is for --part lm"),
        ("lm", ["--llm", "no/where"], "no/where"),
    ],
)
def test_an_unsupported_llm_is_an_error_of_the_command_line(
    llm_folder: Path,
    utterances: Path,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_network: None,
    part: str,
    more: list[str],
    message: str,
) -> None:
    words = [str(llm_folder) if word == "LLM" else word for word in more]
    fixed = ["--tuning", str(utterances), "--tokenizer", str(home / "s3-tiny"), "-o", str(tmp_path / "out")]
    assert main(["train", "touchtts", str(utterances), "--part", part, *fixed, *words]) in (2, 3)
    assert message in capsys.readouterr().err


def test_a_folder_of_an_unsupported_llm_is_refused(
    make_llm_folder: Callable[..., tuple[Path, Any]], utterances: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    folder, _ = make_llm_folder("gpt2")
    with pytest.raises(ModelFormatError, match="'gpt2' cannot be extended"):
        train_speech_text_lm([utterances], [utterances], tokenizer, "s3-tiny", tmp_path / "out", SETTINGS, llm=folder)
    with pytest.raises(ModelNotFoundError, match="no causal language model"):
        train_speech_text_lm([utterances], [utterances], tokenizer, "s3-tiny", tmp_path / "out", SETTINGS, llm=tmp_path)
    folder, _ = make_llm_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=r"quantized.*not quantized"):
        train_speech_text_lm([utterances], [utterances], tokenizer, "s3-tiny", tmp_path / "out", SETTINGS, llm=folder)
    assert not (tmp_path / "out").exists()
