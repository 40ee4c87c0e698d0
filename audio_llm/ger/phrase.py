"""The phrase corrector: phrase table, n-gram beam and linear reranker; numpy only, a few milliseconds a list."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.align import edits
from audio_llm.correction import Correction, Edit
from audio_llm.errors import ModelFormatError
from audio_llm.ger.candidates import BeamSettings, make_candidates
from audio_llm.ger.features import FEATURES, ListView, measure
from audio_llm.ger.phrase_table import PhraseTable, Replacement, TableSettings, Words
from audio_llm.ger.reranker import LinearReranker
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer

KIND = "ger-phrase"


@dataclass(frozen=True)
class PhraseSettings:
    """How a phrase corrector is trained and used.

    Attributes:
        normalizer: Name of the normaliser of hypotheses and references (see `audio_llm.text`).
        order: Of the n-gram model.
        folds: The reranker learns from candidates that tables of the other folds made.
        reranker_lists: Lists it learns from at most.
        table: How the phrase table is learned.
        beam: How candidates are searched.
    """

    normalizer: str = "spoken"
    order: int = 3
    folds: int = 5
    reranker_lists: int = 4000
    table: TableSettings = field(default_factory=TableSettings)
    beam: BeamSettings = field(default_factory=BeamSettings)


@dataclass(frozen=True)
class PhraseCorrector:
    """Corrects N-best lists of one recogniser and domain.

    Attributes:
        table: Replacements by phrase.
        lm: n-gram model of true texts.
        reranker: Chooses among candidates.
        margin: A text must beat the first hypothesis by this much of the reranker's score; with
            `dataclasses.replace(corrector, margin=0.0)` the gate is off.
        settings: How it was trained.
        name: What `Edit.source` calls words that are in no hypothesis.
        hypotheses: Of a list that are looked at.
    """

    table: PhraseTable
    lm: NgramLm
    reranker: LinearReranker
    margin: float
    settings: PhraseSettings = field(default_factory=PhraseSettings)
    name: str = "phrase"
    hypotheses: int = 20

    @classmethod
    def train(
        cls,
        lists: Sequence[NBest],
        seed: int = 0,
        settings: PhraseSettings | None = None,
        text: Sequence[str] = (),
    ) -> PhraseCorrector:
        """Learn from lists with references, in a minute or so for some thousands; needs scipy.

        Args:
            lists: Those without a reference or without a hypothesis are left out, and their number is logged.
            seed: For the folds.
            settings: See `PhraseSettings`.
            text: Further sentences for the language model, besides the references.

        Raises:
            DataError: Fewer lists with different references than folds.
        """
        from audio_llm.ger.phrase_training import train_phrase_corrector

        return train_phrase_corrector(lists, seed, settings or PhraseSettings(), text)

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        """Correct each list, in order; the waveforms are not needed."""
        return [self._correct_one(nbest) for nbest in lists]

    def save(self, folder: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> Path:
        """Write a model directory (see `audio_llm.hub`); return it.

        Args:
            folder: The directory to make.
            provenance: Recipe, seed, commit, data: what made it.
        """
        import torch

        from audio_llm.hub import save_model

        config = {
            "settings": asdict(self.settings),
            "margin": self.margin,
            "weights": dict(zip(FEATURES, map(float, self.reranker.weights), strict=True)),
            "unknown_types": self.lm.unknown_types,
        }
        arrays = {**self.lm.to_arrays(), **_table_to_arrays(self.table)}
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        card = _CARD.format(phrases=len(self.table), words=len(self.lm.vocabulary), settings=self.settings)
        return save_model(folder, config, tensors, KIND, card, provenance)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        recognizer: Any = None,
        decode: str | None = None,
        gate: bool = True,
        device: str = "cpu",
    ) -> PhraseCorrector:
        """Read a model directory that `save` wrote, without torch.

        Args:
            folder: A name of a model, or its folder.
            recognizer: What makes the lists; of no account, as are `decode` and `device`.
            gate: Off: the best candidate is taken however little better it is.

        Raises:
            ModelNotFoundError: There is no such model.
            ModelFormatError: It is damaged or of another kind.
        """
        from safetensors.numpy import load_file

        from audio_llm.hub import CONFIG_NAME, WEIGHTS_NAME, find_model, verify_model
        from audio_llm.training.config import config_from_dict

        path = find_model(folder)
        info = verify_model(path)
        if info.kind != KIND:
            raise ModelFormatError(f"is a model of kind {info.kind}, not {KIND}", path=path)
        config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))["config"]
        arrays = load_file(path / WEIGHTS_NAME)
        try:
            settings = config_from_dict(PhraseSettings, config["settings"], path / CONFIG_NAME)
            weights = np.array([config["weights"][name] for name in FEATURES])
            table = _table_from_arrays(arrays, settings.table.discount)
            lm = NgramLm.from_arrays(arrays, config["unknown_types"])
        except (KeyError, ValueError) as error:
            raise ModelFormatError(f"lacks or garbles {error}", path=path, remedy="train it again") from None
        margin = float(config["margin"]) if gate else 0.0
        return cls(table, lm, LinearReranker(weights), margin, settings)

    def _correct_one(self, nbest: NBest) -> Correction:
        texts = list_words(nbest, self.settings.normalizer)
        if not any(texts):
            return Correction(nbest.id, nbest.best, nbest.best, True, "no words", (), None)
        view = ListView.of(texts, [hypothesis.score for hypothesis in nbest.hypotheses])
        candidates = make_candidates(view.hypotheses, self.table, self.lm, self.settings.beam)
        scores = self.reranker.scores(measure(view, candidates, self.lm))
        best = int(np.argmax(scores))
        gain = float(scores[best] - scores[0])
        chosen = best if gain > self.margin else 0
        confidence = float(1.0 / np.exp(scores - scores[chosen]).sum())
        if chosen == 0:
            reason = "best as it is" if best == 0 else f"gain {gain:.2f} is not above the margin {self.margin:.2f}"
            return Correction(nbest.id, nbest.best, nbest.best, True, reason, (), confidence)
        words = candidates[chosen].words
        changes = describe_edits(view.hypotheses, words, self.name)
        return Correction(nbest.id, " ".join(words), nbest.best, False, f"gain {gain:.2f}", changes, confidence)


def list_words(nbest: NBest, normalizer: str) -> list[Words]:
    """Return the words of every hypothesis of a list, normalised."""
    normalize = get_normalizer(normalizer)
    return [tuple(normalize(text).split()) for text in nbest.texts]


def describe_edits(hypotheses: Sequence[Words], words: Words, name: str) -> tuple[Edit, ...]:
    """Return where `words` differs from the first hypothesis, and which hypothesis has the new words there.

    Args:
        hypotheses: Distinct hypotheses, best first.
        words: The corrected text.
        name: Source of words that no hypothesis has in that place.
    """
    first = hypotheses[0]
    changes = {
        number: {(op.source_start, op.source_end, other[op.target_start : op.target_end]) for op in edits(first, other)}
        for number, other in enumerate(hypotheses[1:], 2)
    }
    described = []
    for op in edits(first, words):
        before, after = first[op.source_start : op.source_end], words[op.target_start : op.target_end]
        change = (op.source_start, op.source_end, after)
        sources = [f"hypothesis {number}" for number, known in changes.items() if change in known]
        described.append(
            Edit(op.source_start, op.source_end, " ".join(before), " ".join(after), (sources or [name])[0])
        )
    return tuple(described)


_CARD = """# Phrase corrector

Corrects N-best lists of the recogniser and the domain whose lists it was trained on: {phrases} phrase replacements,
an n-gram model of {words} words, a linear reranker with a margin.

Load it with `audio_llm.ger.phrase.PhraseCorrector.load(folder)`.

Settings: `{settings}`
"""


def _table_to_arrays(table: PhraseTable) -> dict[str, np.ndarray]:
    rows = [(source, replacement) for source, replacements in table.entries.items() for replacement in replacements]
    return {
        "phrase_sources": _pack([" ".join(source) for source, _ in rows]),
        "phrase_targets": _pack([" ".join(replacement.target) for _, replacement in rows]),
        "phrase_counts": np.array([replacement.count for _, replacement in rows], dtype=np.int32),
        "phrase_kept": np.array([replacement.kept for _, replacement in rows], dtype=np.int32),
    }


def _table_from_arrays(arrays: Mapping[str, np.ndarray], discount: float) -> PhraseTable:
    entries: dict[Words, list[Replacement]] = {}
    columns = [_unpack(arrays["phrase_sources"]), _unpack(arrays["phrase_targets"])]
    counts, kept = arrays["phrase_counts"].tolist(), arrays["phrase_kept"].tolist()
    if counts:
        for source, target, count, right in zip(*columns, counts, kept, strict=True):
            replacement = Replacement.of(tuple(target.split()), count, right, discount)
            entries.setdefault(tuple(source.split()), []).append(replacement)
    return PhraseTable(entries)


def _pack(lines: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    return array.tobytes().decode().split("\n")
