"""Training of the phrase corrector: tables and language models by fold, then the reranker and its margin."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audio_llm.align import edit_distance
from audio_llm.errors import DataError
from audio_llm.ger.candidates import Candidate, add_written, make_candidates
from audio_llm.ger.features import ListView, add_neural, measure
from audio_llm.ger.phrase import PhraseCorrector, PhraseSettings, list_words, shortlist
from audio_llm.ger.phrase_table import PhraseTable, Words, learn_phrases
from audio_llm.ger.reranker import LinearReranker, train_reranker
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import NgramLm, load_ngram
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer

if TYPE_CHECKING:  # it needs torch
    from audio_llm.ger.neural import NeuralOpinion

logger = logging.getLogger(__name__)

_MARGINS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 1e9)  # the last one keeps everything


@dataclass(frozen=True)
class NeuralFolds:
    """Neural correctors for training and use.

    Attributes:
        by_fold: For each fold of `fold_of_reference` one that has not seen its lists.
        final: The one that is used afterwards.
    """

    by_fold: tuple[NeuralOpinion, ...]
    final: NeuralOpinion


@dataclass(frozen=True)
class _Example:
    texts: tuple[Words, ...]
    view: ListView
    reference: Words


@dataclass(frozen=True)
class _Scored:
    """Candidates of one list: features (C, F) float64, errors (C,) int64, the first hypothesis first."""

    features: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class _Judged:
    """Candidates of one list before they are judged: the list, the candidates, and the text that was written."""

    example: _Example
    candidates: tuple[Candidate, ...]
    written: Words


def train_phrase_corrector(
    lists: Sequence[NBest],
    seed: int,
    settings: PhraseSettings,
    text: Sequence[str],
    neural: NeuralFolds | None = None,
    language_model: str = "",
) -> PhraseCorrector:
    """Train; see `PhraseCorrector.train`."""
    examples = _examples(lists, settings)
    references = sorted({example.reference for example in examples})
    if len(references) < settings.folds:
        raise DataError(
            f"{len(references)} different references are too few to train on",
            remedy=f"give lists with at least {settings.folds} different references",
        )
    fold_of = fold_of_reference(references, settings.folds, seed)
    normalize = get_normalizer(settings.normalizer)
    ready = load_ngram(language_model) if language_model else None
    sentences = [tuple(normalize(line).split()) for line in text]
    asked = set(np.random.default_rng(seed + 1).permutation(len(examples))[: settings.reranker_lists].tolist())
    scored: list[list[_Scored]] = []
    judged: list[list[_Judged]] = []
    for fold in range(settings.folds):
        held_out = [e for number, e in enumerate(examples) if fold_of[e.reference] == fold and number in asked]
        others = [e for e in examples if fold_of[e.reference] != fold]
        hidden = {e.reference for e in held_out}
        table, lm = _fit(others, [words for words in sentences if words not in hidden], settings, ready)
        written = neural.by_fold[fold].write([e.texts for e in held_out]) if neural else [()] * len(held_out)
        pairs = [_score(e, words, table, lm, settings) for e, words in zip(held_out, written, strict=True)]
        scored.append([pair[0] for pair in pairs])
        judged.append([pair[1] for pair in pairs])
        logger.info("fold %d of %d: candidates for %d lists", fold + 1, settings.folds, len(held_out))
    reranker = _train(scored)
    second = None
    if neural is not None:
        scored = [
            [_judge(*one, reranker, opinion, settings) for one in zip(part, texts, strict=True)]
            for part, texts, opinion in zip(scored, judged, neural.by_fold, strict=True)
        ]
        second = _train(scored)
    margin = _choose_margin(scored, settings.margin_cost)
    table, lm = _fit(examples, sentences, settings, ready)
    logger.info("%d phrases, %d words, margin %.2f", len(table), len(lm.vocabulary), margin)
    opinion = neural.final if neural is not None else None
    return PhraseCorrector(
        table, lm, reranker, margin, settings, neural=opinion, second=second, language_model=language_model
    )


def fold_of_reference(references: Sequence[Words], folds: int, seed: int) -> dict[Words, int]:
    """Return the fold of each reference.

    Args:
        references: As words, normalised; the order and repetitions are of no account.
        folds: How many.
        seed: Of the draw.
    """
    distinct = sorted(set(references))
    numbers = np.random.default_rng(seed).permutation(len(distinct)) % folds
    return dict(zip(distinct, numbers.tolist(), strict=True))


def _train(folds: Sequence[Sequence[_Scored]]) -> LinearReranker:
    everything = [one for part in folds for one in part]
    return train_reranker([one.features for one in everything], [one.errors for one in everything])


def _examples(lists: Sequence[NBest], settings: PhraseSettings) -> list[_Example]:
    normalize = get_normalizer(settings.normalizer)
    examples = []
    for nbest in lists:
        texts = list_words(nbest, settings.normalizer)
        if nbest.reference is not None and any(texts):
            view = ListView.of(texts, [hypothesis.score for hypothesis in nbest.hypotheses])
            examples.append(_Example(tuple(texts), view, tuple(normalize(nbest.reference).split())))
    if len(examples) < len(lists):
        logger.warning("%d of %d lists left out: no reference or no words", len(lists) - len(examples), len(lists))
    return examples


def _fit(
    examples: Sequence[_Example], sentences: Sequence[Words], settings: PhraseSettings, ready: NgramLm | None
) -> tuple[PhraseTable, NgramLm]:
    table = learn_phrases([(e.view.hypotheses, e.reference) for e in examples], settings.table)
    if ready is not None:
        return table, ready
    texts = [" ".join(e.reference) for e in examples] + [" ".join(words) for words in sentences]
    return table, train_ngram(texts, order=settings.order)


def _score(
    example: _Example, written: Words, table: PhraseTable, lm: NgramLm, settings: PhraseSettings
) -> tuple[_Scored, _Judged]:
    candidates = add_written(make_candidates(example.view.hypotheses, table, lm, settings.beam), written, lm)
    errors = np.array([edit_distance(example.reference, candidate.words) for candidate in candidates])
    scored = _Scored(measure(example.view, candidates, lm), errors)
    return scored, _Judged(example, tuple(candidates), written)


def _judge(
    one: _Scored, judged: _Judged, reranker: LinearReranker, opinion: NeuralOpinion, settings: PhraseSettings
) -> _Scored:
    kept = shortlist(reranker.scores(one.features), settings.shortlist)
    candidates = [judged.candidates[number] for number in kept]
    log_probs = opinion.log_probs(judged.example.texts, [candidate.words for candidate in candidates])
    features = add_neural(one.features[kept], candidates, log_probs, judged.written)
    return _Scored(features, one.errors[kept])


def _choose_margin(folds: Sequence[Sequence[_Scored]], cost: float) -> float:
    """Return the widest margin that costs no more than that share of the errors, on lists the reranker did not see."""
    errors = np.zeros(len(_MARGINS))
    for part in range(2):
        learned = [one for fold in folds[part::2] for one in fold]
        judged = [one for fold in folds[1 - part :: 2] for one in fold]
        if not learned or not judged:
            return 0.0
        reranker = _train([learned])
        for one in judged:
            scores = reranker.scores(one.features)
            best = int(np.argmax(scores))
            changes = scores[best] - scores[0] > np.array(_MARGINS)
            errors += np.where(changes, one.errors[best], one.errors[0])
    return max(margin for margin, wrong in zip(_MARGINS, errors, strict=True) if wrong <= errors.min() * (1 + cost))
