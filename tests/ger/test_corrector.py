"""Tests of the neural corrector as a whole, and as the phrase corrector's neural reranker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_llm.cli import main
from audio_llm.errors import DataError, OutOfMemoryError, UsageError
from audio_llm.gate import Gate
from audio_llm.ger import decode
from audio_llm.ger.checkpoint import GerCheckpoint, save
from audio_llm.ger.corrector import GerCorrector
from audio_llm.ger.neural import NeuralScorer
from audio_llm.ger.phrase import PhraseSettings, shortlist
from audio_llm.ger.phrase_table import Words
from audio_llm.ger.phrase_training import NeuralFolds, fold_of_lists, fold_of_reference, train_phrase_corrector
from audio_llm.ger.settings import GerDecoding
from audio_llm.nbest import Hypothesis, NBest, write_nbest
from audio_llm.pipeline.correct import list_length, load_corrector

Memorized = list[tuple[tuple[str, ...], str]]


def as_lists(memorized: Memorized, copies: int = 1) -> list[NBest]:
    return [
        NBest(f"{copy}-{number}", tuple(Hypothesis(text) for text in hypotheses), true)
        for copy in range(copies)
        for number, (hypotheses, true) in enumerate(memorized)
    ]


def open_gate(checkpoint: GerCheckpoint) -> GerCheckpoint:
    gates = dict.fromkeys(("free", "list", "slots"), Gate(0.0, 1.0))
    return replace(checkpoint, decoding=GerDecoding(gates=gates))


def test_memorized_lists_are_corrected_and_edits_reported(trained: Any, memorized: Memorized) -> None:
    corrections = GerCorrector(open_gate(trained)).correct(as_lists(memorized))
    assert [correction.text for correction in corrections] == [true for _, true in memorized]
    first = corrections[0]
    assert (first.input, first.unchanged) == ("the hat sat on the mat", False)
    assert [(e.before, e.after, e.source) for e in first.edits] == [("hat", "cat", "hypothesis 2")]
    assert first.confidence is not None
    assert first.confidence > 0.9
    assert corrections[-1].unchanged
    assert corrections[-1].reason == "no change proposed"


@pytest.mark.parametrize("mode", ["list", "slots"])
def test_restricted_modes_write_words_of_the_list_only(trained: Any, memorized: Memorized, mode: Any) -> None:
    for correction, (hypotheses, _) in zip(
        GerCorrector(trained, mode, gate=False).correct(as_lists(memorized)), memorized, strict=True
    ):
        assert set(correction.text.split()) <= {word for text in hypotheses for word in text.split()}


def test_gate_keeps_the_text_with_a_reason(trained: Any) -> None:
    nbest = NBest("x", (Hypothesis("i sea you there"),))
    for gate, reason in (
        (Gate(1e9), "below the margin"),
        (Gate(0.0, 0.1), "of the words would change"),
        (Gate(0.0, 1.0, max_novel=0), "see: in no hypothesis"),
    ):
        checkpoint = replace(trained, decoding=GerDecoding(gates={"free": gate}))
        (correction,) = GerCorrector(checkpoint).correct([nbest])
        assert correction.unchanged
        assert correction.text == "i sea you there"
        assert reason in correction.reason
    (correction,) = GerCorrector(checkpoint, gate=False).correct([nbest])
    assert correction.text == "i see you there"


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["ünï çödé 日本語"], ["word " * 2000], ["a b"] * 20])
def test_lists_of_every_kind_are_answered(trained: Any, texts: list[str]) -> None:
    nbest = NBest("x", tuple(Hypothesis(text) for text in texts))
    (correction,) = GerCorrector(trained).correct([nbest])
    assert correction.id == "x"
    assert bool(correction.text) == any(texts)
    assert correction.input == nbest.best if any(texts) else correction.unchanged


def test_too_little_memory_is_an_error_with_a_remedy(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*arguments: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(decode, "greedy", burst)
    with pytest.raises(OutOfMemoryError, match="--device cpu"):
        GerCorrector(trained).correct([NBest("x", (Hypothesis("a"),))])


def test_unknown_mode(trained: Any) -> None:
    with pytest.raises(UsageError, match="free, list, slots"):
        GerCorrector(trained, "all")  # type: ignore[arg-type]


def test_command_line_corrects_with_a_saved_model(
    trained: Any, memorized: Memorized, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "model", open_gate(trained), {})
    with (tmp_path / "lists.jsonl").open("w") as file:
        write_nbest(as_lists(memorized), file)
    lists = str(tmp_path / "lists.jsonl")
    assert main(["correct", lists, "--with", "ger", "--model", str(folder), "--mode", "free"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [true for _, true in memorized]
    assert list_length("ger", str(folder)) == 3
    assert main(["correct", lists, "--with", "dlm", "--mode", "free"]) == 2
    assert main(["correct", lists, "--with", "dlm", "--llm", "x"]) == 2


def test_command_line_trains_a_phrase_corrector(
    memorized: Memorized, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "lists.jsonl").open("w") as file:
        write_nbest(as_lists(memorized, 4), file)
    lists, out = str(tmp_path / "lists.jsonl"), str(tmp_path / "out")
    command = ["train", "ger", "--kind", "phrase", "--data", lists, "-o", out, "folds=2"]
    assert main(command) == 0
    assert main(command) == 2  # it is there already
    assert main([*command, "--llm", "x"]) == 2
    capsys.readouterr()
    assert main(["correct", lists, "--with", "phrase", "--model", f"{out}/best"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(as_lists(memorized, 4))
    assert main(["train", "ger", "--data", lists, "-o", out]) == 2
    assert "--llm" in capsys.readouterr().err


@dataclass(frozen=True)
class Knowing:
    """A neural corrector that knows the references."""

    true: dict[tuple[Words, ...], Words]

    def write(self, lists: Sequence[Sequence[Words]]) -> list[Words]:
        return [self.true[tuple(texts)] for texts in lists]

    def log_probs(self, hypotheses: Sequence[Words], candidates: Sequence[Words]) -> list[float]:
        return [-1.0 if words == self.true[tuple(hypotheses)] else -20.0 for words in candidates]

    def log_probs_alone(self, candidates: Sequence[Words]) -> list[float]:
        return [-10.0] * len(candidates)


def random_lists(count: int) -> list[NBest]:
    """Lists whose errors follow no rule: without help nothing can be learned."""
    rng = np.random.default_rng(0)
    words = [a + b for a in "bcdfg" for b in ("am", "el", "in", "ob", "ug", "ot")]
    lists = []
    for number in range(count):
        true = [str(word) for word in rng.choice(words, size=6)]
        recognized = [str(rng.choice(words)) if rng.random() < 0.3 else word for word in true]
        lists.append(NBest(str(number), (Hypothesis(" ".join(recognized)),), " ".join(true)))
    return lists


def test_a_neural_reranker_that_knows_the_references_corrects_everything() -> None:
    lists = random_lists(90)
    words = [tuple((nbest.reference or "").split()) for nbest in lists]
    scorer: Any = Knowing({(tuple(n.best.split()),): w for n, w in zip(lists, words, strict=True)})
    folds = NeuralFolds((scorer,) * 2, scorer)
    learned = train_phrase_corrector(lists[:60], settings=PhraseSettings(folds=2), neural=folds)
    assert [c.text for c in learned.correct(lists[60:])] == [nbest.reference for nbest in lists[60:]]
    alone = train_phrase_corrector(lists[:60], settings=PhraseSettings(folds=2))
    assert sum(c.text == n.reference for c, n in zip(alone.correct(lists[60:]), lists[60:], strict=True)) < 15


def test_each_group_is_a_fold() -> None:
    lists = random_lists(40)
    groups = ["b" if number % 4 else "a" for number in range(len(lists))]
    true = {(tuple(n.best.split()),): tuple((n.reference or "").split()) for n in lists}
    scorers: Any = [Overheard(true, set()) for _ in range(2)]
    settings = PhraseSettings(language_model="")
    train_phrase_corrector(lists, settings=settings, neural=NeuralFolds(tuple(scorers), scorers[0]), groups=groups)
    for name, scorer in zip("ab", scorers, strict=True):
        own = [n for n, group in zip(lists, groups, strict=True) if group == name]
        assert scorer.asked == {tuple((n.reference or "").split()) for n in own}
    with pytest.raises(UsageError, match="1 neural correctors for 2 folds"):
        train_phrase_corrector(lists, settings=settings, neural=NeuralFolds((scorers[0],), scorers[0]), groups=groups)
    with pytest.raises(DataError, match="39 groups for 40 lists"):
        train_phrase_corrector(lists, settings=settings, groups=groups[1:])


@dataclass(frozen=True)
class Overheard(Knowing):
    """The same, which remembers whose lists it was asked about."""

    asked: set[Words]

    def log_probs(self, hypotheses: Sequence[Words], candidates: Sequence[Words]) -> list[float]:
        self.asked.add(self.true[tuple(hypotheses)])
        return super().log_probs(hypotheses, candidates)


def test_each_fold_is_scored_by_its_neural_corrector_and_the_first_pass_is_trained_without_any() -> None:
    lists, settings = random_lists(40), PhraseSettings(folds=2, language_model="")
    true = {(tuple(n.best.split()),): tuple((n.reference or "").split()) for n in lists}
    scorers: Any = [Overheard(true, set()) for _ in range(2)]
    learned = train_phrase_corrector(lists, settings=settings, neural=NeuralFolds(tuple(scorers), scorers[0]))
    fold_of = fold_of_lists(lists, 0, settings)
    assert fold_of == fold_of_reference(list(true.values()), 2, 0)
    for fold, scorer in enumerate(scorers):
        assert scorer.asked == {words for words in true.values() if fold_of[words] == fold}
    alone = train_phrase_corrector(lists, settings=settings)
    assert np.array_equal(alone.reranker.weights, learned.reranker.weights)
    assert alone.margin == learned.margin
    assert replace(learned, neural_reranker=None).correct(lists) == alone.correct(lists)


def test_a_corrector_with_neural_reranker_is_saved_and_loaded(
    trained: Any, memorized: Memorized, tmp_path: Path
) -> None:
    scorer = NeuralScorer(trained)
    lists = as_lists(memorized, 4)
    settings = PhraseSettings(folds=2, shortlist=4)
    learned = train_phrase_corrector(lists, settings=settings, neural=NeuralFolds((scorer, scorer), scorer))
    folder = learned.save(tmp_path / "model")
    before, after = learned.correct(lists), load_corrector("ger", str(folder)).correct(lists)
    assert [c.text for c in after] == [c.text for c in before]
    assert sum(c.text == nbest.reference for c, nbest in zip(before, lists, strict=True)) > 0.8 * len(lists)
    with pytest.raises(UsageError, match="leave it out"):
        load_corrector("ger", str(folder), decode="slots")


def test_shortlist_always_holds_the_first() -> None:
    assert shortlist(np.array([0.0, 3.0, 1.0, 2.0]), 3, 4) == [0, 1, 3]
    assert shortlist(np.array([0.0, 3.0, 1.0]), 2, 4) == [0, 1, 3]  # the last was written by another
    assert shortlist(np.array([9.0]), 3, 1) == [0]


def test_folds_keep_a_reference_together() -> None:
    references = [("a",), ("b",), ("a",), ("c",), ("d",)]
    folds = fold_of_reference(references, 2, 0)
    assert folds == fold_of_reference(references[::-1], 2, 0)
    assert sorted(folds.values()) == [0, 0, 1, 1]
