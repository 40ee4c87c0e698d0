"""Reads books as normalized sentences, and removes training sentences that occur in held-out texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audio_llm.errors import DataError
from audio_llm.text import DEFAULT_NORMALIZER, Normalizer, split_sentences

SHARED_NGRAM = 8  # consecutive words; a sentence that shares them with a held-out text is dropped


@dataclass(frozen=True)
class Sentence:
    """One sentence of a book.

    Attributes:
        id: `book:number`, numbered from 0 in reading order.
        text: Printed text without markup, to be synthesized.
        words: Normalized text, the reference.
    """

    id: str
    text: str
    words: str


def read_book(
    path: str | Path,
    normalizer: Normalizer = DEFAULT_NORMALIZER,
    min_words: int = 4,
    max_words: int = 25,
) -> list[Sentence]:
    """Return the sentences of a plain-text book.

    Args:
        path: UTF-8 text, paragraphs separated by empty lines.
        normalizer: Normalizer for `Sentence.words`.
        min_words: Shorter sentences are skipped.
        max_words: Longer sentences are skipped.

    Raises:
        DataError: The file is missing or not UTF-8 text.
    """
    path = Path(path)
    try:
        book = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as UTF-8 text: {error}", path=path, remedy="give a plain-text book") from None
    sentences = []
    for number, text in enumerate(split_sentences(book)):
        words = normalizer(text)
        if min_words <= len(words.split()) <= max_words and words.isascii() and any(c.islower() for c in text):
            sentences.append(Sentence(f"{path.stem}:{number:05d}", text, words))
    return sentences


def drop_shared(sentences: Iterable[Sentence], held_out: Iterable[str], ngram: int = SHARED_NGRAM) -> list[Sentence]:
    """Drop sentences that share `ngram` consecutive words, or all words, with a held-out text.

    Args:
        sentences: Training sentences.
        held_out: Normalized texts that will be scored.
        ngram: Number of consecutive words that count as a shared passage.
    """
    forbidden: set[bytes] = set()
    whole: set[str] = set()
    for text in held_out:
        whole.add(text)
        forbidden.update(_ngrams(text.split(), ngram))
    return [
        sentence
        for sentence in sentences
        if sentence.words not in whole and not any(h in forbidden for h in _ngrams(sentence.words.split(), ngram))
    ]


def _ngrams(words: Sequence[str], n: int) -> Iterator[bytes]:
    for start in range(len(words) - n + 1):
        yield hashlib.blake2b(" ".join(words[start : start + n]).encode(), digest_size=8).digest()
