"""Tests of the character language model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from audio_llm.errors import DataError, ModelFormatError  # noqa: E402
from audio_llm.lm.char_lm import BOS, EOS, PAD, UNKNOWN, CharLm, CharLmConfig, encode_texts, train_char_lm  # noqa: E402
from audio_llm.training.loop import TrainingConfig  # noqa: E402

SMALL = CharLmConfig(width=32, layers=2, heads=2, feed_forward=64)
TEXTS = ["the cat sat on the mat", "a", "", "don't", "where did the old dog go then", "thé 4 caves"]


@pytest.fixture
def model() -> CharLm:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return CharLm(SMALL).eval()


def test_default_has_the_size_of_the_denoising_lm() -> None:
    parameters = sum(parameter.numel() for parameter in CharLm().parameters())
    assert 4_500_000 < parameters < 5_500_000


def test_encoding_marks_both_ends_and_pads_on_the_right() -> None:
    tokens = encode_texts(["ab", "é"])
    assert tokens.tolist() == [[BOS, 6, 7, EOS], [BOS, UNKNOWN, EOS, PAD]]


def test_batches_equal_one_by_one(model: CharLm) -> None:
    together = model.log_probs(TEXTS)
    assert together == pytest.approx([model.log_probs([text])[0] for text in TEXTS], abs=1e-3)
    assert together == pytest.approx(model.log_probs(TEXTS, batch_characters=1), abs=1e-3)
    assert model.log_probs([]) == []


def test_log_prob_is_the_sum_over_characters_and_the_end(model: CharLm) -> None:
    text = "don't"
    tokens = encode_texts([text])
    logits = model.network(input_ids=tokens).logits.double().detach()
    steps = torch.log_softmax(logits, dim=-1)[0]
    expected = sum(float(steps[i, tokens[0, i + 1]]) for i in range(len(text) + 1))
    assert model.log_probs([text])[0] == pytest.approx(expected, abs=1e-3)
    # All continuations of nothing by one character, by the end or by a mark share the whole probability.
    first = torch.softmax(logits[0, 0], dim=-1).sum()
    assert float(first) == pytest.approx(1.0, abs=1e-6)


def test_the_end_counts(model: CharLm) -> None:
    without_end = encode_texts(["cat"])[:, :-1]
    with torch.no_grad():
        assert float(model(without_end)) > model.log_probs(["cat"])[0]


def test_training_learns_saves_and_resumes(model: CharLm, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    texts = [f"the {animal} sees the {other}" for animal in ("cat", "dog", "cow") for other in ("hen", "owl", "pig")]
    config = TrainingConfig(max_steps=40, learning_rate=1e-2, warmup_steps=5, validate_every=20, log_every=20)
    before = model.log_probs(["the cow sees the owl"])[0]
    result = train_char_lm(model, texts, texts, tmp_path, config, batch_characters=100, device="cpu")
    assert result.steps == 40
    assert result.best_value < 1.2
    (after,) = model.log_probs(["the cow sees the owl"])
    assert after > before / 4
    assert after > model.log_probs(["owl the the cow sees"])[0] + 5
    log = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert any("bits_per_character" in row.get("validation", {}) for row in log)
    again = train_char_lm(model, texts, texts, tmp_path, config, batch_characters=100, device="cpu", resume=True)
    assert again.steps == 40

    loaded = CharLm.load(tmp_path / "best")
    assert loaded.config == SMALL
    validated = -sum(loaded.log_probs(texts)) / sum(len(text) + 1 for text in texts) / math.log(2)
    assert validated == pytest.approx(result.best_value, abs=0.02)


def test_saved_model_scores_alike_and_a_wrong_kind_is_refused(model: CharLm, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "lm", {"seed": 1})
    assert CharLm.load(folder).log_probs(TEXTS) == pytest.approx(model.log_probs(TEXTS), abs=0.05)
    document = json.loads((folder / "config.json").read_text())
    assert document["provenance"] == {"seed": 1}
    (folder / "config.json").write_text(json.dumps(document | {"kind": "dlm"}))
    with pytest.raises(ModelFormatError, match="dlm"):
        CharLm.load(folder)
    (folder / "config.json").write_text(json.dumps(document | {"config": document["config"] | {"width": 64}}))
    with pytest.raises(ModelFormatError, match="fit"):
        CharLm.load(folder)


def test_no_text_is_an_error(model: CharLm, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="texts"):
        train_char_lm(model, [], ["a"], tmp_path, TrainingConfig(max_steps=1))
