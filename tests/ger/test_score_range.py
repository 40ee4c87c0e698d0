"""Tests of the detection of lists of another recognizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from audio_llm.ger.phrase import PhraseCorrector, PhraseSettings
from audio_llm.ger.phrase_training import train_phrase_corrector
from audio_llm.ger.score_range import ScoreRange
from audio_llm.nbest import Hypothesis, NBest


def lists(size: float | None, count: int = 60, words: int = 4) -> list[NBest]:
    """Lists of the same mistake, with scores of about a size per word."""
    true, recognized = " ".join(["now", *["see"] * (words - 1)]), " ".join(["now", *["sea"] * (words - 1)])
    result = []
    for number in range(count):
        score = None if size is None else -size * words * (1 + number / count)
        name = f"{chr(97 + number // 10)}{chr(97 + number % 10)}x"
        result.append(NBest(str(number), (Hypothesis(f"{recognized} {name}", score),), f"{true} {name}"))
    return result


def reject_reasons(learned: Sequence[NBest], judged: Sequence[NBest]) -> set[str]:
    return {ScoreRange.of(learned).reject_reason(nbest)[:20] for nbest in judged}


def test_scores_out_of_range_or_missing_are_rejected() -> None:
    assert reject_reasons(lists(300.0), lists(200.0)) == {""}
    assert reject_reasons(lists(300.0), lists(0.2)) == {"the scores are unlik"}
    assert reject_reasons(lists(0.2), lists(300.0)) == {"the scores are unlik"}
    assert reject_reasons(lists(300.0), lists(None)) == {"the list lacks score"}
    assert reject_reasons(lists(300.0), [NBest("x", ())]) == {"the list lacks score"}


def test_uninformative_numbers_are_not_used_as_scores() -> None:
    broken = [NBest("x", (Hypothesis("a", float("nan")),)), *lists(300.0)]
    assert reject_reasons(broken, lists(300.0)) == {""}
    zero = [NBest(str(n), (Hypothesis("a", 0.0), Hypothesis("b", -1.0))) for n in range(9)]
    assert reject_reasons(zero, [*lists(300.0), *lists(None)]) == {""}


def test_a_range_from_lists_without_scores_accepts_any_list() -> None:
    for judged in (lists(None), lists(300.0)):
        assert reject_reasons(lists(None), judged) == {""}


def test_a_corrector_skips_lists_out_of_range_unless_the_gate_is_off(tmp_path: object) -> None:
    settings = PhraseSettings(folds=2, language_model="")
    corrector = train_phrase_corrector(lists(300.0), settings=settings)
    assert all(c.text == n.reference for c, n in zip(corrector.correct(lists(300.0)), lists(300.0), strict=True))
    rejected = corrector.correct(lists(0.2))
    assert all(c.unchanged and "another recognizer" in c.reason for c in rejected)
    folder = corrector.save(f"{tmp_path}/model")
    loaded = PhraseCorrector.load(folder)
    assert loaded.score_range == corrector.score_range
    assert [c.reason for c in loaded.correct(lists(0.2))] == [c.reason for c in rejected]
    opened = PhraseCorrector.load(folder, gate=False)
    assert [c.text for c in opened.correct(lists(0.2))] == [n.reference for n in lists(0.2)]
    assert dataclasses.replace(corrector, score_range=None).correct(lists(None))[0].text == lists(None)[0].reference
