"""Texts -> vectors, for the noise embedding: hashed n-grams, a language model's embeddings, or sentence vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from audio_llm.errors import MissingDependencyError, ModelNotFoundError

HASH_WIDTH = 128
_SIZES = (3, 4, 5)  # characters of an n-gram


class TextEncoder(Protocol):
    """Turns texts into vectors.

    Attributes:
        width: Length d of a vector.
    """

    width: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (len(texts), d) float32; an empty text is the zero vector."""
        ...


class HashNgramEncoder:
    """Character n-grams and words hashed to fixed pseudo-random vectors; nothing is downloaded.

    A word is the sum of its n-grams' vectors, scaled to length 1; a text the mean of its words.

    Args:
        width: Length of a vector.
    """

    def __init__(self, width: int = HASH_WIDTH) -> None:
        self.width = width
        self._words: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (len(texts), width) float32."""
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = text.split()
            for word in words:
                row += self._word(word)
            row /= max(1, len(words))
        return rows

    def _word(self, word: str) -> np.ndarray:
        vector = self._words.get(word)
        if vector is None:
            vector = np.sum([_hashed(gram, self.width) for gram in _grams(word)], axis=0)
            vector = (vector / np.linalg.norm(vector)).astype(np.float32)
            if len(self._words) < 200_000:
                self._words[word] = vector
        return vector


class EmbeddingEncoder:
    """The mean of a language model's input embeddings (the LLaMA embedding row of RobustGER, table 14).

    Args:
        tokenizer: A transformers tokenizer.
        embeddings: (V, d) float32 input embeddings.
    """

    def __init__(self, tokenizer: Any, embeddings: np.ndarray) -> None:
        self.tokenizer, self._embeddings, self.width = tokenizer, embeddings, embeddings.shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (len(texts), d) float32."""
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            ids = self.tokenizer(f" {text}" if text else "", add_special_tokens=False)["input_ids"]
            if ids:
                row[:] = self._embeddings[ids].mean(axis=0)
        return rows


class SentenceEncoder:
    """A sentence-transformers model from a local folder, as in the paper (all-MiniLM-L6-v2 there).

    Args:
        folder: Its folder; nothing is downloaded.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        ModelNotFoundError: It is not such a model.
    """

    def __init__(self, folder: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingDependencyError(
                "sentence vectors need sentence-transformers", remedy="pip install sentence-transformers"
            ) from None
        try:
            self._model = SentenceTransformer(folder, device="cpu", local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"not a sentence-transformers model: {error}", path=folder) from None
        self.width = int(self._model.encode(["a"], show_progress_bar=False).shape[1])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (len(texts), d) float32."""
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        filled = [number for number, text in enumerate(texts) if text]
        if filled:
            rows[filled] = self._model.encode([texts[number] for number in filled], show_progress_bar=False)
        return rows


def _grams(word: str) -> Iterator[str]:
    framed = f"<{word}>"
    yield framed
    for size in _SIZES:
        for start in range(len(framed) - size + 1):
            yield framed[start : start + size]


def _hashed(gram: str, width: int) -> np.ndarray:
    """Return a vector of +1 and -1 that depends on the text alone, on every machine."""
    bits = hashlib.shake_128(gram.encode("utf-8", "surrogatepass")).digest((width + 7) // 8)
    return 2.0 * np.unpackbits(np.frombuffer(bits, np.uint8))[:width].astype(np.float32) - 1.0
