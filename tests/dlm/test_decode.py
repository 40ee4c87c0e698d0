"""Search against plain enumeration and against the scores of teacher forcing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from audio_llm.dlm import decode, vocab
from audio_llm.dlm.decode import Candidate, beam, dlm_sum, greedy, least_length, length_limit, log_probs
from audio_llm.dlm.model import DenoisingLM, ModelConfig, batch_sources, batch_targets

torch.set_num_threads(1)

HYPOTHESES = ["the cat sat", "a", "it's long", "on the hat rack"]
LIST = ["ab ba", "abba", "a"]


def tiny(symbols: str = vocab.SYMBOLS, seed: int = 0, end: float = 0.0) -> DenoisingLM:
    """An untrained, uneven model that writes some symbols only; `end` makes the end likelier."""
    torch.manual_seed(seed)
    model = DenoisingLM(ModelConfig(16, 32, 2, 1, 1, pointer=set(symbols) == set(vocab.SYMBOLS))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
        allowed = [vocab.EOS, *vocab.encode(symbols)]
        forbidden = [number for number in range(vocab.SIZE) if number not in allowed]
        model.output.bias[forbidden] = -1e4
        model.output.bias[vocab.EOS] += end
    return model


def all_texts(symbols: str, longest: int) -> list[str]:
    """Return every text of the symbols that is written as texts are: no space at an end and no two in a row."""
    texts = ("".join(t) for n in range(longest + 1) for t in itertools.product(symbols, repeat=n))
    return [text for text in texts if " ".join(text.split()) == text]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_is_the_argmax_of_teacher_forced_scores(seed: int) -> None:
    model = tiny(seed=seed, end=1.0)
    results = greedy(model, HYPOTHESES)
    for hypothesis, candidate in zip(HYPOTHESES, results, strict=True):
        with torch.no_grad():
            rows = model(*batch_sources([hypothesis]), batch_targets([candidate.text])[0])[0]
        chosen = [*vocab.encode(candidate.text), *([vocab.EOS] if candidate.finished else [])]
        assert candidate.finished or len(candidate.text) + 2 > length_limit(hypothesis)
        last = vocab.BOS
        for position, number in enumerate(chosen):
            scores = rows[position].clone()
            scores[[vocab.PAD, vocab.BOS, vocab.UNK]] = -math.inf
            if last in (vocab.BOS, vocab.encode(" ")[0]):
                scores[vocab.encode(" ")[0]] = -math.inf
            if last == vocab.encode(" ")[0]:
                scores[vocab.EOS] = -math.inf
            assert int(scores.argmax()) == number
            last = number


def test_greedy_in_a_batch_equals_one_by_one_and_scores_equal_log_probs() -> None:
    for seed in range(4):
        model = tiny(seed=seed, end=2.0)
        together = greedy(model, HYPOTHESES)
        for hypothesis, candidate in zip(HYPOTHESES, together, strict=True):
            (alone,) = greedy(model, [hypothesis])
            assert alone.text == candidate.text
            assert alone.log_prob == pytest.approx(candidate.log_prob, abs=1e-3)
            if candidate.finished:
                assert candidate.log_prob == pytest.approx(
                    log_probs(model, [hypothesis], [candidate.text])[0], abs=1e-3
                )


def test_greedy_keeps_the_order_of_more_hypotheses_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "BATCH", 3)
    model = tiny(seed=1, end=3.0)
    rng = np.random.default_rng(0)
    hypotheses = ["".join(rng.choice(list("abc"), size=size)) for size in rng.integers(1, 6, size=10)]
    results = greedy(model, hypotheses)
    assert [c.text for c in results] == [greedy(model, [h])[0].text for h in hypotheses]


def test_no_text_is_much_shorter_than_the_hypothesis() -> None:
    model, hypothesis = tiny(seed=1, end=9.0), "a long text of thirty letters"  # it wants to end at once
    least = least_length(hypothesis)
    assert (least, least_length("abcdef"), least_length("a" * 400)) == (15, 0, 350)
    results = [*greedy(model, [hypothesis, ""]), *dlm_sum(model, [hypothesis, hypothesis + "s"], [0.0, 0.0], 3, 3)]
    assert [len(c.text) >= least for c in results] == [True, False, True, True, True]
    assert min(len(c.text) for c in beam(model, hypothesis, 4)) >= least


def test_the_length_limit_counts_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert length_limit("") == 20
    assert length_limit("abcd") == 26
    monkeypatch.setattr(decode, "length_limit", lambda hypothesis: 4)
    endless = tiny("a", end=-1e3)
    (candidate,) = greedy(endless, ["a"])
    assert candidate.text == "aaaa"
    assert not candidate.finished
    ending = tiny("a", end=1e3)
    assert greedy(ending, ["a"])[0].text == ""
    assert max(len(c.text) for c in beam(endless, "a", 8)) == 3


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_beam_equals_enumeration_of_a_three_symbol_toy(monkeypatch: pytest.MonkeyPatch, seed: int, end: float) -> None:
    """Symbols a, b and the end, up to four characters: 31 texts. EOS left out of a score would change the order."""
    monkeypatch.setattr(decode, "length_limit", lambda hypothesis: 5)
    model = tiny("ab", seed, end)
    texts = all_texts("ab", 4)
    scores = dict(zip(texts, log_probs(model, ["abba"] * len(texts), texts), strict=True))
    ranked = sorted(texts, key=lambda text: -scores[text])
    assert sum(map(math.exp, scores.values())) < 1.0 + 1e-6

    results = beam(model, "abba", 31)
    assert [c.text for c in results] == ranked
    assert [c.log_prob for c in results] == pytest.approx([scores[text] for text in ranked], abs=1e-3)
    for width in (1, 2, 5):
        some = beam(model, "abba", width)
        assert len(some) == width
        assert [c.log_prob for c in some] == sorted((c.log_prob for c in some), reverse=True)
        assert [c.log_prob for c in some] == pytest.approx([scores[c.text] for c in some], abs=1e-3)
    # Sixteen prefixes are all there are before the last character: nothing can be lost.
    assert beam(model, "abba", 16)[0].text == ranked[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_with_spaces_have_one_writing_and_its_score(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(decode, "length_limit", lambda hypothesis: 5)
    model = tiny("a ", seed, 0.5)
    texts = all_texts("a ", 4)
    assert "a a" in texts
    assert " a" not in texts
    results = beam(model, "a a", 40)[: len(texts)]  # what follows has a forbidden symbol
    assert {c.text for c in results} == set(texts)
    expected = log_probs(model, ["a a"] * len(results), [c.text for c in results])
    assert [c.log_prob for c in results] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("width", [4, 40])
def test_beam_of_the_whole_alphabet_has_distinct_texts_with_their_log_probs(width: int) -> None:
    model = tiny(seed=2, end=3.0)
    results = beam(model, "the cat", width)
    assert len({c.text for c in results}) == len(results) == width
    assert all(math.isfinite(c.log_prob) for c in results)
    expected = log_probs(model, ["the cat"] * len(results), [c.text for c in results])
    assert [c.log_prob for c in results] == pytest.approx(expected, abs=1e-3)
    assert results == sorted(results, key=lambda c: -c.log_prob)
    (best,) = greedy(model, ["the cat"])
    assert results[0].log_prob >= best.log_prob - 1e-4


def test_the_sum_over_one_hypothesis_is_the_beam() -> None:
    model = tiny(seed=1, end=2.0)
    one, plain = dlm_sum(model, ["the cat"], [-7.3], 6, 6), beam(model, "the cat", 6)
    assert [c.text for c in one] == [c.text for c in plain]
    assert [c.log_prob for c in one] == pytest.approx([c.log_prob for c in plain], abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sum_equals_enumeration(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(decode, "length_limit", lambda hypothesis: 5)
    model, weights = tiny("ab", seed), [-1.0, -3.5, 0.4]
    texts = all_texts("ab", 4)
    normalized = np.array(weights) - np.logaddexp.reduce(weights)
    rows = np.array([log_probs(model, [listed] * len(texts), texts) for listed in LIST])
    summed = dict(zip(texts, np.logaddexp.reduce(normalized[:, None] + rows, axis=0).tolist(), strict=True))
    results = dlm_sum(model, LIST, weights, 31, 31)
    assert [c.text for c in results] == sorted(texts, key=lambda text: -summed[text])
    assert [c.log_prob for c in results] == pytest.approx([summed[c.text] for c in results], abs=1e-3)


def test_neither_the_order_of_hypotheses_nor_a_constant_in_the_weights_matters() -> None:
    model, weights = tiny(seed=3, end=2.0), [-1.0, -2.0, 0.5]
    results = dlm_sum(model, LIST, weights, 5, 5)
    order = [2, 0, 1]
    turned = dlm_sum(model, [LIST[i] for i in order], [weights[i] + 100.0 for i in order], 5, 5)
    assert [c.text for c in turned] == [c.text for c in results]
    assert [c.log_prob for c in turned] == pytest.approx([c.log_prob for c in results], abs=1e-3)
    certain, plain = dlm_sum(model, LIST, [-1e3, 0.0, -1e3], 5, 5), beam(model, LIST[1], 5)
    assert [c.text for c in certain] == [c.text for c in plain]
    assert [c.log_prob for c in certain] == pytest.approx([c.log_prob for c in plain], abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sum_ends_early_with_the_same_best_text(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(decode, "length_limit", lambda hypothesis: 5)
    model = tiny("ab", seed)
    (best,) = dlm_sum(model, LIST, [-1.0, -3.5, 0.4], 31)
    assert best.text == dlm_sum(model, LIST, [-1.0, -3.5, 0.4], 31, 31)[0].text


def test_empty_input() -> None:
    model = tiny(end=2.0)
    assert greedy(model, []) == []
    assert dlm_sum(model, [], [], 4) == []
    (candidate,) = greedy(model, [""])
    assert candidate.log_prob == pytest.approx(log_probs(model, [""], [candidate.text])[0], abs=1e-3)
    assert beam(model, "", 3)[0].log_prob >= candidate.log_prob - 1e-4


def test_searching_leaves_the_model_trainable() -> None:
    model = tiny().train()
    greedy(model.eval(), HYPOTHESES)
    beam(model, "a", 3)
    model.train()
    loss = -model(*batch_sources(HYPOTHESES), batch_targets(HYPOTHESES)[0]).mean()
    loss.backward()
    assert all(p.grad is not None for p in model.output.parameters())
    assert isinstance(greedy(model.eval(), ["a"])[0], Candidate)


def test_search_and_scores_in_one_go_equal_both_alone() -> None:
    model = tiny(seed=3, end=1.0)
    texts = ["the cat sat", "a", "on a hat"]
    for hypothesis in HYPOTHESES:
        candidate, scores = decode.greedy_and_log_probs(model, hypothesis, texts)
        (alone,) = decode.greedy(model, [hypothesis])
        assert (candidate.text, candidate.finished) == (alone.text, alone.finished)
        assert candidate.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
        assert scores == pytest.approx(decode.log_probs(model, [hypothesis] * 3, texts), abs=1e-4)
    assert decode.greedy_and_log_probs(model, "ab", [])[1] == []  # the search alone
