from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_llm.errors import MissingDependencyError, ModelNotFoundError
from audio_llm.ger.encoders import EmbeddingEncoder, HashNgramEncoder, SentenceEncoder


def cosine(encoder: HashNgramEncoder, one: str, other: str) -> float:
    a, b = encoder.encode([one, other])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_hashed_vectors_are_the_same_in_every_process_and_on_every_machine() -> None:
    rows = HashNgramEncoder(8).encode(["cat", "né à"])
    assert rows.dtype == np.float32
    small, large = 0.20412415, 0.61237246
    assert rows[0] == pytest.approx([-small, small, -small, -large, -small, -small, -small, large])
    expected = [-0.31040731, -0.31040731, -0.09048454, -0.44403791, -0.31040731, 0.31040731, -0.04314607, 0.04314607]
    assert rows[1] == pytest.approx(expected)
    start = HashNgramEncoder().encode(["recognise speech"])[0, :4]
    assert start == pytest.approx([-0.04055536, 0.00114627, -0.03359056, -0.09618659], abs=1e-7)


def test_what_was_encoded_before_does_not_matter() -> None:
    used, fresh = HashNgramEncoder(16), HashNgramEncoder(16)
    used.encode(["the dog", "cat cat cat", "a"])
    assert np.array_equal(used.encode(["the cat"]), fresh.encode(["the cat"]))


def test_a_word_has_length_one_and_a_text_is_the_mean_of_its_words() -> None:
    encoder = HashNgramEncoder()
    the, cat, text = encoder.encode(["the", "cat", " the   cat "])
    assert np.linalg.norm(the) == pytest.approx(1, abs=1e-6)
    assert text == pytest.approx((the + cat) / 2, abs=1e-7)


def test_an_empty_text_is_zero() -> None:
    rows = HashNgramEncoder().encode(["", "  ", "a"])
    assert not rows[:2].any()
    assert rows[2].any()
    assert HashNgramEncoder(24).encode([]).shape == (0, 24)


@pytest.mark.parametrize(
    ("word", "near", "far"),
    [("colour", "color", "table"), ("night", "knight", "river"), ("recognise", "recognize", "beach")],
)
def test_similarly_spelled_words_are_nearer_than_different_ones(word: str, near: str, far: str) -> None:
    encoder = HashNgramEncoder()
    assert cosine(encoder, word, near) > cosine(encoder, word, far) + 0.2


def test_half_a_character_is_no_obstacle() -> None:
    assert np.isfinite(HashNgramEncoder().encode(["a\udc80b"])).all()


def test_a_language_models_embeddings_are_averaged_over_the_tokens_of_a_text(tokenizer: Any) -> None:
    table = np.random.default_rng(0).standard_normal((len(tokenizer), 6)).astype(np.float32)
    encoder = EmbeddingEncoder(tokenizer, table)
    assert encoder.width == 6
    word, text, empty = encoder.encode(["cat", "the cat", ""])
    cat = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    the = tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert word == pytest.approx(table[cat].mean(axis=0))
    assert text == pytest.approx(table[[*the, *cat]].mean(axis=0))
    assert not empty.any()


def test_without_sentence_transformers_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install sentence-transformers"):
        SentenceEncoder("anywhere")


class _Sentences:
    """Stands for the package's class: letters of a text, or an error where the folder is missing."""

    def __init__(self, folder: str, device: str, local_files_only: bool) -> None:
        assert local_files_only
        if not Path(folder).is_dir():
            raise OSError(f"no file in {folder}")

    def encode(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        assert all(texts)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=_Sentences))


@pytest.mark.usefixtures("package")
def test_a_folder_without_sentence_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing-here"):
        SentenceEncoder(str(tmp_path / "nothing-here"))


@pytest.mark.usefixtures("package")
def test_sentence_vectors_leave_empty_texts_zero(tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(tmp_path))
    assert encoder.width == 2
    assert encoder.encode(["abc", "", "d"]).tolist() == [[3, 1], [0, 0], [1, 1]]
    assert encoder.encode(["", ""]).tolist() == [[0, 0], [0, 0]]
    assert encoder.encode([]).shape == (0, 2)
