"""The token language model: no sight of the future, given positions, and generation that equals no cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audio_llm.errors import ConfigError, UsageError
from audio_llm.lm.sampling import GREEDY, MEDIAN, Sampling, median
from audio_llm.lm.token_lm import Decoding, Sequence, TokenLm, TokenLmConfig, additive_mask, join
from audio_llm.lm.vocabulary import BOS, EOS, PAD
from audio_llm.quantizers.fsq import FSQ

torch.set_num_threads(1)
TINY = TokenLmConfig({"a": 12, "b": 9}, segments=3, width=16, layers=2, heads=2, feed_forward=32, dropout=0.0)


def make_lm(config: TokenLmConfig = TINY, seed: int = 0, vectors: dict[str, Tensor] | None = None) -> TokenLm:
    """Return a model whose weights are large enough for everything to matter."""
    torch.manual_seed(seed)
    lm = TokenLm(config, vectors)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return lm.eval()


def sequence(batch: int = 2, size: int = 10, seed: int = 0) -> Sequence:
    """Return random tokens of both ranges; positions that repeat and are no whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 25, (batch, size), generator=generator)
    segments = torch.randint(3, (batch, size), generator=generator)
    positions = torch.randint(12, (batch, size), generator=generator) / 2
    return Sequence(ids, segments, positions)


def joined(one: Sequence, other: Sequence) -> Sequence:
    return Sequence(*(torch.cat(parts, dim=1) for parts in zip(one, other, strict=True)))


def padded(given: Sequence, count: int) -> Sequence:
    """Return a sequence behind `count` places of padding."""
    ids = torch.nn.functional.pad(given.ids, (count, 0), value=PAD)
    return Sequence(ids, *(torch.nn.functional.pad(part, (count, 0)) for part in given[1:]))


@pytest.mark.parametrize("place", [0, 4, 9])
@pytest.mark.parametrize("part", ["ids", "segments", "positions"])
def test_future_tokens_do_not_change_earlier_outputs(place: int, part: str) -> None:
    lm, given = make_lm(), sequence()
    changed = getattr(given, part).clone()
    changed[:, place] = {"ids": 4 + (changed[:, place] - 3) % 21, "segments": (changed[:, place] + 1) % 3}.get(
        part, changed[:, place] + 3.5
    )
    with torch.no_grad():
        before, after = lm(given), lm(given._replace(**{part: changed}))
    assert before.shape == (2, 10, 16)
    torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-5, rtol=1e-4)
    difference = (after - before).abs().amax(-1)
    if part == "positions" and place == 0:  # alone at its place, nothing to be turned against
        torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-5, rtol=1e-4)
    else:
        assert (difference[:, place] > 1e-3).all()
    assert (difference[:, place + 1 :] > 1e-5).all()


def test_only_differences_of_positions_count() -> None:
    lm, given = make_lm(), sequence()
    with torch.no_grad():
        before = lm(given)
        shifted = lm(given._replace(positions=given.positions + 7.5))
        stretched = lm(given._replace(positions=given.positions * 2.0))
    torch.testing.assert_close(shifted, before, atol=1e-4, rtol=1e-3)
    assert (stretched - before).abs().max() > 1e-2


def test_a_batch_equals_one_by_one() -> None:
    lm, given = make_lm(), sequence(4)
    with torch.no_grad():
        together = lm(given)
        for row in range(4):
            alone = lm(Sequence(*(part[row : row + 1] for part in given)))
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-4)


def test_padding_on_the_left_changes_nothing() -> None:
    lm, given = make_lm(), sequence()
    with torch.no_grad():
        torch.testing.assert_close(lm(padded(given, 5))[:, 5:], lm(given), atol=1e-5, rtol=1e-4)
        assert torch.isfinite(lm(padded(given, 5))).all()


def test_masks_are_additive_and_hide_the_future_and_padding() -> None:
    mask = additive_mask(torch.tensor([[False, False, True, True], [True] * 4]))
    assert mask.shape == (2, 1, 4, 4)
    assert (mask[0, 0] == 0).tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert torch.equal(mask[1, 0] == 0, torch.ones(4, 4, dtype=torch.bool).tril())
    assert mask.min() < -1e30
    assert torch.isfinite(mask).all()


@pytest.mark.parametrize("name", ["a", "b"])
def test_generation_equals_generation_without_a_cache(name: str) -> None:
    lm, prompt, target = make_lm(), sequence(3, 8), sequence(3, 7, seed=5)
    found = lm.generate(prompt, target, name)
    assert found.ids.shape == found.log_probs.shape == (3, 7)
    so_far, span = prompt, lm.vocabulary.span(name)
    with torch.no_grad():
        for step in range(7):
            log_probs = lm.logits(lm(so_far)[:, -1], name).log_softmax(-1)
            ids = log_probs.argmax(-1) + span.start
            assert torch.equal(found.ids[:, step], ids)
            torch.testing.assert_close(found.log_probs[:, step], log_probs.amax(-1), atol=1e-4, rtol=1e-3)
            so_far = joined(so_far, Sequence(ids[:, None], *(part[:, step : step + 1] for part in target[1:])))
    assert len(found.ids.unique()) > 1


def test_prompts_of_varied_length_are_continued_as_each_alone() -> None:
    lm, target = make_lm(), sequence(1, 6, seed=5)
    prompts = [sequence(1, size, seed=size) for size in (3, 8, 5)]
    rows = [padded(prompt, 8 - prompt.ids.shape[1]) for prompt in prompts]
    together = Sequence(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
    found = lm.generate(together, expanded(target, 3), "b", GREEDY)
    for row, prompt in enumerate(prompts):
        alone = lm.generate(prompt, target, "b")
        assert torch.equal(found.ids[row], alone.ids[0])
        torch.testing.assert_close(found.log_probs[row], alone.log_probs[0], atol=1e-4, rtol=1e-3)


def expanded(given: Sequence, batch: int) -> Sequence:
    return Sequence(*(part.expand(batch, -1) for part in given))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_is_generated_is_of_the_range_asked_for() -> None:
    lm, prompt, target = make_lm(), sequence(8), sequence(8, 20, seed=3)
    for name in ("a", "b"):
        span = lm.vocabulary.span(name)
        ids = lm.generate(prompt, target, name, Sampling(temperature=3.0), seeded()).ids
        assert ids.min() >= span.start
        assert ids.max() < span.stop
        assert len(ids.unique()) == len(span)  # so hot that everything comes
    with pytest.raises(UsageError, match="'c'"):
        lm.generate(prompt, target, "c")


def test_log_probs_are_those_before_drawing() -> None:
    lm, prompt, target = make_lm(), sequence(4), sequence(4, 5, seed=3)
    found = lm.generate(prompt, target, "a", Sampling(temperature=0.5, top_k=3), seeded())
    whole = joined(prompt, target._replace(ids=found.ids))
    with torch.no_grad():
        log_probs = lm.logits(lm(whole)[:, 9:-1], "a").log_softmax(-1)
    expected = log_probs.gather(2, (found.ids - 4)[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs, expected, atol=1e-4, rtol=1e-3)


def test_the_same_seed_generates_the_same() -> None:
    lm, prompt, target = make_lm(), sequence(2), sequence(2, 12, seed=3)
    one, same, other = (lm.generate(prompt, target, "a", Sampling(), seeded(seed)).ids for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("part", ["segments", "positions"])
def test_where_the_target_lies_matters(part: str) -> None:
    lm, prompt, target = make_lm(), sequence(4), sequence(4, 9, seed=3)
    other = target._replace(**{part: (getattr(target, part) + 1) % (3 if part == "segments" else 50)})
    one, two = lm.generate(prompt, target, "a"), lm.generate(prompt, other, "a")
    torch.testing.assert_close(one.log_probs[:, 0], two.log_probs[:, 0])  # the first depends on the prompt only
    assert not torch.allclose(one.log_probs, two.log_probs, atol=1e-3)
    ids = target.ids.clone().fill_(BOS)
    assert torch.equal(lm.generate(prompt, target._replace(ids=ids), "a").ids, one.ids)


def test_nothing_to_generate_is_nothing() -> None:
    lm, empty = make_lm(), Sequence(*(part[:, :0] for part in sequence(2)))
    found = lm.generate(sequence(2), empty, "a")
    assert found.ids.shape == found.log_probs.shape == (2, 0)


def test_dropout_is_for_training_only() -> None:
    lm, given = make_lm(replace(TINY, dropout=0.5)), sequence()
    with torch.no_grad():
        assert torch.equal(lm(given), lm(given))
        lm.train()
        assert not torch.equal(lm(given), lm(given))


def vectors(levels: tuple[int, ...] = (3, 3)) -> Tensor:
    quantizer = FSQ(levels)
    return quantizer.decode(torch.arange(quantizer.size))


def test_tokens_with_levels_in_common_share_what_is_learned() -> None:
    torch.manual_seed(0)
    lm = TokenLm(TINY, {"b": vectors()})
    span = lm.vocabulary.span("b")
    before = lm.embeddings().detach()
    # a push on the token of levels (0, 0) through what is shared
    (lm.embeddings()[span.start].sum()).backward()
    with torch.no_grad():
        for parameter in lm.shared.parameters():
            parameter -= 0.1 * parameter.grad
    moved = (lm.embeddings().detach() - before)[span.start :].abs().amax(-1)
    shared = [(first == 0) + (second == 0) for second in range(3) for first in range(3)]
    torch.testing.assert_close(moved, 0.1 * torch.tensor(shared, dtype=torch.float32), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lm.embeddings()[: span.start], lm.network.embed_tokens.weight[: span.start])


def test_numbers_with_many_levels_are_taken_as_they_are() -> None:
    table = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    lm = TokenLm(TokenLmConfig({"a": 40}, 1, 16, 1, 2, 32), {"a": table})
    torch.testing.assert_close(lm.features_a, table)
    few = TokenLm(TINY, {"b": vectors()})
    assert few.features_b.shape == (9, 6)
    assert torch.equal(few.features_b.sum(-1), torch.full((9,), 2.0))
    assert len(few.features_b.unique(dim=0)) == 9


@pytest.mark.parametrize("count", [8, 10])
def test_vectors_of_another_quantizer_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} vectors for 9 tokens"):
        TokenLm(TINY, {"b": torch.randn(count, 2)})


def test_vectors_are_not_stored_but_what_is_learned_of_them_is() -> None:
    lm = make_lm(vectors={"b": vectors()})
    stored = lm.state_dict()
    assert not [name for name in stored if "features" in name]
    assert "shared.b.weight" in stored
    other = make_lm(seed=5, vectors={"b": vectors()})
    other.load_state_dict(stored)
    with torch.no_grad():
        assert torch.equal(other(sequence()), lm(sequence()))
        lm.shared["b"].weight.zero_()
        assert not torch.equal(other(sequence()), lm(sequence()))


@pytest.mark.parametrize("make", [lambda: None, lambda: {"a": torch.randn(12, 3), "b": vectors()}])
def test_gradients_reach_every_weight(make: Callable[[], dict[str, Tensor] | None]) -> None:
    lm = make_lm(vectors=make()).train()
    given = sequence(4)
    loss = sum(lm.logits(lm(given), name).log_softmax(-1)[..., 0].mean() for name in ("a", "b"))
    loss.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_median_is_taken_of_tokens_that_are_a_grid_alone() -> None:
    fsq = FSQ((4, 3))
    vectors = {"a": fsq.decode(torch.arange(12)), "b": torch.randn(9, 2, generator=seeded())}
    lm, prompt, target = make_lm(vectors=vectors), sequence(), sequence(size=1, seed=1)
    found = lm.generate(prompt, target, "a", MEDIAN)
    with torch.no_grad():
        logits = lm.logits(lm(prompt)[:, -1], "a")
    digits = fsq.digits(torch.arange(12))
    grid = torch.cat([torch.nn.functional.one_hot(digits[:, k], size) for k, size in enumerate((4, 3))], dim=1).float()
    wanted = median(logits.softmax(-1), grid, [4, 3])
    assert torch.equal(found.ids[:, 0] - 4, wanted)
    torch.testing.assert_close(found.log_probs, logits.log_softmax(-1).gather(1, wanted[:, None]))
    with pytest.raises(ConfigError, match="b tokens form no grid"):
        lm.generate(prompt, target, "b", MEDIAN)


def one_by_one(given: Sequence, place: int) -> Sequence:
    """Return the tokens (B, 1) of a place."""
    return Sequence(*(part[:, place : place + 1] for part in given))


@pytest.mark.parametrize("padding", [0, 3])
def test_decoding_is_the_whole_row_at_every_step(padding: int) -> None:
    lm, prompt, more = make_lm(), sequence(3, 6), sequence(3, 5, seed=2)
    whole = joined(prompt, more)
    with torch.no_grad():
        hidden = lm(whole)
        run = Decoding(lm, padded(prompt, padding))
        torch.testing.assert_close(run.hidden, hidden[:, 5], atol=1e-5, rtol=1e-4)
        for place in range(5):
            run.feed(one_by_one(more, place))
            torch.testing.assert_close(run.hidden, hidden[:, 6 + place], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1, 0], [0, 1, 2], [2]])
def test_selected_rows_continue_as_if_they_had_been_alone(rows: list[int]) -> None:
    lm, more, end = make_lm(), sequence(3, 2, seed=2), sequence(len(rows), 2, seed=3)
    prompts = [sequence(1, 7 - number, seed=number) for number in range(3)]  # of three lengths, padded on the left
    sizes = [prompt.ids.shape[1] for prompt in prompts]
    prompt = Sequence(
        *(
            torch.cat(parts)
            for parts in zip(*(padded(p, 7 - n) for p, n in zip(prompts, sizes, strict=True)), strict=True)
        )
    )
    with torch.no_grad():
        run = Decoding(lm, prompt)
        for place in range(2):
            run.feed(one_by_one(more, place))
        before = run.hidden
        run.keep(torch.tensor(rows))
        assert torch.equal(run.hidden, before[rows])
        for place in range(2):
            run.feed(one_by_one(end, place))
        for number, row in enumerate(rows):
            said = Sequence(*(part[row : row + 1] for part in more))
            rest = Sequence(*(part[number : number + 1] for part in end))
            wanted = lm(join([prompts[row], said, rest]))[0, -1]
            torch.testing.assert_close(run.hidden[number], wanted, atol=1e-5, rtol=1e-4)


def test_features_are_added_to_what_stands_for_a_token() -> None:
    lm, given = make_lm(), sequence()
    features = torch.randn(2, 10, 16, generator=seeded())
    with torch.no_grad():
        plain = lm(given)
        torch.testing.assert_close(lm(given, torch.zeros(2, 10, 16)), plain)
        with_features = lm(given, features)
        assert (with_features - plain).abs().amax(-1).min() > 1e-3
        late = features.clone()
        late[:, :6] = 0.0
        torch.testing.assert_close(lm(given, late)[:, :6], plain[:, :6], atol=1e-5, rtol=1e-4)  # no sight of the future
        # a feature that is the difference of two tokens turns one into the other
        table = lm.embeddings()
        other = given._replace(ids=4 + (given.ids - 3) % 21)
        turned = lm(given, table[other.ids] - table[given.ids])
        torch.testing.assert_close(turned, lm(other), atol=1e-5, rtol=1e-4)


def test_features_of_a_prompt_count_in_decoding() -> None:
    lm, prompt, more = make_lm(), sequence(2, 6), sequence(2, 1, seed=2)
    features = torch.randn(2, 6, 16, generator=seeded())
    with torch.no_grad():
        run = Decoding(lm, prompt, features)
        torch.testing.assert_close(run.hidden, lm(prompt, features)[:, -1], atol=1e-5, rtol=1e-4)
        run.feed(more)
        wanted = lm(join([prompt, more]), torch.cat([features, torch.zeros(2, 1, 16)], dim=1))[:, -1]
        torch.testing.assert_close(run.hidden, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("specials", [[EOS], [EOS, BOS]])
def test_special_tokens_have_the_first_logits(specials: list[int]) -> None:
    lm = make_lm(vectors={"b": vectors()})
    hidden = torch.randn(2, 5, 16, generator=seeded())
    with torch.no_grad():
        found, plain = lm.logits(hidden, "b", specials), lm.logits(hidden, "b")
        assert found.shape == (2, 5, 9 + len(specials))
        torch.testing.assert_close(found[..., len(specials) :], plain)
        torch.testing.assert_close(found[..., : len(specials)], hidden @ lm.embeddings()[specials].T)
        torch.testing.assert_close(lm.table("b", specials) @ hidden[0, 0], found[0, 0])
        assert lm.table("b").shape == (9, 16)


def test_join_concatenates_along_time() -> None:
    one, other = sequence(2, 4), sequence(2, 3, seed=1)
    both = join([one, other, one])
    for part, a, b in zip(both, one, other, strict=True):
        assert torch.equal(part, torch.cat([a, b, a], dim=1))
