"""Tests of the phrase corrector as a whole, on a simulated recognizer."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audio_llm.align import EditCounts, count_edits
from audio_llm.correction import Correction
from audio_llm.errors import DataError, ModelFormatError, ModelNotFoundError
from audio_llm.ger.phrase import PhraseCorrector, PhraseSettings
from audio_llm.ger.phrase_training import train_phrase_corrector
from audio_llm.ger.reranker import expected_errors, train_reranker
from audio_llm.nbest import Hypothesis, NBest

CONFUSIONS = {
    "flights": ["fights", "flight"],
    "fares": ["fairs"],
    "nonstop": ["non stop"],
    "to": ["two", ""],
    "boston": ["austin"],
    "four": ["for"],
}


def sentence(generator: np.random.Generator) -> str:
    pick = lambda words: str(generator.choice(words.split()))  # noqa: E731
    parts = [pick("show list give"), "me", pick("all the"), pick("nonstop cheap late early")]
    parts += [pick("flights fares"), "from", pick("boston denver dallas oakland"), "to", pick("boston denver miami")]
    if generator.random() < 0.5:
        parts += ["at", pick("four five six nine")]
    return " ".join(parts)


def recognize(text: str, generator: np.random.Generator) -> str:
    """A recognizer that mistakes some words in a way that can be learned."""
    recognized = [
        str(generator.choice(CONFUSIONS[word])) if word in CONFUSIONS and generator.random() < 0.35 else word
        for word in text.split()
    ]
    return " ".join(word for word in recognized if word)


def make_lists(count: int, seed: int, size: int = 5, scores: bool = True) -> list[NBest]:
    generator = np.random.default_rng(seed)
    lists = []
    for number in range(count):
        reference = sentence(generator)
        texts = [recognize(reference, generator) for _ in range(size)]
        hypotheses = tuple(Hypothesis(text, -1.0 - 0.1 * rank if scores else None) for rank, text in enumerate(texts))
        lists.append(NBest(str(number), hypotheses, reference))
    return lists


def word_errors(lists: list[NBest], corrections: list[Correction]) -> tuple[EditCounts, EditCounts]:
    """Return counts of the first hypotheses and of the corrections."""
    before = after = EditCounts()
    for nbest, correction in zip(lists, corrections, strict=True):
        reference = (nbest.reference or "").split()
        before += count_edits(reference, nbest.best.split())
        after += count_edits(reference, correction.text.split())
    return before, after


@pytest.fixture(scope="module")
def corrector() -> PhraseCorrector:
    return train_phrase_corrector(make_lists(200, 0))


def test_most_errors_of_a_learnable_recognizer_are_corrected(corrector: PhraseCorrector) -> None:
    lists = make_lists(200, 1)
    corrections = corrector.correct(lists)
    before, after = word_errors(lists, corrections)
    assert before.error_rate > 0.1
    assert after.errors < 0.35 * before.errors
    right = [c for c, nbest in zip(corrections, lists, strict=True) if nbest.best == nbest.reference]
    assert sum(c.unchanged for c in right) >= 0.97 * len(right)


@pytest.mark.parametrize("size, scores", [(1, True), (5, False), (20, False)])
def test_lists_of_any_length_with_and_without_scores(size: int, scores: bool) -> None:
    corrector = train_phrase_corrector(make_lists(100, 0, size, scores))
    lists = make_lists(80, 1, size, scores)
    before, after = word_errors(lists, corrector.correct(lists))
    assert after.errors < 0.7 * before.errors


def test_shuffled_references_give_no_gain() -> None:
    lists = make_lists(60, 0)
    order = np.random.default_rng(0).permutation(len(lists))
    shuffled = [
        dataclasses.replace(nbest, reference=lists[other].reference) for nbest, other in zip(lists, order, strict=True)
    ]
    corrector = train_phrase_corrector(shuffled, settings=PhraseSettings(folds=2))
    held_out = make_lists(100, 1)
    before, after = word_errors(held_out, corrector.correct(held_out))
    assert 0.97 * before.errors <= after.errors <= 1.1 * before.errors


def test_perfect_lists_stay_as_they_are(corrector: PhraseCorrector) -> None:
    generator = np.random.default_rng(5)
    texts = [sentence(generator) for _ in range(200)]
    lists = [NBest(text, (Hypothesis(text, -1.0),) * 5) for text in texts]
    corrections = corrector.correct(lists)
    assert sum(c.unchanged for c in corrections) >= 198
    assert not any("scores" in c.reason for c in corrections)


def test_edits_rebuild_the_text_and_name_their_source(corrector: PhraseCorrector) -> None:
    changed = [c for c in corrector.correct(make_lists(100, 2)) if not c.unchanged]
    assert len(changed) > 30
    sources = set()
    for correction in changed:
        words = correction.input.split()
        for edit in reversed(correction.edits):
            assert " ".join(words[edit.start : edit.end]) == edit.before
            words[edit.start : edit.end] = edit.after.split()
            sources.add(edit.source.split()[0])
        assert " ".join(words) == correction.text
        assert correction.confidence is not None
        assert 0 < correction.confidence <= 1
    assert sources == {"hypothesis", "phrase"}


def test_kept_texts_are_returned_as_they_were_written(corrector: PhraseCorrector) -> None:
    written = "Show me the cheap fares from Denver to Miami."
    (correction,) = corrector.correct([NBest("x", (Hypothesis(written, -1.0),) * 5)])
    assert correction.unchanged
    assert correction.confidence is not None  # it was not skipped
    assert correction.text == correction.input == written
    assert correction.edits == ()


def test_empty_and_odd_lists(corrector: PhraseCorrector) -> None:
    lists = [
        NBest("none", ()),
        NBest("silent", (Hypothesis(""), Hypothesis(" ?"))),
        NBest("first-silent", (Hypothesis("", -1.0), Hypothesis("show me the cheap fares", -2.0))),
        NBest("foreign", (Hypothesis("ça va très bien merci 42", -3e5),)),
        NBest("long", (Hypothesis("show me fights " * 200, -1.0),)),
    ]
    corrections = dataclasses.replace(corrector, score_range=None).correct(lists)
    assert [c.id for c in corrections] == [nbest.id for nbest in lists]
    assert (corrections[0].text, corrections[0].unchanged, corrections[0].confidence) == ("", True, None)
    assert corrections[1].unchanged
    assert corrections[3].unchanged
    assert corrector.correct([]) == []


def test_the_gate_only_ever_keeps_more(corrector: PhraseCorrector) -> None:
    lists = make_lists(100, 3)
    kept = [
        [c.unchanged for c in dataclasses.replace(corrector, margin=margin).correct(lists)]
        for margin in (0.0, 2.0, 1e9)
    ]
    assert all(wide or not narrow for narrow, wide in zip(kept[0], kept[1], strict=True))
    assert all(kept[2])
    assert not all(kept[0])


def test_a_careful_corrector_keeps_more_of_what_was_right() -> None:
    lists = make_lists(150, 0)
    bold, careful, timid = (
        train_phrase_corrector(lists, settings=PhraseSettings(min_correct_retained=rate, folds=2))
        for rate in (0.0, 0.995, 1.0)
    )
    assert bold.margin <= careful.margin <= timid.margin
    held_out = make_lists(200, 1)
    right = [n for n in held_out if n.best == n.reference]
    kept = [sum(c.unchanged for c in corrector.correct(right)) for corrector in (bold, careful, timid)]
    assert kept[0] <= kept[1] <= kept[2]
    assert kept[2] >= 0.99 * len(right)


def test_training_twice_gives_the_same() -> None:
    first, second = (train_phrase_corrector(make_lists(60, 0)) for _ in range(2))
    assert np.array_equal(first.reranker.weights, second.reranker.weights)
    assert first.margin == second.margin
    assert first.knowledge.table.entries == second.knowledge.table.entries


def test_more_text_reaches_the_language_model() -> None:
    corrector = train_phrase_corrector(make_lists(60, 0), text=["A wholly different sentence."])
    assert "wholly" in corrector.knowledge.references
    assert "boston" in corrector.knowledge.references


def test_saved_corrector_is_the_same_and_loads_without_torch(corrector: PhraseCorrector, tmp_path: Path) -> None:
    folder = corrector.save(tmp_path / "phrase", {"seed": 0})
    lists = make_lists(30, 4)
    assert PhraseCorrector.load(folder).correct(lists) == corrector.correct(lists)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
    code = (
        "import sys; from audio_llm.ger.phrase import PhraseCorrector; from audio_llm.nbest import Hypothesis, NBest;"
        f"corrector = PhraseCorrector.load({str(folder)!r});"
        "(result,) = corrector.correct([NBest('a', (Hypothesis('show me the cheap fights from boston', -1.0),))]);"
        "assert 'flights' in result.text, result;"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_damaged_folders_are_typed_errors(corrector: PhraseCorrector, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        PhraseCorrector.load(tmp_path / "absent")
    folder = corrector.save(tmp_path / "phrase")
    config = folder / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"kind": "dlm"}))
    with pytest.raises(ModelFormatError, match="dlm"):
        PhraseCorrector.load(folder)
    config.write_text(json.dumps(document | {"config": {**document["config"], "weights": {}}}))
    with pytest.raises(ModelFormatError, match="lm"):
        PhraseCorrector.load(folder)
    config.write_text(json.dumps(document))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelFormatError, match="sha256"):
        PhraseCorrector.load(folder)


def test_too_few_lists_or_none_with_a_reference() -> None:
    with pytest.raises(DataError, match="too few"):
        train_phrase_corrector([])
    lists = [dataclasses.replace(nbest, reference=None) for nbest in make_lists(20, 0)]
    with pytest.raises(DataError, match="too few"):
        train_phrase_corrector(lists)


def test_left_out_lists_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    lists = [*make_lists(40, 0), NBest("empty", (), "a"), NBest("unknown", (Hypothesis("a"),))]
    train_phrase_corrector(lists, settings=PhraseSettings(folds=2))
    assert "2 of 42 lists skipped" in caplog.text


def test_reranker_learns_the_informative_feature() -> None:
    generator = np.random.default_rng(0)
    features, errors = [], []
    for _ in range(200):
        wrong = generator.integers(0, 4, size=6)
        noise = generator.normal(size=(6, 2))
        features.append(np.column_stack([noise[:, 0], -100.0 * wrong + 30 * noise[:, 1], np.ones(6)]))
        errors.append(wrong)
    reranker = train_reranker(features[:100], errors[:100])
    chosen = [e[np.argmax(reranker.scores(f))] - e.min() for f, e in zip(features[100:], errors[100:], strict=True)]
    assert np.mean(chosen) < 0.1
    assert abs(reranker.weights[0]) < 30 * abs(reranker.weights[1])
    assert reranker.weights[2] == 0


def test_fewest_expected_errors_may_choose_another_text_than_the_likeliest() -> None:
    texts = [("a", "b", "c"), ("x", "y", "z"), ("x", "y", "w"), ("x", "y")]
    p = np.array([0.4, 0.2, 0.2, 0.2])
    errors = expected_errors(np.log(p) + 7, texts)
    assert errors == pytest.approx([1.8, 0.4 * 3 + 0.2 + 0.2, 1.6, 1.6])
    assert int(np.argmin(errors)) == 1
    assert expected_errors(np.array([5.0]), texts[:1]) == pytest.approx([0.0])


def test_a_language_model_of_english_is_needed_where_one_was_learned_with(tmp_path: Path) -> None:
    lists = make_lists(60, 0)
    alone = train_phrase_corrector(lists, settings=PhraseSettings(language_model=""))
    assert alone.knowledge.general is None
    loaded = PhraseCorrector.load(alone.save(tmp_path / "alone"))
    assert loaded.knowledge.general is None
    assert loaded.correct(lists) == alone.correct(lists)
    folder = train_phrase_corrector(lists).save(tmp_path / "both")
    config = json.loads((folder / "config.json").read_text())
    config["config"]["general_sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match="another model"):
        PhraseCorrector.load(folder)
