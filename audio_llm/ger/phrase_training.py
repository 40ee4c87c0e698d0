"""Training of the phrase corrector: tables and language models by fold, then the reranker and its margin."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audio_llm.align import edit_distance
from audio_llm.errors import DataError, UsageError
from audio_llm.ger.candidates import Candidate, add_written, make_candidates
from audio_llm.ger.features import Knowledge, ListView, measure
from audio_llm.ger.phrase import (
    NeuralReranker,
    PhraseCorrector,
    PhraseSettings,
    add_neural_scores,
    list_words,
    load_recognizer_lm,
    shortlist,
)
from audio_llm.ger.phrase_table import Words, learn_phrases
from audio_llm.ger.reranker import LinearReranker, expected_errors, train_reranker
from audio_llm.ger.score_range import ScoreRange
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import NgramLm, load_ngram
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer

if TYPE_CHECKING:  # it needs torch
    from audio_llm.ger.neural import NeuralScorer

logger = logging.getLogger(__name__)

_MARGINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 1e9)  # the last one keeps everything


@dataclass(frozen=True)
class NeuralFolds:
    """Neural correctors for training and use.

    Attributes:
        by_fold: For each fold of `fold_of_lists`, or each group in order of names, one not trained on its lists.
        final: The one that is used after training.
    """

    by_fold: tuple[NeuralScorer, ...]
    final: NeuralScorer


@dataclass(frozen=True)
class _Example:
    texts: tuple[Words, ...]
    view: ListView
    reference: Words
    group: str


@dataclass(frozen=True)
class _Scored:
    """Candidates of one list: features (C, F) float64, errors (C,) int64, texts, the first hypothesis first."""

    features: np.ndarray
    errors: np.ndarray
    texts: tuple[Words, ...]


@dataclass(frozen=True)
class _RerankInput:
    """Input of the second-pass reranker for one list: the list, its candidates, their features, the generated text.

    The generated text is the last candidate, unless it equals another one.
    """

    example: _Example
    candidates: tuple[Candidate, ...]
    everything: _Scored
    written: Words


def train_phrase_corrector(
    lists: Sequence[NBest],
    seed: int = 0,
    settings: PhraseSettings | None = None,
    text: Sequence[str] = (),
    neural: NeuralFolds | None = None,
    groups: Sequence[str] = (),
) -> PhraseCorrector:
    """Train a phrase corrector on lists with references, about a minute for a few thousand; needs scipy.

    Args:
        lists: N-best lists; those without a reference or a hypothesis are skipped, and their number is logged.
        seed: Seed of the folds.
        settings: See `PhraseSettings`.
        text: Further sentences for the n-gram model of the references.
        neural: Neural correctors that were not trained on the lists whose candidates they score.
        groups: The group of each list, such as its speaker or corpus. Each group is then a fold, so that the reranker
            is trained for unseen groups. Without groups it is trained for unseen texts of the same groups.

    Raises:
        DataError: Fewer lists with different references than folds.
    """
    settings = settings or PhraseSettings()
    if groups and len(groups) != len(lists):
        raise DataError(f"{len(groups)} groups for {len(lists)} lists", remedy="give the group of each list")
    examples = _examples(lists, settings, groups)
    references = sorted({example.reference for example in examples})
    if len(references) < settings.folds:
        raise DataError(
            f"{len(references)} different references are too few to train on",
            remedy=f"give lists with at least {settings.folds} different references",
        )
    fold_of = _folds(examples, settings, seed)
    if neural is not None and len(neural.by_fold) != max(fold_of) + 1:
        message = f"{len(neural.by_fold)} neural correctors for {max(fold_of) + 1} folds"
        raise UsageError(message, remedy="give one for each")
    normalize = get_normalizer(settings.normalizer)
    general = load_ngram(settings.language_model) if settings.language_model else None
    sentences = [tuple(normalize(line).split()) for line in text]
    asked = set(np.random.default_rng(seed + 1).permutation(len(examples))[: settings.reranker_lists].tolist())
    scored: list[list[_Scored]] = []
    inputs: list[list[_RerankInput]] = []
    for fold in range(max(fold_of) + 1):
        held_out = [e for number, e in enumerate(examples) if fold_of[number] == fold and number in asked]
        training = [e for number, e in enumerate(examples) if fold_of[number] != fold]
        hidden = {e.reference for e in held_out}
        knowledge = _learn(training, [words for words in sentences if words not in hidden], settings, general)
        written = neural.by_fold[fold].write([e.texts for e in held_out]) if neural else [()] * len(held_out)
        pairs = [_score(e, words, knowledge, settings) for e, words in zip(held_out, written, strict=True)]
        scored.append([pair[0] for pair in pairs])
        inputs.append([pair[1] for pair in pairs])
        logger.info("fold %d of %d: candidates for %d lists", fold + 1, max(fold_of) + 1, len(held_out))
    reranker, margin = _train(scored), _choose_margin(scored, settings)
    neural_reranker = None
    if neural is not None:
        scored = [
            [_score_shortlist(*one, reranker, scorer, settings) for one in zip(part, texts, strict=True)]
            for part, texts, scorer in zip(scored, inputs, neural.by_fold, strict=True)
        ]
        neural_reranker = NeuralReranker(neural.final, _train(scored), _choose_margin(scored, settings))
    knowledge = _learn(examples, sentences, settings, general)
    logger.info("%d phrases, margin %.2f", len(knowledge.table), margin)
    return PhraseCorrector(knowledge, reranker, margin, settings, ScoreRange.of(lists), neural_reranker=neural_reranker)


def _folds(examples: Sequence[_Example], settings: PhraseSettings, seed: int) -> list[int]:
    """Return the fold of each example: that of its group, or where there are no groups that of its reference."""
    names = sorted({example.group for example in examples})
    if len(names) > 1:
        return [names.index(example.group) for example in examples]
    fold_of = fold_of_reference([example.reference for example in examples], settings.folds, seed)
    return [fold_of[example.reference] for example in examples]


def fold_of_lists(lists: Sequence[NBest], seed: int, settings: PhraseSettings) -> dict[Words, int]:
    """Return the training fold of the lists of each reference, to train neural correctors without some folds."""
    return fold_of_reference([example.reference for example in _examples(lists, settings)], settings.folds, seed)


def fold_of_reference(references: Sequence[Words], folds: int, seed: int) -> dict[Words, int]:
    """Return the fold of each reference.

    Args:
        references: Normalized words of each; order and repetitions do not matter.
        folds: Number of folds.
        seed: Seed of the assignment.
    """
    distinct = sorted(set(references))
    numbers = np.random.default_rng(seed).permutation(len(distinct)) % folds
    return dict(zip(distinct, numbers.tolist(), strict=True))


def _train(folds: Sequence[Sequence[_Scored]]) -> LinearReranker:
    everything = [one for part in folds for one in part]
    return train_reranker([one.features for one in everything], [one.errors for one in everything])


def _examples(lists: Sequence[NBest], settings: PhraseSettings, groups: Sequence[str] = ()) -> list[_Example]:
    normalize = get_normalizer(settings.normalizer)
    examples = []
    for nbest, group in zip(lists, groups or [""] * len(lists), strict=True):
        texts = list_words(nbest, settings.normalizer)
        if nbest.reference is not None and any(texts):
            view = ListView.of(texts, [hypothesis.score for hypothesis in nbest.hypotheses[: len(texts)]])
            examples.append(_Example(tuple(texts), view, tuple(normalize(nbest.reference).split()), group))
    if len(examples) < len(lists):
        logger.warning("%d of %d lists skipped: no reference or no words", len(lists) - len(examples), len(lists))
    return examples


def _learn(
    examples: Sequence[_Example], sentences: Sequence[Words], settings: PhraseSettings, general: NgramLm | None
) -> Knowledge:
    table = learn_phrases([(e.view.hypotheses, e.reference) for e in examples], settings.table)
    texts = [" ".join(e.reference) for e in examples] + [" ".join(words) for words in sentences]
    return Knowledge(table, train_ngram(texts, order=settings.order), general, load_recognizer_lm(settings))


def _score(
    example: _Example, written: Words, knowledge: Knowledge, settings: PhraseSettings
) -> tuple[_Scored, _RerankInput]:
    """Return the phrase corrector's candidates, and the input of the second-pass reranker."""
    candidates = make_candidates(example.view.hypotheses, knowledge.table, knowledge.lm, settings.beam)
    phrase_count = len(candidates)
    candidates = add_written(candidates, written, knowledge.lm)
    texts = tuple(candidate.words for candidate in candidates)
    errors = np.array([edit_distance(example.reference, words) for words in texts])
    rows = measure(example.view, candidates, knowledge)
    rerank_input = _RerankInput(example, tuple(candidates), _Scored(rows, errors, texts), written)
    return _Scored(rows[:phrase_count], errors[:phrase_count], texts[:phrase_count]), rerank_input


def _score_shortlist(
    one: _Scored, rerank_input: _RerankInput, reranker: LinearReranker, scorer: NeuralScorer, settings: PhraseSettings
) -> _Scored:
    everything = rerank_input.everything
    indices = shortlist(reranker.scores(one.features), settings.shortlist, len(everything.texts))
    candidates = [rerank_input.candidates[number] for number in indices]
    features = add_neural_scores(
        everything.features[indices], candidates, scorer, rerank_input.example.texts, rerank_input.written
    )
    return _Scored(features, everything.errors[indices], tuple(candidate.words for candidate in candidates))


def _choose_margin(folds: Sequence[Sequence[_Scored]], settings: PhraseSettings) -> float:
    """Return the widest margin that costs no more than the settings allow, on held-out lists."""
    errors = np.zeros(len(_MARGINS))
    broken, right = np.zeros(len(_MARGINS)), 0
    for held_out, scored in enumerate(folds):
        learned = [part for number, part in enumerate(folds) if number != held_out and part]
        if not learned or not scored:
            continue
        reranker = _train(learned)
        for one in scored:
            expected = expected_errors(reranker.scores(one.features), one.texts)
            best = int(np.argmin(expected))
            changes = expected[0] - expected[best] > np.array(_MARGINS)
            errors += np.where(changes, one.errors[best], one.errors[0])
            if one.errors[0] == 0:
                right += 1
                broken += changes
    careful = broken <= (1.0 - settings.min_correct_retained) * right
    fewest = errors[careful].min()
    allowed = fewest + settings.margin_cost * min(fewest, errors[-1] - fewest)
    return max(
        m for m, wrong, is_careful in zip(_MARGINS, errors, careful, strict=True) if is_careful and wrong <= allowed
    )
