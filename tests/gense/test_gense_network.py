"""GenSE's language models together: their prompts, their losses, and what they generate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from audio_llm.errors import UsageError
from audio_llm.gense.network import Chain, GenseConfig, GenseNetwork, History, TokenPairs
from audio_llm.gense.prompts import Segment, n2s_prompt, n2s_target, s2s_prompt, s2s_target
from audio_llm.lm.sampling import GREEDY, MEDIAN, Sampling
from audio_llm.lm.token_lm import Sequence, TokenLmConfig, join
from audio_llm.quantizers.fsq import FSQ

torch.set_num_threads(1)
SMALL = TokenLmConfig(width=16, layers=2, heads=2, feed_forward=32, dropout=0.0)
TINY = GenseConfig(semantic=12, acoustic=18, ratio=2, n2s=SMALL, s2s=SMALL)


def make_network(seed: int = 0, vectors: dict[str, Tensor] | None = None) -> GenseNetwork:
    """Return models whose weights are large enough for everything to matter."""
    torch.manual_seed(seed)
    network = GenseNetwork(TINY, vectors)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return network.eval()


def make_pairs(batch: int = 3, size: int = 5, seed: int = 0) -> TokenPairs:
    generator = torch.Generator().manual_seed(seed)
    semantic = [torch.randint(12, (batch, size), generator=generator) for _ in range(2)]
    acoustic = [torch.randint(18, (batch, 2 * size), generator=generator) for _ in range(3)]
    return TokenPairs(*semantic, *acoustic)


def losses(network: GenseNetwork, pairs: TokenPairs, chain: Chain) -> dict[str, float]:
    with torch.no_grad():
        return {name: float(value) for name, value in network(pairs, chain).items()}


def test_ranges_and_segments_are_set_by_the_numbers_of_tokens() -> None:
    assert TINY.n2s.ranges == {"semantic": 12}
    assert TINY.s2s.ranges == {"semantic": 12, "acoustic": 18}
    assert TINY.n2s.segments == TINY.s2s.segments == len(Segment)
    assert replace(TINY, acoustic=99).s2s.ranges["acoustic"] == 99


def test_losses_are_cross_entropies_of_what_comes_next() -> None:
    network, pairs = make_network(), make_pairs()
    result = losses(network, pairs, Chain(clean_semantic="oracle"))
    prompt, target = (
        s2s_prompt(*pairs[:3], network.s2s.vocabulary, 2),
        s2s_target(pairs.clean_acoustic, network.s2s.vocabulary),
    )
    with torch.no_grad():
        hidden = network.s2s(join([prompt, target]))  # each token is predicted at the position before it
        logits = network.s2s.logits(hidden[:, prompt.ids.shape[1] - 1 : -1], "acoustic")
    s2s = functional.cross_entropy(logits.flatten(0, 1), pairs.clean_acoustic.flatten())
    assert result["s2s"] == pytest.approx(s2s.item(), rel=1e-4)
    prompt = n2s_prompt(pairs.noisy_semantic, network.n2s.vocabulary, 2)
    target = n2s_target(pairs.clean_semantic, network.n2s.vocabulary, 2)
    with torch.no_grad():
        hidden = network.n2s(join([prompt, target]))
        logits = network.n2s.logits(hidden[:, prompt.ids.shape[1] - 1 : -1], "semantic")
    assert logits.shape == (3, 5, 12)
    n2s = functional.cross_entropy(logits.flatten(0, 1), pairs.clean_semantic.flatten())
    assert result["n2s"] == pytest.approx(n2s.item(), rel=1e-4)
    wrong = (logits.argmax(-1) != pairs.clean_semantic).float().mean()
    assert result["errors"] == pytest.approx(wrong.item())


def test_a_corrupted_history_changes_the_inputs_and_not_the_targets() -> None:
    network, pairs = make_network(), make_pairs()
    right = History(pairs.clean_semantic, pairs.clean_acoustic)
    chain = Chain(clean_semantic="oracle")
    with torch.no_grad():
        plain = network(pairs, chain)
        for index, changes in ((0, True), (-1, False)):  # nothing comes after the last
            semantic, acoustic = (part.clone() for part in right)
            semantic[:, index] = (semantic[:, index] + 1) % 12
            acoustic[:, index] = (acoustic[:, index] + 1) % 18
            result = network(pairs, chain, History(semantic, acoustic))
            assert (result["n2s"] != plain["n2s"]) == changes
            assert (result["s2s"] != plain["s2s"]) == changes
        assert network(pairs, chain, right) == plain


def test_a_batch_is_the_mean_of_its_rows() -> None:
    network, pairs = make_network(), make_pairs()
    for chain in (Chain(), Chain(clean_semantic="none")):
        whole = losses(network, pairs, chain)
        rows = [losses(network, TokenPairs(*(part[i : i + 1] for part in pairs)), chain) for i in range(3)]
        for name in whole:
            assert whole[name] == pytest.approx(sum(row[name] for row in rows) / 3, rel=1e-4, abs=1e-6)


def test_every_part_of_the_chain_changes_s2s_alone() -> None:
    network, pairs = make_network(), make_pairs()
    chains = [
        Chain(clean_semantic="oracle"),
        Chain(),
        Chain(clean_semantic="none"),
        Chain(noisy_semantic=False),
        Chain(acoustic="masked"),
        Chain(acoustic="none"),
        Chain(noisy_semantic=False, clean_semantic="oracle", acoustic="none"),
    ]
    result = [losses(network, pairs, chain) for chain in chains]
    assert len({round(row["s2s"], 5) for row in result}) == len(chains)
    assert len({row["n2s"] for row in result}) == 1
    with pytest.raises(UsageError, match="prompt is empty"):
        losses(network, pairs, Chain(False, "none", "none"))


@pytest.mark.parametrize(
    ("chain", "seen"),
    [
        (Chain(), {"noisy_semantic", "noisy_acoustic"}),
        (Chain(clean_semantic="oracle"), {"noisy_semantic", "clean_semantic", "noisy_acoustic"}),
        (Chain(clean_semantic="none"), {"noisy_semantic", "noisy_acoustic"}),
        (Chain(clean_semantic="oracle", acoustic="none"), {"noisy_semantic", "clean_semantic"}),
        (Chain(clean_semantic="oracle", acoustic="masked"), {"noisy_semantic", "clean_semantic", "masked_acoustic"}),
        (Chain(noisy_semantic=False, clean_semantic="oracle"), {"clean_semantic", "noisy_acoustic"}),
        (Chain(noisy_semantic=False, clean_semantic="none", acoustic="masked"), {"masked_acoustic"}),
    ],
)
def test_what_is_left_out_has_no_influence(chain: Chain, seen: set[str]) -> None:
    network, pairs, others = make_network(), make_pairs(), make_pairs(seed=5)
    before = losses(network, pairs, chain)["s2s"]
    changed = {
        name
        for name in ("noisy_semantic", "clean_semantic", "noisy_acoustic", "masked_acoustic")
        if losses(network, pairs._replace(**{name: getattr(others, name)}), chain)["s2s"] != before
    }
    # what N2S predicts depends on the true tokens before
    assert changed == (seen | {"clean_semantic"} if chain.clean_semantic == "predicted" else seen)


def test_codes_of_the_mask_network_are_another_stream() -> None:
    network, pairs = make_network(), make_pairs()
    same = pairs._replace(masked_acoustic=pairs.noisy_acoustic)
    one, other = (losses(network, same, Chain(acoustic=which))["s2s"] for which in ("noisy", "masked"))
    assert one != pytest.approx(other, abs=1e-4)


def test_predicted_tokens_are_the_likeliest_of_n2s() -> None:
    network, pairs = make_network(), make_pairs()
    prompt = n2s_prompt(pairs.noisy_semantic, network.n2s.vocabulary, 2)
    target = n2s_target(pairs.clean_semantic, network.n2s.vocabulary, 2)
    with torch.no_grad():
        hidden = network.n2s(join([prompt, target]))[:, prompt.ids.shape[1] - 1 : -1]
        predicted = network.n2s.logits(hidden, "semantic").argmax(-1)
    assert losses(network, pairs, Chain())["s2s"] == pytest.approx(
        losses(network, pairs._replace(clean_semantic=predicted), Chain(clean_semantic="oracle"))["s2s"], rel=1e-5
    )


def test_no_gradient_of_s2s_reaches_n2s() -> None:
    network, pairs = make_network().train(), make_pairs()
    network(pairs, Chain())["s2s"].backward()
    assert all(parameter.grad is None for parameter in network.n2s.parameters())
    assert all(parameter.grad is not None for parameter in network.s2s.parameters())
    network.zero_grad()
    network(pairs, Chain())["n2s"].backward()
    assert all(parameter.grad is not None for parameter in network.n2s.parameters())
    assert all(parameter.grad is None for parameter in network.s2s.parameters())


def test_both_learn_from_their_prompts() -> None:
    """Clean tokens that follow from the noisy ones, and codes that follow from the clean tokens."""
    network = make_network(vectors={"semantic": FSQ((4, 3)).decode(torch.arange(12))})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    network.train()

    def batch(seed: int) -> TokenPairs:
        pairs = make_pairs(8, 4, seed)
        clean = (pairs.noisy_semantic + 3) % 12
        return pairs._replace(clean_semantic=clean, clean_acoustic=clean.repeat_interleave(2, dim=1))

    for step in range(120):
        result = network(batch(step), Chain(clean_semantic="oracle"))
        optimizer.zero_grad()
        (result["n2s"] + result["s2s"]).backward()
        optimizer.step()
    result = losses(network.eval(), batch(999), Chain(clean_semantic="oracle"))
    assert result["n2s"] < 0.5 * math.log(12)
    assert result["s2s"] < 0.5 * math.log(18)
    assert losses(network, batch(999), Chain(False, "none", "noisy"))["s2s"] > 2 * result["s2s"]
    pairs = batch(999)
    tokens = network.clean_tokens(pairs.noisy_semantic).ids
    assert (tokens == pairs.clean_semantic).float().mean() > 0.7


def test_clean_tokens_are_as_many_as_noisy_ones_and_in_range() -> None:
    network = make_network()
    noisy = make_pairs(2, 9).noisy_semantic
    hot = Sampling(temperature=5.0)
    result = network.clean_tokens(noisy, sampling=hot, generator=torch.Generator().manual_seed(0))
    assert result.ids.shape == result.log_probs.shape == (2, 9)
    assert result.ids.min() >= 0
    assert result.ids.max() < 12
    assert len(result.ids.unique()) > 6
    assert (result.log_probs < 0).all()
    greedy = network.clean_tokens(noisy)
    again = network.clean_tokens(noisy)
    assert torch.equal(greedy.ids, again.ids)


@pytest.mark.parametrize("count", [1, 7, 20])
def test_clean_codes_are_as_many_as_asked_for_and_in_range(count: int) -> None:
    network, pairs = make_network(), make_pairs(2, 6)
    prompt = s2s_prompt(*pairs[:3], network.s2s.vocabulary, 2)
    generator = torch.Generator().manual_seed(0)
    result = network.clean_codes(prompt, count, Sampling(temperature=5.0), generator=generator)
    assert result.ids.shape == result.log_probs.shape == (2, count)
    assert result.ids.min() >= 0
    assert result.ids.max() < 18


def test_greedy_tokens_are_those_that_the_loss_thinks_likeliest() -> None:
    network, pairs = make_network(), make_pairs(2, 6)
    tokens = network.clean_tokens(pairs.noisy_semantic)
    result = losses(network, pairs._replace(clean_semantic=tokens.ids), Chain())
    assert result["errors"] == 0.0
    assert result["n2s"] == pytest.approx(-tokens.log_probs.mean().item(), rel=1e-4)
    prompt = s2s_prompt(pairs.noisy_semantic, tokens.ids, pairs.noisy_acoustic, network.s2s.vocabulary, 2)
    codes = network.clean_codes(prompt, 12, GREEDY)
    pairs = pairs._replace(clean_semantic=tokens.ids, clean_acoustic=codes.ids)
    assert losses(network, pairs, Chain())["s2s"] == pytest.approx(-codes.log_probs.mean().item(), rel=1e-4)


def test_copied_tokens_count_in_the_clean_tokens() -> None:
    network = make_network(vectors={"semantic": FSQ((4, 3)).decode(torch.arange(12))})
    noisy, other = make_pairs().noisy_semantic, make_pairs(seed=7).noisy_semantic
    alone = network.clean_tokens(noisy, None, MEDIAN)
    assert torch.equal(network.clean_tokens(noisy, None, MEDIAN, None, (other, other), 0.0).ids, alone.ids)
    ruled = network.clean_tokens(noisy, None, MEDIAN, None, (other, other), 0.49)
    assert torch.equal(ruled.ids, other)
    assert (ruled.log_probs > math.log(0.98)).all()
    assert not torch.equal(alone.ids, other)
    begun = network.clean_tokens(noisy, alone.ids[:, :2], MEDIAN, None, (other, other), 0.49).ids
    assert torch.equal(begun, torch.cat([alone.ids[:, :2], other[:, 2:]], dim=1))


def test_given_tokens_are_kept_and_continued() -> None:
    network, pairs = make_network(), make_pairs(2, 6)
    whole = network.clean_tokens(pairs.noisy_semantic)
    same = network.clean_tokens(pairs.noisy_semantic, given=whole.ids[:, :2])
    assert torch.equal(same.ids, whole.ids)  # the likeliest after the likeliest
    torch.testing.assert_close(same.log_probs, whole.log_probs[:, 2:], atol=1e-4, rtol=1e-3)
    other = (whole.ids[:, :2] + 5) % 12
    changed = network.clean_tokens(pairs.noisy_semantic, given=other)
    assert torch.equal(changed.ids[:, :2], other)
    assert changed.ids.shape == (2, 6)
    assert changed.log_probs.shape == (2, 4)
    assert not torch.allclose(changed.log_probs, same.log_probs, atol=1e-3)
    prompt = s2s_prompt(*pairs[:3], network.s2s.vocabulary, 2)
    codes = network.clean_codes(prompt, 8, GREEDY)
    same = network.clean_codes(prompt, 8, GREEDY, given=codes.ids[:, :3])
    assert torch.equal(same.ids, codes.ids)
    assert same.log_probs.shape == (2, 5)


def test_the_same_seed_generates_the_same() -> None:
    network, pairs = make_network(), make_pairs(2, 6)
    prompt = s2s_prompt(*pairs[:3], network.s2s.vocabulary, 2)
    one, same, other = (
        network.clean_codes(prompt, 12, Sampling(), generator=torch.Generator().manual_seed(seed)).ids
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_prompts_with_padding_are_continued_as_without() -> None:
    network, pairs = make_network(), make_pairs(2, 6)
    prompt = s2s_prompt(*pairs[:3], network.s2s.vocabulary, 2)
    padded = Sequence(*(functional.pad(part, (4, 0)) for part in prompt))
    one, other = (network.clean_codes(given, 10, GREEDY) for given in (prompt, padded))
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=1e-3)


def test_vectors_go_to_both_models_but_not_into_the_weights() -> None:
    vectors = {"semantic": FSQ((4, 3)).decode(torch.arange(12)), "acoustic": FSQ((6, 3)).decode(torch.arange(18))}
    network = make_network(vectors=vectors)
    assert set(network.n2s.shared) == {"semantic"}
    assert set(network.s2s.shared) == {"semantic", "acoustic"}
    assert not [name for name in network.state_dict() if "features" in name]
