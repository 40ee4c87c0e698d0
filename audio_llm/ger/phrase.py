"""The phrase corrector: phrase table, beam search with n-gram models, linear reranker; no torch, a few ms per list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from audio_llm.correction import Correction, describe_edits
from audio_llm.errors import ModelFormatError, UsageError
from audio_llm.ger.candidates import BeamSettings, Candidate, add_written, make_candidates
from audio_llm.ger.features import FEATURES, NEURAL_FEATURES, Knowledge, ListView, add_neural, measure
from audio_llm.ger.phrase_table import PhraseTable, Replacement, TableSettings, Words
from audio_llm.ger.reranker import LinearReranker, expected_errors
from audio_llm.ger.score_range import ScoreRange
from audio_llm.lm.ngram import NgramLm, load_ngram
from audio_llm.lm.pocketsphinx_lm import PocketsphinxLm
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer
from audio_llm.training.config import renamed

if TYPE_CHECKING:  # they need torch
    from audio_llm.ger.neural import NeuralScorer

KIND = "ger-phrase"
_MAX_HYPOTHESES = 20  # hypotheses of a list that are used
_NEURAL = "neural."  # prefix of the names of a neural corrector's weights


@dataclass(frozen=True)
class PhraseSettings:
    """Settings of a phrase corrector.

    Attributes:
        normalizer: Name of the normalizer of hypotheses and references (see `audio_llm.text`).
        order: Order of the n-gram model of the references.
        language_model: Name or folder of an n-gram model of general English; empty: none. It is not saved with the
            corrector, which needs it at load.
        recognizer_lm: `pocketsphinx` for lists of that recognizer: its n-gram model, which is part of its scores.
        folds: Number of folds; the reranker is trained on candidates from tables of the other folds.
        reranker_lists: Maximum number of lists to train the reranker on.
        shortlist: Number of candidates that a neural corrector scores.
        margin_cost: The widest margin is chosen that gives up at most this fraction of the corrected errors, or of the
            remaining errors if these are fewer, so that correct texts are not changed.
        min_correct_retained: Minimum fraction of the correct first hypotheses that must not be changed.
        table: Settings of the phrase table.
        beam: Settings of the search for candidates.
    """

    normalizer: str = "spoken"
    order: int = 3
    language_model: str = "novels-3gram"
    recognizer_lm: Literal["", "pocketsphinx"] = ""
    folds: int = 5
    reranker_lists: int = 4000
    shortlist: int = 10
    margin_cost: float = 0.01
    min_correct_retained: float = renamed("least_kept", 0.0)
    table: TableSettings = field(default_factory=TableSettings)
    beam: BeamSettings = field(default_factory=BeamSettings)


@dataclass(frozen=True)
class NeuralReranker:
    """Second-pass reranker: a neural corrector adds one candidate and scores the best ones.

    Attributes:
        scorer: The neural corrector.
        reranker: Linear reranker of the `PhraseSettings.shortlist` candidates that the first pass ranks highest.
        margin: Minimum reduction of the expected word errors, as `PhraseCorrector.margin`.
    """

    scorer: NeuralScorer
    reranker: LinearReranker
    margin: float


@dataclass(frozen=True)
class PhraseCorrector:
    """Corrects N-best lists of one recognizer and domain.

    Attributes:
        knowledge: Phrase table and n-gram models.
        reranker: Estimates how probable each candidate is; the one with the fewest expected word errors is chosen.
        margin: A text must reduce the expected word errors of the first hypothesis by more than this.
        settings: Training settings.
        score_range: Range of scores of the training lists; other lists are not changed.
        name: `Edit.source` of words that are in no hypothesis.
        hypotheses: Maximum number of hypotheses of a list that are used, in training too.
        neural_reranker: Second-pass reranker; None: no network is run.
    """

    knowledge: Knowledge
    reranker: LinearReranker
    margin: float
    settings: PhraseSettings = field(default_factory=PhraseSettings)
    score_range: ScoreRange | None = None
    name: str = "phrase"
    hypotheses: int = _MAX_HYPOTHESES
    neural_reranker: NeuralReranker | None = None

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        """Correct each list, in order; the waveforms are ignored."""
        texts = [list_words(nbest, self.settings.normalizer) for nbest in lists]
        written: list[Words] = [()] * len(lists)
        if self.neural_reranker is not None:
            rows = [row for row, nbest in enumerate(lists) if not self._reject_reason(nbest, texts[row])]
            for row, words in zip(rows, self.neural_reranker.scorer.write([texts[row] for row in rows]), strict=True):
                written[row] = words
        return [self._correct_one(*one) for one in zip(lists, texts, written, strict=True)]

    def save(self, folder: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None, card: str = "") -> Path:
        """Write a model directory (see `audio_llm.hub`); return it.

        Args:
            folder: The directory to write.
            provenance: Origin of the model: recipe, seed, commit, data.
            card: Text of its README.md; empty: a generic card.
        """
        import torch

        from audio_llm.hub import fingerprint, save_model

        config: dict[str, Any] = {
            "settings": asdict(self.settings),
            "margin": self.margin,
            "weights": dict(zip(FEATURES, map(float, self.reranker.weights), strict=True)),
            "unknown_types": self.knowledge.references.unknown_types,
        }
        if self.score_range is not None:
            config["kind"] = asdict(self.score_range)  # the key in saved models
        if self.settings.language_model:
            config["general_sha256"] = fingerprint(self.settings.language_model)
        arrays = _table_to_arrays(self.knowledge.table) | self.knowledge.references.to_arrays()
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        assets: dict[str, str] = {}
        if self.neural_reranker is not None:
            from audio_llm.ger.checkpoint import to_parts

            weights = map(float, self.neural_reranker.reranker.weights)
            config["second"] = dict(zip((*FEATURES, *NEURAL_FEATURES), weights, strict=True))
            config["second_margin"] = self.neural_reranker.margin
            config["neural"], network, assets = to_parts(self.neural_reranker.scorer.checkpoint)
            tensors |= {f"{_NEURAL}{name}": tensor.half() for name, tensor in network.items()}
        words = len(self.knowledge.references.vocabulary)
        card = card or _CARD.format(phrases=len(self.knowledge.table), words=words, settings=self.settings)
        return save_model(folder, config, tensors, KIND, card, provenance, assets)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        recognizer: Any = None,
        decode: str | None = None,
        gate: bool = True,
        device: str = "cpu",
        neural: bool = True,
    ) -> PhraseCorrector:
        """Read a model directory that `save` wrote; torch is imported only for a neural corrector.

        Args:
            folder: Name of a model, or its folder.
            recognizer: Ignored; correctors share this signature.
            decode: Must be None: there is only one decoding mode.
            gate: False: the best candidate is taken without margin and for lists of any score range.
            device: Device of a neural corrector inside.
            neural: Whether to use a neural corrector, if there is one.

        Raises:
            UsageError: `decode` is not None.
            ModelNotFoundError: There is no such model.
            ModelFormatError: It is damaged or of another kind.
        """
        from audio_llm.hub import CONFIG_NAME, find_companion, load_arrays
        from audio_llm.training.config import config_from_dict

        if decode is not None:
            raise UsageError(f"this model reranks candidates; it has no mode {decode!r}", remedy="leave it out")
        loaded = load_arrays(folder, KIND)
        path, config, arrays = loaded.path, loaded.config, loaded.arrays
        try:
            settings = config_from_dict(PhraseSettings, config["settings"], path / CONFIG_NAME)
            weights = np.array([config["weights"][name] for name in FEATURES])
            general = None
            if settings.language_model:
                general = load_ngram(find_companion(path, settings.language_model, config["general_sha256"]))
            references = NgramLm.from_arrays(arrays, config["unknown_types"])
            table = _table_from_arrays(arrays, settings.table.discount)
            knowledge = Knowledge(table, references, general, load_recognizer_lm(settings))
            score_range = ScoreRange(**config["kind"]) if "kind" in config and gate else None
            neural_reranker = None
            if neural and "neural" in config:
                from audio_llm.ger.checkpoint import from_parts
                from audio_llm.ger.neural import NeuralScorer

                reranker = LinearReranker(np.array([config["second"][n] for n in (*FEATURES, *NEURAL_FEATURES)]))
                network = {n.removeprefix(_NEURAL): a for n, a in arrays.items() if n.startswith(_NEURAL)}
                scorer = NeuralScorer(from_parts(config["neural"], network, path, device))
                neural_reranker = NeuralReranker(scorer, reranker, float(config["second_margin"]) if gate else 0.0)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelFormatError(f"lacks or garbles {error}", path=path, remedy="train it again") from None
        margin = float(config["margin"]) if gate else 0.0
        return cls(knowledge, LinearReranker(weights), margin, settings, score_range, neural_reranker=neural_reranker)

    def _reject_reason(self, nbest: NBest, texts: Sequence[Words]) -> str:
        """Return why a list is skipped, or an empty string."""
        if not any(texts):
            return "no words"
        return self.score_range.reject_reason(nbest) if self.score_range is not None else ""

    def _correct_one(self, nbest: NBest, texts: Sequence[Words], written: Words) -> Correction:
        if reason := self._reject_reason(nbest, texts):
            return Correction(nbest.id, nbest.best, nbest.best, True, reason, (), None)
        view = ListView.of(texts, [hypothesis.score for hypothesis in nbest.hypotheses[: len(texts)]])
        candidates = make_candidates(view.hypotheses, self.knowledge.table, self.knowledge.lm, self.settings.beam)
        phrase_count = len(candidates)
        candidates = add_written(candidates, written, self.knowledge.lm)
        rows = measure(view, candidates, self.knowledge)
        scores, margin = self.reranker.scores(rows[:phrase_count]), self.margin
        if self.neural_reranker is not None:
            indices = shortlist(scores, self.settings.shortlist, len(candidates))
            candidates, rows = [candidates[number] for number in indices], rows[indices]
            rows = add_neural_scores(rows, candidates, self.neural_reranker.scorer, texts, written)
            scores = self.neural_reranker.reranker.scores(rows)
            margin = self.neural_reranker.margin
        errors = expected_errors(scores, [candidate.words for candidate in candidates])
        best = int(np.argmin(errors))
        gain = float(errors[0] - errors[best])
        chosen = best if gain > margin else 0
        confidence = float(1.0 / np.exp(scores - scores[chosen]).sum())
        saved = f"expected errors -{gain:.2f}"
        if chosen == 0:
            reason = "already best" if best == 0 else f"{saved}, not above the margin of {margin:.2f}"
            return Correction(nbest.id, nbest.best, nbest.best, True, reason, (), confidence)
        words = candidates[chosen].words
        changes = describe_edits(view.hypotheses, words, self.name)
        return Correction(nbest.id, " ".join(words), nbest.best, False, saved, changes, confidence)


def add_neural_scores(
    rows: np.ndarray,
    candidates: Sequence[Candidate],
    scorer: NeuralScorer,
    hypotheses: Sequence[Words],
    written: Words,
) -> np.ndarray:
    """Return the features of candidates with the scores of a neural corrector (see `features.add_neural`).

    Args:
        rows: Output of `features.measure` for the candidates.
        candidates: Candidates, the first hypothesis first.
        scorer: The neural corrector.
        hypotheses: The list's hypotheses as words, best first, with duplicates.
        written: The text that the neural corrector generates.
    """
    texts = [candidate.words for candidate in candidates]
    return add_neural(rows, candidates, scorer.log_probs(hypotheses, texts), scorer.log_probs_alone(texts), written)


def load_recognizer_lm(settings: PhraseSettings) -> PocketsphinxLm | None:
    """Return the recognizer's n-gram model, if the settings name one."""
    return PocketsphinxLm() if settings.recognizer_lm == "pocketsphinx" else None


def shortlist(scores: np.ndarray, count: int, total: int) -> list[int]:
    """Return the indices of the first candidate, of the best others up to `count` in all, and of those without score.

    Args:
        scores: (C,) scores of the phrase corrector's candidates.
        count: Number of these to return.
        total: Candidates in all; those from index C on were generated by the neural corrector.
    """
    best = np.argsort(-scores[1:], kind="stable")[: max(0, count - 1)] + 1
    return [0, *best.tolist(), *range(len(scores), total)]


def list_words(nbest: NBest, normalizer: str) -> list[Words]:
    """Return the words of the first 20 hypotheses of a list, normalized."""
    normalize = get_normalizer(normalizer)
    return [tuple(normalize(text).split()) for text in nbest.texts[:_MAX_HYPOTHESES]]


_CARD = """# Phrase corrector

Corrects N-best lists of the recognizer and the domain whose lists it was trained on: {phrases} phrase replacements,
an n-gram model of {words} words, a linear reranker and a margin of expected errors that a change must save.

Load it with `audio_llm.ger.phrase.PhraseCorrector.load(folder)`.

Settings: `{settings}`
"""


def _table_to_arrays(table: PhraseTable) -> dict[str, np.ndarray]:
    rows = [(source, replacement) for source, replacements in table.entries.items() for replacement in replacements]
    return {
        "phrase_sources": _pack([" ".join(source) for source, _ in rows]),
        "phrase_targets": _pack([" ".join(replacement.target) for _, replacement in rows]),
        "phrase_counts": np.array([replacement.count for _, replacement in rows], dtype=np.int32),
        "phrase_kept": np.array([replacement.unchanged for _, replacement in rows], dtype=np.int32),
        "phrase_balances": np.array([replacement.balance for _, replacement in rows], dtype=np.int32),
    }


def _table_from_arrays(arrays: Mapping[str, np.ndarray], discount: float) -> PhraseTable:
    entries: dict[Words, list[Replacement]] = {}
    columns = [_unpack(arrays["phrase_sources"]), _unpack(arrays["phrase_targets"])]
    counts, *numbers = (arrays[f"phrase_{name}"].tolist() for name in ("counts", "kept", "balances"))
    if counts:
        for source, target, count, right, balance in zip(*columns, counts, *numbers, strict=True):
            replacement = Replacement.of(tuple(target.split()), count, right, discount, balance)
            entries.setdefault(tuple(source.split()), []).append(replacement)
    return PhraseTable(entries)


def _pack(lines: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    return array.tobytes().decode().split("\n")
