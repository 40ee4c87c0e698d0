"""Drawing the next token: only from what is allowed, as likely as it should be, and repeatable."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audio_llm.errors import ConfigError
from audio_llm.lm.sampling import GREEDY, MEDIAN, Sampling, draw, draw_without_loops, median
from audio_llm.quantizers.fsq import FSQ

torch.set_num_threads(1)
LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
QUARTERS = st.integers(-120, 120).map(lambda number: number / 4)  # alike or clearly apart, as float32 too


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fractions(logits: Tensor, sampling: Sampling, count: int = 20_000) -> list[float]:
    """Return how often each token was drawn."""
    drawn = draw(logits.expand(count, -1), sampling, seeded())
    return (torch.bincount(drawn, minlength=logits.shape[-1]) / count).tolist()


def test_greedy_takes_the_likeliest_of_each_row() -> None:
    logits = torch.randn(50, 9, generator=seeded())
    assert torch.equal(draw(logits, GREEDY), logits.argmax(-1))
    assert torch.equal(draw(logits, Sampling(top_k=1), seeded()), logits.argmax(-1))
    assert torch.equal(draw(logits, Sampling(top_p=1e-6), seeded()), logits.argmax(-1))


def test_draws_are_as_likely_as_they_should_be() -> None:
    assert fractions(LOGITS, Sampling()) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.015)
    squares = [p * p / 0.3 for p in (0.1, 0.4, 0.2, 0.3)]
    assert fractions(LOGITS, Sampling(temperature=0.5)) == pytest.approx(squares, abs=0.015)


def test_top_k_keeps_the_likeliest() -> None:
    assert fractions(LOGITS, Sampling(top_k=2)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.015)
    assert fractions(LOGITS, Sampling(top_k=99)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.015)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.39, [0, 1, 0, 0]), (0.5, [0, 4 / 7, 0, 3 / 7]), (0.85, [0, 4 / 9, 2 / 9, 3 / 9]), (0.95, [0.1, 0.4, 0.2, 0.3])],
)
def test_top_p_keeps_the_fewest_that_have_that_probability(top_p: float, expected: list[float]) -> None:
    assert fractions(LOGITS, Sampling(top_p=top_p)) == pytest.approx(expected, abs=0.015)


def test_top_p_counts_what_top_k_and_temperature_left() -> None:
    # of 4/7 and 3/7 the first alone has more than a half
    assert fractions(LOGITS, Sampling(top_k=2, top_p=0.5)) == pytest.approx([0, 1, 0, 0])
    assert fractions(LOGITS, Sampling(temperature=0.25, top_p=0.6)) == pytest.approx([0, 1, 0, 0])


def test_the_same_seed_draws_the_same() -> None:
    logits, sampling = torch.randn(200, 30, generator=seeded()), Sampling(temperature=1.2, top_k=20, top_p=0.9)
    one = draw(logits, sampling, seeded(7))
    torch.manual_seed(123)  # the global generator has no say
    assert torch.equal(draw(logits, sampling, seeded(7)), one)
    assert not torch.equal(draw(logits, sampling, seeded(8)), one)


@given(
    rows=st.lists(
        st.lists(st.one_of(QUARTERS, st.just(-math.inf)), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ).filter(lambda rows: all(max(row) > -math.inf for row in rows)),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0]),
    top_k=st.integers(0, 7),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_only_what_is_allowed_comes(
    rows: list[list[float]], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    logits = torch.tensor(rows)
    drawn = draw(logits, Sampling(temperature, top_k, top_p), seeded(seed))
    assert drawn.shape == (len(rows),)
    for row, token in zip(rows, drawn.tolist(), strict=True):
        assert row[token] > -math.inf
        likelier = [value for value in row if value > row[token]]
        if temperature == 0.0:
            assert not likelier
            continue
        assert not top_k or len(likelier) < top_k
        left = sorted((value for value in row if value > -math.inf), reverse=True)
        least = left[min(top_k or len(left), len(left)) - 1]
        weights = [math.exp((value - left[0]) / temperature) for value in row if value >= least]
        before = sum(math.exp((value - left[0]) / temperature) for value in likelier) / sum(weights)
        assert before < top_p + 1e-4


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        Sampling(**wrong)


def test_the_median_is_nearer_on_average_than_every_other_token() -> None:
    fsq, levels = FSQ((4, 3, 5)), [4, 3, 5]
    digits = fsq.digits(torch.arange(fsq.size))
    grid = torch.cat([torch.nn.functional.one_hot(digits[:, k], size) for k, size in enumerate(levels)], dim=1).float()
    probabilities = (3.0 * torch.randn(40, fsq.size, generator=seeded())).softmax(-1)
    distances = (digits[:, None] - digits[None]).abs().sum(-1).float()
    expected = probabilities @ distances  # of taking each token
    chosen = median(probabilities, grid, levels)
    assert torch.allclose(expected.gather(1, chosen[:, None])[:, 0], expected.min(-1).values, atol=1e-5)
    likeliest = probabilities.argmax(-1)
    assert (chosen != likeliest).any()
    assert expected.gather(1, likeliest[:, None]).mean() > expected.min(-1).values.mean()


def test_only_draws_are_random() -> None:
    assert not GREEDY.is_random
    assert not MEDIAN.is_random
    assert Sampling(0.5).is_random
    with pytest.raises(ConfigError, match="at their defaults with the median"):
        Sampling(0.5, median=True)


def history(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_what_did_not_come_often_is_drawn_as_ever() -> None:
    logits, sampling = torch.randn(30, 9, generator=seeded()), Sampling(temperature=0.7, top_k=3)
    wanted = draw(logits, sampling, seeded(4))
    for past in (torch.zeros(30, 0, dtype=torch.int64), wanted[:, None], torch.stack([wanted] * 2, dim=1)):
        assert torch.equal(draw_without_loops(logits, past, sampling, generator=seeded(4)), wanted)


def test_frequent_recent_tokens_are_resampled_from_all() -> None:
    likely = torch.tensor([0.0, 6.0, 4.0, 0.0, -math.inf]).expand(4000, -1)
    past = history([1] * 3).expand(4000, -1)
    drawn = draw_without_loops(likely, past, Sampling(top_k=1), generator=seeded())
    fractions = torch.bincount(drawn, minlength=5) / 4000
    assert torch.allclose(fractions, likely[0].softmax(-1), atol=0.02)  # not of the likeliest alone
    assert fractions[4] == 0.0
    assert fractions[1] > 0.5  # it is not forbidden


ONE = Sampling(top_k=1)  # random in name


def test_only_the_last_ones_count_and_each_row_for_itself() -> None:
    # in a loop the one choice that there is leaves it now and then, else never
    logits = torch.tensor([0.0, 2.0, 0.0]).expand(4, -1)
    past = history([1] * 13, [1, 1, 1] + [0] * 10, [1, 0] * 6 + [1], [0] * 13)
    found = [draw_without_loops(logits, past, ONE, generator=seeded(seed)).tolist() for seed in range(60)]
    assert {row[0] for row in found} == {0, 1, 2}
    assert {row[1] for row in found} == {1}  # long ago
    assert {row[2] for row in found} == {0, 1, 2}  # five of ten
    assert {row[3] for row in found} == {1}
    assert {draw_without_loops(logits, past, ONE, window=3, generator=seeded(s)).tolist()[2] for s in range(60)} == {1}
    assert {draw_without_loops(logits, past, ONE, most=10, generator=seeded(s)).tolist()[0] for s in range(60)} == {1}


def test_loops_are_left_the_same_way_with_the_same_seed() -> None:
    logits = torch.randn(50, 20, generator=seeded())
    past = logits.argmax(-1)[:, None].expand(-1, 5)
    one, same, other = (draw_without_loops(logits, past, ONE, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (50,)
    assert one.dtype == torch.int64


def test_the_likeliest_is_taken_whatever_came_before() -> None:
    logits = torch.randn(50, 20, generator=seeded())
    past = logits.argmax(-1)[:, None].expand(-1, 5)
    assert torch.equal(draw_without_loops(logits, past, GREEDY), logits.argmax(-1))
