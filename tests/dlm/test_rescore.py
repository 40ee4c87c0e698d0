from __future__ import annotations

import numpy as np
import pytest

from audio_llm.dlm.rescore import Scored, ScoreWeights, choose, fit_weights
from audio_llm.errors import DataError

POOL = [
    Scored("the recognizer likes this", {"asr": -10.0, "dlm": -9.0}),
    Scored("the other model likes that", {"asr": -14.0, "dlm": -1.0}),
    Scored("nobody does", {"asr": -20.0, "dlm": -20.0}),
]


def planted(count: int = 60, factor: float = 1.0, seed: int = 0) -> tuple[list[list[Scored]], list[str]]:
    """Utterances where the truth has the highest asr + factor * dlm, and a wrong text the highest of each alone."""
    rng = np.random.default_rng(seed)
    utterances, references = [], []
    for number in range(count):
        asr, dlm = rng.uniform(-30, 0, size=6), rng.uniform(-30, 0, size=6)
        best = int(np.argmax(asr + factor * dlm))
        texts = [f"right {number}" if i == best else f"wrong {number}" for i in range(6)]
        utterances.append([Scored(t, {"asr": a, "dlm": d}) for t, a, d in zip(texts, asr, dlm, strict=True)])
        references.append(f"right {number}")
    return utterances, references


def test_factor_zero_gives_the_recognizers_best_and_a_large_one_the_denoising_lms() -> None:
    assert choose(POOL, ScoreWeights({"asr": 1.0, "dlm": 0.0})) == 0
    assert choose(POOL, ScoreWeights({"asr": 1.0, "dlm": 1e6})) == 1
    assert choose(POOL, ScoreWeights({"asr": 1.0, "dlm": 0.45})) == 0
    assert choose(POOL, ScoreWeights({"asr": 1.0, "dlm": 0.55})) == 1


def test_total_is_the_weighted_sum_with_the_word_reward() -> None:
    assert ScoreWeights({"asr": 0.5, "dlm": 2.0}, 1.5).total(POOL[2]) == pytest.approx(-10.0 - 40.0 + 3.0)
    assert ScoreWeights({"dlm": 1.0}).total(POOL[0]) == -9.0
    longer = Scored("three more words", {"asr": -1.0})
    assert choose([Scored("one", {"asr": -0.5}), longer], ScoreWeights({"asr": 1.0}, 0.0)) == 0
    assert choose([Scored("one", {"asr": -0.5}), longer], ScoreWeights({"asr": 1.0}, 0.3)) == 1


def test_the_first_of_equals_is_chosen_so_that_order_decides_nothing_else() -> None:
    twins = [Scored("a", {"asr": -1.0}), Scored("b", {"asr": -1.0})]
    assert choose(twins, ScoreWeights({"asr": 1.0})) == 0
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        pool = [POOL[i] for i in order]
        assert pool[choose(pool, ScoreWeights({"asr": 1.0, "dlm": 1.0}))] is POOL[1]


@pytest.mark.parametrize(
    "split", ["test", "test_other", "dev", "kathleen-dev", "held-out-book", "TEST", "synthetic-tune+test-other"]
)
def test_tuning_on_a_reporting_set_is_refused(split: str) -> None:
    utterances, references = planted(2)
    with pytest.raises(DataError, match="not tuned on"):
        fit_weights(utterances, references, ["asr", "dlm"], split)


def test_a_part_of_a_development_set_that_was_set_aside_for_tuning_is_accepted() -> None:
    utterances, references = planted(2)
    for split in ("tune", "train", "synthetic-tune+real-tune-dev-clean"):
        assert fit_weights(utterances, references, ["asr", "dlm"], split).words == 4


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_fit_finds_a_planted_optimum(factor: float) -> None:
    utterances, references = planted(200, factor)
    result = fit_weights(utterances, references, ["asr", "dlm"], "tune", ridge=1e-6)
    weights = result.score_weights.weights
    assert weights["dlm"] / weights["asr"] == pytest.approx(factor, rel=0.2)
    assert result.words == 2 * len(references)
    assert result.errors <= 0.04 * len(references)


def test_fitted_factors_find_a_planted_optimum_and_leave_noise_alone() -> None:
    utterances, references = planted(count=200, factor=2.0)
    rng = np.random.default_rng(5)
    noisy = [[Scored(c.text, {**c.scores, "noise": rng.uniform(-30, 0)}) for c in u] for u in utterances]
    result = fit_weights(noisy, references, ["asr", "dlm", "noise"], "tune", ridge=1e-5)
    weights = result.score_weights.weights
    assert weights["dlm"] / weights["asr"] == pytest.approx(2.0, rel=0.15)
    assert abs(weights["noise"] / weights["asr"]) < 0.05
    assert result.errors < 0.05 * result.words
    assert result.errors == sum(
        u[choose(u, result.score_weights)].text != r for u, r in zip(noisy, references, strict=True)
    )
    strict = fit_weights(noisy, references, ["asr", "dlm", "noise"], "tune", ridge=1.0)
    assert abs(strict.score_weights.weights["dlm"]) < 0.2 * weights["dlm"]
    with pytest.raises(DataError, match="not tuned on"):
        fit_weights(noisy, references, ["asr"], "test")


def test_fitting_copes_with_lists_of_different_length() -> None:
    utterances, references = planted(count=40)
    shorter = [u[: 6 - i % 3] if u[0].text.startswith("right") else u for i, u in enumerate(utterances)]
    result = fit_weights(
        [*shorter, [Scored("right", {"asr": -1.0, "dlm": -1.0})]], [*references, "right"], ["asr", "dlm"], "tune"
    )
    assert result.errors <= 4


def test_every_candidate_needs_every_score() -> None:
    pool = [POOL[0], Scored("from the other beam", {"dlm": -1.0})]
    with pytest.raises(DataError, match="'from the other beam' has no score 'asr'"):
        choose(pool, ScoreWeights({"asr": 1.0, "dlm": 1.0}))
    with pytest.raises(DataError, match="has no score 'asr'"):
        fit_weights([pool], ["text"], ["asr", "dlm"], "tune")
