"""Word n-gram language model: lookup, save and load (for training see `kneser_ney`)."""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_llm.atomic import replacing
from audio_llm.errors import ModelFormatError, ModelNotFoundError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
START_ID, END_ID, UNKNOWN_ID = 0, 1, 2
SPECIAL_WORDS = (START, END, UNKNOWN)
KIND = "ngram"  # kind of the model directory
_FORMAT = "audio-llm n-gram 1"
MEMO_SIZE = 2_000_000  # cached queries; a beam asks for the same few again and again


@dataclass(frozen=True)
class Level:
    """All n-grams of one order, sorted by `keys`.

    Attributes:
        keys: (N,) int64, index of the first n - 1 words in the level below times the vocabulary size, plus the
            last word. For order 1 simply 0..V-1.
        log_probs: (N,) float32, natural log p(last word | words before).
        backoffs: (N,) float32, natural log of the back-off weight of the next shorter history if this n-gram is
            the history and the next word was not seen after it; 0 if it never is a history.
    """

    keys: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray


class NgramLm:
    """An n-gram model in back-off form over a fixed vocabulary.

    The probability of `<unk>` is divided evenly among `unknown_types` words, so that unknown words are
    not favored. All logs are natural.

    Args:
        vocabulary: Words by number; the first three are `<s>`, `</s>`, `<unk>`.
        levels: Orders 1, 2, ... in turn.
        unknown_types: Number of words that share the mass of `<unk>`.
    """

    def __init__(self, vocabulary: Sequence[str], levels: Sequence[Level], unknown_types: int = 1) -> None:
        self.vocabulary = tuple(vocabulary)
        self.levels = tuple(levels)
        self.order = len(self.levels)
        self.unknown_types = unknown_types
        self._log_unknown_fraction = -math.log(unknown_types)
        self._ids = {word: number for number, word in enumerate(self.vocabulary) if number > UNKNOWN_ID}
        self._memo: dict[tuple[str, ...], float] = {}

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def log_prob(self, words: Sequence[str]) -> float:
        """Return log p(words and then the end of the sentence)."""
        return self.log_probs([words])[0]

    def log_probs(self, sentences: Iterable[Sequence[str]]) -> list[float]:
        """Return log p of each sentence, end included; vectorized over all words."""
        sentences = list(sentences)
        if not sentences:
            return []
        lengths = np.array([len(sentence) + 2 for sentence in sentences])
        ids = np.fromiter(
            (number for sentence in sentences for number in self._numbers(sentence)), np.int64, int(lengths.sum())
        )
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        logs = self._log_probs_of_ids(ids, positions)
        logs[positions == 0] = 0.0
        return [float(total) for total in np.add.reduceat(logs.astype(np.float64), starts)]

    def score(self, history: Sequence[str], word: str) -> float:
        """Return log p(word | history), for beams.

        Args:
            history: All words of the sentence so far (the last order - 1 are used; a shorter history starts the
                sentence).
            word: The next word, or `END`.
        """
        needed = self.order - 1
        key = (*history[len(history) - needed :], word) if len(history) >= needed else (START, *history, word)
        value = self._memo.get(key)
        if value is None:
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            value = self._memo[key] = self._score_key(key)
        return value

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Return the perplexity per word, sentence ends counted as words."""
        sentences = list(sentences)
        count = sum(len(sentence) + 1 for sentence in sentences)
        return math.exp(-sum(self.log_probs(sentences)) / max(1, count))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model as one `.npz` file without pickles; return its path."""
        path = Path(path)
        header = {"format": _FORMAT, "unknown_types": self.unknown_types}
        arrays = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **self.to_arrays()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NgramLm:
        """Read a model that `save` wrote.

        Raises:
            ModelNotFoundError: No such file.
            ModelFormatError: Not such a file, or damaged.
        """
        remedy = "create it again with train_ngram"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                if header["format"] != _FORMAT:
                    raise ValueError(f"format {header['format']!r}, expected {_FORMAT!r}")
                return cls.from_arrays(arrays, int(header["unknown_types"]))
        except FileNotFoundError:
            raise ModelNotFoundError("no such n-gram model", path=path, remedy=remedy) from None
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ModelFormatError(f"not an n-gram model: {error}", path=path, remedy=remedy) from None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything but `unknown_types` as arrays by name; see `from_arrays`."""
        arrays = {"vocabulary": np.frombuffer("\n".join(self.vocabulary).encode(), dtype=np.uint8)}
        for n, level in enumerate(self.levels, 1):
            arrays[f"steps{n}"] = _smallest(np.diff(level.keys, prepend=0))
            arrays[f"log_probs{n}"] = level.log_probs
            arrays[f"backoffs{n}"] = level.backoffs
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], unknown_types: int) -> NgramLm:
        """Build a model from the arrays of `to_arrays`; other names are ignored.

        Raises:
            KeyError: An array is missing.
            ValueError: The arrays do not belong together.
        """
        vocabulary = arrays["vocabulary"].tobytes().decode().split("\n")
        levels: list[Level] = []
        while f"steps{len(levels) + 1}" in arrays:
            levels.append(_read_level(arrays, len(levels) + 1))
        if not levels or len(vocabulary) != len(levels[0].keys) or tuple(vocabulary[:3]) != SPECIAL_WORDS:
            raise ValueError("vocabulary and unigrams disagree")
        return cls(vocabulary, levels, unknown_types)

    def _numbers(self, sentence: Sequence[str]) -> list[int]:
        return [START_ID, *(self._ids.get(word, UNKNOWN_ID) for word in sentence), END_ID]

    def _log_probs_of_ids(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return (T,) float32 log p of each word given those before it in its sentence.

        Args:
            ids: (T,) int64, words of all sentences concatenated, each with start and end.
            positions: (T,) position in the sentence, the start at 0.
        """
        size = len(self.vocabulary)
        logs = self.levels[0].log_probs[ids].copy()
        indices = ids
        for n, level in enumerate(self.levels[1:], 2):
            history = np.concatenate([[-1], indices[:-1]])
            history[positions < n - 1] = -1
            matches = _find(level.keys, np.where(history >= 0, history * size + ids, -1))
            weights = np.where(history >= 0, self.levels[n - 2].backoffs[np.maximum(history, 0)], np.float32(0))
            logs = np.where(matches >= 0, level.log_probs[np.maximum(matches, 0)], logs + weights)
            indices = matches
        return np.where(ids == UNKNOWN_ID, logs + np.float32(self._log_unknown_fraction), logs)

    def _score_key(self, key: tuple[str, ...]) -> float:
        """Return log p of the last word as `_log_probs_of_ids` does; faster for a single query."""
        ids = [self._ids.get(word, UNKNOWN_ID) for word in key]
        if key[0] == START:
            ids[0] = START_ID
        if key[-1] == END:
            ids[-1] = END_ID
        size = len(self.vocabulary)
        value = float(self.levels[0].log_probs[ids[-1]])
        indices = ids
        for n, level in enumerate(self.levels[1 : len(ids)], 2):
            matches = [-1] * (n - 1) + [
                _find_one(level.keys, history * size + word) if history >= 0 else -1
                for history, word in zip(indices[n - 2 : -1], ids[n - 1 :], strict=True)
            ]
            if matches[-1] >= 0:
                value = float(level.log_probs[matches[-1]])
            elif indices[-2] >= 0:
                value += float(self.levels[n - 2].backoffs[indices[-2]])
            indices = matches
        return value + self._log_unknown_fraction if ids[-1] == UNKNOWN_ID else value


def save_ngram(
    model: NgramLm, folder: str | os.PathLike[str], card: str, provenance: Mapping[str, object] | None = None
) -> None:
    """Write a model directory, log-probabilities in half precision (they change by less than 0.01 nats)."""
    import torch

    from audio_llm import hub

    arrays = model.to_arrays()
    small = {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in arrays.items()}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in small.items()}
    hub.save_model(folder, {"unknown_types": model.unknown_types}, tensors, KIND, card, provenance)


def load_ngram(name_or_dir: str | os.PathLike[str]) -> NgramLm:
    """Load a model directory that `save_ngram` wrote, without torch.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_arrays`.
    """
    from audio_llm import hub

    loaded = hub.load_arrays(name_or_dir, KIND)
    try:
        return NgramLm.from_arrays(loaded.arrays, int(loaded.config["unknown_types"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFormatError(
            f"not an n-gram model: {error}", path=loaded.path, remedy="download or create it again"
        ) from None


def _find_one(keys: np.ndarray, key: int) -> int:
    index = int(keys.searchsorted(key))
    return index if index < len(keys) and keys[index] == key else -1


def _find(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the index of each query in the sorted keys, -1 if it is absent."""
    if len(keys) == 0:
        return np.full(len(queries), -1)
    indices = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[indices] == queries, indices, -1)


def _smallest(steps: np.ndarray) -> np.ndarray:
    fits_in_32 = len(steps) == 0 or int(steps.max()) <= np.iinfo(np.uint32).max
    return steps.astype(np.uint32) if fits_in_32 else steps.astype(np.uint64)


def _read_level(arrays: Mapping[str, np.ndarray], n: int) -> Level:
    keys = np.cumsum(arrays[f"steps{n}"].astype(np.int64))
    level = Level(keys, arrays[f"log_probs{n}"], arrays[f"backoffs{n}"])
    if not len(keys) == len(level.log_probs) == len(level.backoffs):
        raise ValueError(f"the arrays of order {n} differ in length")
    return level
