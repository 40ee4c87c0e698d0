"""Tests of telling lists of another recogniser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from audio_llm.ger.familiar import ListKind
from audio_llm.ger.phrase import PhraseCorrector, PhraseSettings
from audio_llm.nbest import Hypothesis, NBest


def lists(size: float | None, count: int = 60, words: int = 4) -> list[NBest]:
    """Lists of the same mistake, with scores of about a size per word."""
    true, heard = " ".join(["now", *["see"] * (words - 1)]), " ".join(["now", *["sea"] * (words - 1)])
    made = []
    for number in range(count):
        score = None if size is None else -size * words * (1 + number / count)
        name = f"{chr(97 + number // 10)}{chr(97 + number % 10)}x"
        made.append(NBest(str(number), (Hypothesis(f"{heard} {name}", score),), f"{true} {name}"))
    return made


def objections(learned: Sequence[NBest], judged: Sequence[NBest]) -> set[str]:
    return {ListKind.of(learned).objection(nbest)[:20] for nbest in judged}


def test_scores_of_another_size_or_none_are_objected_to() -> None:
    assert objections(lists(300.0), lists(200.0)) == {""}
    assert objections(lists(300.0), lists(0.2)) == {"the scores are unlik"}
    assert objections(lists(0.2), lists(300.0)) == {"the scores are unlik"}
    assert objections(lists(300.0), lists(None)) == {"the list lacks score"}
    assert objections(lists(300.0), [NBest("x", ())]) == {"the list lacks score"}


def test_numbers_that_tell_nothing_are_not_taken_for_scores() -> None:
    broken = [NBest("x", (Hypothesis("a", float("nan")),)), *lists(300.0)]
    assert objections(broken, lists(300.0)) == {""}
    zero = [NBest(str(n), (Hypothesis("a", 0.0), Hypothesis("b", -1.0))) for n in range(9)]
    assert objections(zero, [*lists(300.0), *lists(None)]) == {""}


def test_who_learned_without_scores_takes_any_list() -> None:
    for judged in (lists(None), lists(300.0)):
        assert objections(lists(None), judged) == {""}


def test_a_corrector_keeps_what_it_does_not_know_until_the_gate_is_off(tmp_path: object) -> None:
    settings = PhraseSettings(folds=2, language_model="")
    corrector = PhraseCorrector.train(lists(300.0), settings=settings)
    assert all(c.text == n.reference for c, n in zip(corrector.correct(lists(300.0)), lists(300.0), strict=True))
    strangers = corrector.correct(lists(0.2))
    assert all(c.unchanged and "another recogniser" in c.reason for c in strangers)
    folder = corrector.save(f"{tmp_path}/model")
    loaded = PhraseCorrector.load(folder)
    assert loaded.kind == corrector.kind
    assert [c.reason for c in loaded.correct(lists(0.2))] == [c.reason for c in strangers]
    opened = PhraseCorrector.load(folder, gate=False)
    assert [c.text for c in opened.correct(lists(0.2))] == [n.reference for n in lists(0.2)]
    assert dataclasses.replace(corrector, kind=None).correct(lists(None))[0].text == lists(None)[0].reference
