"""The flow: nothing leaks from the future, and piece by piece it is what it is at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audio_llm.codec.mel import N_MELS
from audio_llm.errors import ConfigError
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts import flow as module
from audio_llm.touchtts.flow import (
    FRAMES,
    FlowConfig,
    FlowNetwork,
    FlowRun,
    chunk_mask,
    given_tokens,
    moments,
    noise,
)
from audio_llm.touchtts.models import speech_vectors

torch.set_num_threads(1)
VOICE = torch.randn(1, 16, generator=torch.Generator().manual_seed(8))


def some_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(80, (1, count), generator=torch.Generator().manual_seed(seed))


def at_once(flow: FlowNetwork, tokens: Tensor, chunk: int, seed: int = 0, prompt: Tensor | None = None) -> Tensor:
    """Return frames made at once under the mask of the chunks, by a solver of its own."""
    config, count = flow.config, FRAMES * tokens.shape[1]
    inputs = flow.inputs(given_tokens(flow, tokens, VOICE, prompt))
    nothing = flow.inputs(given_tokens(flow, torch.full_like(tokens, -1), torch.zeros_like(VOICE)))
    mask = chunk_mask(count, FRAMES * chunk, config.left_frames)
    x = noise(0, count, seed)
    with torch.no_grad():
        for now, then in itertools.pairwise(moments(config.steps)):
            moment = torch.tensor([now])
            conditioned, free = (flow(x, moment, given, mask) for given in (inputs, nothing))
            x = x + (then - now) * (conditioned + config.guidance * (conditioned - free))
    return flow.denormalize(x)


def in_pieces(flow: FlowNetwork, tokens: Tensor, chunk: int, seed: int = 0, **more: object) -> Tensor:
    """Return frames made chunk after chunk, each knowing the tokens of its lookahead alone."""
    run, ahead, frames = FlowRun(flow, VOICE, seed, chunk, **more), flow.config.lookahead, []
    for first in range(0, tokens.shape[1], chunk):
        following = tokens[:, first + chunk : first + chunk + ahead]
        frames.append(run.next_frames(tokens[:, first : first + chunk], following))
    return torch.cat(frames, dim=1)


@pytest.mark.parametrize("chunk", [5, 10, 25])
@pytest.mark.parametrize("count", [1, 4, 5, 10, 25, 33, 60])
def test_piece_by_piece_is_what_it_is_at_once(flow: FlowNetwork, chunk: int, count: int) -> None:
    tokens = some_tokens(count)
    whole = at_once(flow, tokens, chunk)
    assert whole.shape == (1, 2 * count, N_MELS)
    assert whole.std() > 0.5
    torch.testing.assert_close(in_pieces(flow, tokens, chunk), whole, atol=1e-4, rtol=1e-5)


def test_seeing_all_is_something_else(flow: FlowNetwork) -> None:
    tokens = some_tokens(20)
    with torch.no_grad():
        all_at_once = FlowRun(flow, VOICE).next_frames(tokens, tokens[:, :0])
    torch.testing.assert_close(all_at_once, at_once(flow, tokens, 20), atol=1e-4, rtol=1e-5)
    assert (all_at_once - at_once(flow, tokens, 5)).abs().max() > 0.01


@pytest.mark.parametrize("chunk", [4, 7])
def test_chunks_that_are_made_already_never_change(flow: FlowNetwork, chunk: int) -> None:
    tokens = some_tokens(30)
    before = at_once(flow, tokens, chunk)
    for index in (0, 6, 11, 12, 20, 29):
        changed = tokens.clone()
        changed[0, index] = (changed[0, index] + 37) % 80
        after = at_once(flow, changed, chunk)
        difference = (after - before)[0].abs().amax(-1)
        # the first chunk of which the last token is told of the changed one
        first = max(0, index - flow.config.lookahead) // chunk * chunk * FRAMES
        assert not difference[:first].any()
        assert difference[first : first + FRAMES].min() > 1e-4  # in the chunk all see all
        changed_pieces = in_pieces(flow, changed, chunk)
        torch.testing.assert_close(changed_pieces, after, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_a_frame_is_told_of_as_many_tokens_as_the_lookahead_has(
    tokenizer: S3Tokenizer, flow: FlowNetwork, lookahead: int
) -> None:
    torch.manual_seed(4)
    flow = FlowNetwork(replace(flow.config, lookahead=lookahead), speech_vectors(tokenizer)).eval()
    with torch.no_grad():
        flow.tokens.weight.normal_()
    tokens = some_tokens(12)
    before = flow.inputs(given_tokens(flow, tokens, VOICE))
    for index in range(12):
        changed = tokens.clone()
        changed[0, index] = (changed[0, index] + 37) % 80
        difference = (flow.inputs(given_tokens(flow, changed, VOICE)) - before)[0].abs().amax(-1)
        conditioned = difference > 1e-6
        assert torch.equal(conditioned[::2], conditioned[1::2])
        first = max(0, index - lookahead)
        assert conditioned[::2].nonzero()[:, 0].tolist() == list(range(first, index + 1))


def test_the_last_frame_of_a_chunk_waits_for_the_lookahead_alone(flow: FlowNetwork) -> None:
    chunk, tokens = 5, some_tokens(20)
    before = in_pieces(flow, tokens, chunk)[:, : FRAMES * chunk]
    for distance in range(1, 6):
        changed = tokens.clone()
        changed[0, chunk - 1 + distance] = (changed[0, chunk - 1 + distance] + 37) % 80
        difference = (in_pieces(flow, changed, chunk)[:, : FRAMES * chunk] - before).abs().amax(-1)[0]
        assert (difference[-1] > 1e-4) == (distance <= flow.config.lookahead)
        assert distance <= flow.config.lookahead or not difference.any()


def test_the_mask_hides_the_future_and_the_far_past() -> None:
    mask = chunk_mask(10, 3, 4)[0, 0]
    seen = mask == 0.0
    for one, other in itertools.product(range(10), range(10)):
        assert bool(seen[one, other]) == (0 <= one // 3 - other // 3 <= 2)  # two chunks hold four frames
    assert mask.min() < -1e30
    assert torch.isfinite(mask).all()
    assert torch.equal(chunk_mask(6, 3, 0)[0, 0] == 0.0, torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)) > 0)
    assert (chunk_mask(5, 100, 0) == 0.0).all()


def test_what_is_beyond_the_left_window_has_no_influence(flow: FlowNetwork, tokenizer: S3Tokenizer) -> None:
    torch.manual_seed(2)
    one_layer = FlowNetwork(replace(flow.config, layers=1, left_frames=10, steps=1), speech_vectors(tokenizer)).eval()
    with torch.no_grad():
        for parameter in one_layer.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
    tokens, chunk = some_tokens(40), 5
    before = in_pieces(one_layer, tokens, chunk)
    changed = tokens.clone()
    changed[0, :5] = (changed[0, :5] + 37) % 80
    difference = (in_pieces(one_layer, changed, chunk) - before)[0].abs().amax(-1)
    assert (difference[:20] > 1e-5).all()  # the chunk itself, and the next, which sees it
    assert not difference[20:].any()


@pytest.mark.parametrize(("chunk", "left"), [(5, 30), (5, 33), (10, 30), (25, 30), (5, 0)])
def test_what_is_kept_of_the_past_is_bounded(flow: FlowNetwork, chunk: int, left: int) -> None:
    flow.config = replace(flow.config, left_frames=left)
    run, sizes = FlowRun(flow, VOICE, 0, chunk), []
    for first in range(0, 100, chunk):
        run.next_frames(some_tokens(100)[:, first : first + chunk], some_tokens(0))
        assert len({cache.get_seq_length() for cache in run._caches}) == 1
        sizes.append(run._caches[0].get_seq_length())
    bound = FRAMES * chunk * math.ceil(left / (FRAMES * chunk))
    assert max(sizes) == sizes[-1] == bound
    assert len(run._caches) == flow.config.steps
    tokens = some_tokens(40)
    torch.testing.assert_close(in_pieces(flow, tokens, chunk), at_once(flow, tokens, chunk), atol=1e-4, rtol=1e-5)


@given(st.integers(0, 300), st.lists(st.integers(0, 90), max_size=6), st.integers(0, 50))
def test_noise_is_that_of_its_place_however_it_is_cut(first: int, cuts: list[int], seed: int) -> None:
    whole = noise(first, sum(cuts), seed)
    assert whole.shape == (1, sum(cuts), N_MELS)
    index, parts = first, [torch.zeros(1, 0, N_MELS)]
    for count in cuts:
        parts.append(noise(index, count, seed))
        index += count
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_noise_is_noise() -> None:
    drawn = noise(0, 2000, 3)[0]
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)
    assert len(drawn.unique(dim=0)) == 2000  # no block comes twice
    assert float((drawn[:-64] * drawn[64:]).mean().abs()) < 0.02


@pytest.mark.parametrize("other", [1, 255, 256, 1 << 20, 1 << 32])
def test_other_seeds_are_other_noise(other: int) -> None:

    assert not torch.equal(noise(0, 10, 0), noise(0, 10, other))


@pytest.mark.parametrize("seed", [1 << 40, 1 << 64])
def test_a_large_seed_is_a_seed(seed: int) -> None:

    assert noise(0, 10, seed).shape == (1, 10, N_MELS)


def test_moments_go_from_noise_to_speech() -> None:
    for steps in (1, 2, 5, 10):
        times = moments(steps)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (0.0, 1.0)
        assert all(one < other for one, other in itertools.pairwise(times))
    assert times[1] - times[0] < times[5] - times[4]  # closer together at the beginning


def constant_velocity(target: Tensor, asked: list[float]) -> Callable[..., Tensor]:
    """Return a velocity that leads straight from the noise to a target, wherever one is on the path."""

    def velocity(inputs: Tensor, mask: Tensor, cache: object, positions: Tensor) -> Tensor:
        asked.append(0.0)
        frames = positions[0]
        return (target - noise(0, target.shape[1], 5))[:, frames].expand(len(inputs), -1, -1)

    return velocity


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("chunk", [None, 4])
def test_the_solver_lands_where_the_velocity_leads(
    flow: FlowNetwork, monkeypatch: pytest.MonkeyPatch, steps: int, chunk: int | None
) -> None:
    target, asked = torch.randn(1, 20, N_MELS, generator=torch.Generator().manual_seed(1)), []
    monkeypatch.setattr(flow, "_velocity", constant_velocity(target, asked))
    times: list[float] = []
    at = flow._at
    monkeypatch.setattr(flow, "_at", lambda x, moment: (times.append(float(moment[0])), at(x, moment))[1])
    run, tokens, frames = FlowRun(flow, VOICE, 5, chunk, steps=steps), some_tokens(10), []
    for first in range(0, 10, chunk or 10):
        frames.append(run.next_frames(tokens[:, first : first + (chunk or 10)], tokens[:, :0]))
    torch.testing.assert_close(torch.cat(frames, dim=1), flow.denormalize(target), atol=1e-4, rtol=1e-5)
    pieces = 1 if chunk is None else 3
    assert len(asked) == steps * pieces  # the branches of guidance go together
    assert times == pytest.approx(moments(steps)[:-1] * pieces)


def test_no_guidance_is_what_the_tokens_say_alone(flow: FlowNetwork) -> None:
    tokens = some_tokens(8)
    inputs, mask = flow.inputs(given_tokens(flow, tokens, VOICE)), torch.zeros(1, 1, 16, 16)
    x = noise(0, 16, 0)
    with torch.no_grad():
        for now, then in itertools.pairwise(moments(flow.config.steps)):
            x = x + (then - now) * flow(x, torch.tensor([now]), inputs, mask)
    frames = FlowRun(flow, VOICE, guidance=0.0).next_frames(tokens, tokens[:, :0])
    torch.testing.assert_close(frames, flow.denormalize(x), atol=1e-5, rtol=1e-5)
    near = FlowRun(flow, VOICE, guidance=1e-6).next_frames(tokens, tokens[:, :0])
    torch.testing.assert_close(frames, near, atol=1e-3, rtol=1e-3)
    far = FlowRun(flow, VOICE, guidance=2.0).next_frames(tokens, tokens[:, :0])
    assert (far - frames).abs().max() > 0.1


def test_the_branch_that_is_told_nothing_is_told_nothing(flow: FlowNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    velocity = flow._velocity
    monkeypatch.setattr(
        flow, "_velocity", lambda inputs, *rest: (seen.append(inputs.clone()), velocity(inputs, *rest))[1]
    )
    prompt = torch.randn(1, 4, N_MELS)
    for voice, tokens, known in ((VOICE, some_tokens(6), prompt), (-VOICE, some_tokens(6, 1), None)):
        FlowRun(flow, voice, steps=1).next_frames(tokens, some_tokens(3), known)
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.allclose(seen[0][0], seen[1][0], atol=0.1)


def test_the_voice_and_known_frames_have_an_influence(flow: FlowNetwork) -> None:
    tokens, prompt = some_tokens(12), torch.randn(1, 8, N_MELS, generator=torch.Generator().manual_seed(2)) - 5.0
    plain = FlowRun(flow, VOICE).next_frames(tokens, tokens[:, :0])
    other = FlowRun(flow, -VOICE).next_frames(tokens, tokens[:, :0])
    known = FlowRun(flow, VOICE).next_frames(tokens, tokens[:, :0], prompt)
    assert (other - plain).abs().amax(-1).min() > 1e-3
    assert (known - plain)[0, 8:].abs().amax(-1).min() > 1e-3
    given = given_tokens(flow, tokens, VOICE, prompt)
    assert given.known[0].tolist() == [True] * 8 + [False] * 16
    torch.testing.assert_close(given.prompt[:, :8], (prompt + 5.0) / 1.5)
    changed = given._replace(prompt=given.prompt + 3.0 * ~given.known[:, :, None])
    assert torch.equal(flow.inputs(changed), flow.inputs(given))  # what is not known is not told


def test_a_voice_is_what_its_frames_are_and_not_its_padding(flow: FlowNetwork) -> None:
    mel = torch.randn(2, 30, N_MELS, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([30, 12])
    with torch.no_grad():
        both = flow.voice(mel, lengths)
        torch.testing.assert_close(both[1:], flow.voice(mel[1:, :12], lengths[1:]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both[:1], flow.voice(mel[:1].flip(1), lengths[:1]), atol=1e-5, rtol=1e-5)
        assert torch.isfinite(flow.voice(mel, torch.tensor([0, 1]))).all()


def test_no_tokens_are_no_frames(flow: FlowNetwork) -> None:
    for chunk in (None, 5):
        assert FlowRun(flow, VOICE, chunk=chunk).next_frames(some_tokens(0), some_tokens(0)).shape == (1, 0, N_MELS)


def test_the_seed_is_all_that_is_random(flow: FlowNetwork) -> None:
    tokens = some_tokens(11)
    one, same, other = (in_pieces(flow, tokens, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("wrong", [{"heads": 5}, {"steps": 0}, {"lookahead": -1}, {"left_frames": -1}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="steps"):
        FlowConfig(**wrong)


def test_vectors_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(ConfigError, match="7 vectors for 80 tokens"):
        FlowNetwork(FlowConfig(80, width=16, heads=2, layers=1), torch.zeros(7, 3))


def test_gradients_reach_every_weight(flow: FlowNetwork) -> None:
    flow.train()
    tokens = some_tokens(6)
    with torch.no_grad():
        voice_of = torch.randn(1, 20, N_MELS)
    voice = flow.voice(voice_of, torch.tensor([20]))
    inputs = flow.inputs(given_tokens(flow, tokens, voice, torch.randn(1, 3, N_MELS)))
    flow(noise(0, 12, 0), torch.tensor([0.3]), inputs, chunk_mask(12, 4, 4)).square().mean().backward()
    for name, parameter in flow.named_parameters():
        if "embed_tokens" in name:  # vectors come in, not tokens
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_attention_is_told_by_an_additive_mask(flow: FlowNetwork, tokenizer: S3Tokenizer) -> None:
    # the same for the other attention of transformers, which would see the future with another kind of mask
    eager = FlowNetwork(flow.config, speech_vectors(tokenizer)).eval()
    eager.load_state_dict(flow.state_dict())
    eager.network.config._attn_implementation = "eager"
    tokens = some_tokens(17)
    torch.testing.assert_close(at_once(eager, tokens, 5), at_once(flow, tokens, 5), atol=1e-4, rtol=1e-5)
    assert module._NEVER < -1e30
