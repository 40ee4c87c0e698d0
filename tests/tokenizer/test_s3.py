"""The supervised tokenizer: how many tokens there are, and that the text depends on them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.asr.ctc import CtcPosteriors
from audio_llm.asr.ctc_model import SYMBOLS
from audio_llm.errors import ConfigError, ModelFormatError
from audio_llm.tokenizer.base import Tokens
from audio_llm.tokenizer.s3 import KIND, S3Tokenizer, load_perceptual_loss
from audio_llm.tokenizer.s3_model import S3Config, S3Network, log_mel

torch.set_num_threads(1)
MakeNetwork = Callable[..., S3Network]


def sounds(*samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noise that comes and goes, of these lengths, zeros after each end, and the lengths."""
    lengths, size = torch.tensor(samples), max(samples)
    time_s = torch.arange(size) / 16_000
    noise = torch.randn(len(samples), size, generator=torch.Generator().manual_seed(seed))
    waveforms = 0.1 * noise * (1.1 + torch.sin(2 * torch.pi * 4 * time_s))
    return waveforms * (torch.arange(size) < lengths[:, None]), lengths


@pytest.mark.parametrize("count", [1, 2, 7, 25, 30])
def test_640_samples_are_a_token(make_network: MakeNetwork, count: int) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    tokens = tokenizer.encode(*sounds(640 * count))
    assert tokens.tokens.shape == (1, count)
    assert tokens.lengths.tolist() == [count]
    assert tokenizer.frame_rate == 25.0


def test_the_count_depends_on_the_length_alone(make_network: MakeNetwork) -> None:
    one, other = S3Tokenizer(make_network(), ""), S3Tokenizer(make_network(5), "")
    lengths = [399, 400, 879, 880, 881, 1039, 1040, 1519, 1520, 1680, 4321]
    waveforms, samples = sounds(*lengths)
    expected = [-(-max(0, (size - 400) // 160 + 1) // 4) for size in lengths]
    assert expected == sorted(expected)
    assert one.encode(waveforms, samples).lengths.tolist() == expected
    assert other.encode(0.001 * waveforms, samples).lengths.tolist() == expected
    silence = torch.zeros_like(waveforms)
    assert one.encode(silence, samples).lengths.tolist() == expected
    for size, count in zip(lengths, expected, strict=True):
        tokens = one.encode(waveforms[-1:, :size], torch.tensor([size]))
        assert tokens.tokens.shape == (1, count)


def test_a_batch_equals_one_by_one(make_network: MakeNetwork) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    waveforms, lengths = sounds(9000, 640, 5555, 400, 16_000)
    together = tokenizer.encode(waveforms, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone = tokenizer.encode(waveforms[row : row + 1, :samples], lengths[row : row + 1])
        count = int(alone.lengths[0])
        assert together.lengths[row] == count
        assert torch.equal(together.tokens[row, :count], alone.tokens[0])
        assert not together.tokens[row, count:].any()


def test_tokens_are_in_range_and_differ_between_sounds(make_network: MakeNetwork) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    assert tokenizer.size == 80
    tokens = tokenizer.encode(*sounds(32_000, 32_000)).tokens
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < 80
    assert len(tokens.unique()) > 5
    assert not torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokenizer.encode(*sounds(32_000, 32_000)).tokens, tokens)


def test_level_does_not_matter_much(make_network: MakeNetwork) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    waveforms, lengths = sounds(32_000)
    tokens, quiet = (tokenizer.encode(gain * waveforms, lengths).tokens for gain in (1.0, 0.2))
    assert (tokens != quiet).float().mean() < 0.1


@pytest.mark.parametrize("samples", [(0,), (1, 399), (0, 0, 12)])
def test_sounds_too_short_have_no_token(make_network: MakeNetwork, samples: tuple[int, ...]) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    tokens = tokenizer.encode(torch.zeros(len(samples), max(samples)), torch.tensor(samples))
    assert tokens.tokens.shape == (len(samples), 0)
    assert tokens.lengths.tolist() == [0] * len(samples)
    assert tokenizer.words(tokens) == [""] * len(samples)


def test_an_empty_sound_among_others_has_no_token(make_network: MakeNetwork) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    waveforms, lengths = sounds(0, 6400, 300)
    tokens = tokenizer.encode(waveforms, lengths)
    assert tokens.lengths.tolist() == [0, 10, 0]
    assert not tokens.tokens[[0, 2]].any()
    alone = tokenizer.encode(waveforms[1:2], lengths[1:2])
    assert torch.equal(alone.tokens[0], tokens.tokens[1])
    words = tokenizer.words(tokens)
    assert [words[0], words[2]] == ["", ""]
    assert words[1] == tokenizer.words(alone)[0]


def test_words_depend_on_the_tokens_alone(make_network: MakeNetwork) -> None:
    network = make_network()
    tokenizer = S3Tokenizer(network, "")
    waveforms, lengths = sounds(32_000, 12_000)
    tokens = tokenizer.encode(waveforms, lengths)
    mel, frames = log_mel(waveforms, lengths)
    with torch.inference_mode():
        output = network(mel, frames)
        written = network.write(tokens.tokens, tokens.lengths)
    assert output.log_probs.shape == (2, 50, len(SYMBOLS))
    torch.testing.assert_close(output.log_probs.exp().sum(-1), torch.ones(2, 50))
    for row, count in enumerate(tokens.lengths.tolist()):
        torch.testing.assert_close(written[row, :count], output.log_probs[row, :count], atol=1e-4, rtol=1e-4)
    rows = zip(output.log_probs.double().numpy(), tokens.lengths, strict=True)
    expected = [CtcPosteriors(row[: int(count)]).greedy_text() for row, count in rows]
    assert tokenizer.words(tokens) == expected
    assert any(expected)
    other = Tokens((tokens.tokens + 37) % 80, tokens.lengths)
    assert tokenizer.words(other) != expected


def test_words_of_a_batch_equal_those_of_one_by_one(make_network: MakeNetwork) -> None:
    network = make_network()
    tokens = torch.randint(80, (3, 20), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([20, 1, 13])
    with torch.inference_mode():
        together = network.write(tokens, lengths)
        for row, count in enumerate(lengths.tolist()):
            alone = network.write(tokens[row : row + 1, :count], lengths[row : row + 1])
            torch.testing.assert_close(together[row, :count], alone[0], atol=1e-4, rtol=1e-4)


def test_gradients_pass_the_quantizer(make_network: MakeNetwork) -> None:
    network = make_network().train()
    mel, frames = log_mel(*sounds(16_000, 8000))
    output = network(mel, frames)
    output.log_probs[:, :12, 3].sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_is_for_training_only(make_network: MakeNetwork) -> None:
    network = make_network(dropout=0.5)
    mel, frames = log_mel(*sounds(16_000))
    with torch.inference_mode():
        assert torch.equal(network(mel, frames).log_probs, network(mel, frames).log_probs)
        network.train()
        assert not torch.equal(network(mel, frames).log_probs, network(mel, frames).log_probs)


@pytest.mark.parametrize("changes", [{"width": 18, "heads": 4}, {"kernel": 4}])
def test_sizes_that_do_not_go_together_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="odd kernel"):
        S3Config(**changes)


def test_a_saved_tokenizer_is_the_same(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network()
    network.quantizer.mean.fill_(0.2)  # the statistics of its input are part of it
    folder = hub.save_model(tmp_path / "tiny", asdict(network.config), network.state_dict(), KIND, "Tiny.\n")
    tokenizer = S3Tokenizer.load(folder)
    assert tokenizer.network.config == network.config
    assert tokenizer.fingerprint == hub.fingerprint(folder)
    waveforms, lengths = sounds(16_000, 9000)
    tokens, expected = tokenizer.encode(waveforms, lengths), S3Tokenizer(network, "").encode(waveforms, lengths)
    assert torch.equal(tokens.tokens, expected.tokens)
    assert tokenizer.words(tokens) == S3Tokenizer(network, "").words(expected)


def test_another_kind_of_model_is_refused(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network()
    folder = hub.save_model(tmp_path / "x", asdict(network.config), network.state_dict(), "codec", "No tokenizer.\n")
    with pytest.raises(ModelFormatError, match="codec"):
        S3Tokenizer.load(folder)


def test_the_perceptual_loss_compares_what_is_quantized(make_network: MakeNetwork) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    waveforms, lengths = sounds(16_000, 16_000)
    quantizer = tokenizer.network.quantizer
    tokens = tokenizer.encode(waveforms, lengths).tokens
    waveforms.requires_grad_()
    values = tokenizer.uncut(waveforms, lengths)
    assert torch.equal((values + 0.5 * quantizer.counts).floor().long(), quantizer.digits(tokens))
    values.square().sum().backward()
    assert waveforms.grad is not None
    assert torch.isfinite(waveforms.grad).all()
    assert (waveforms.grad.abs().sum(-1) > 0.0).all()
    assert all(parameter.grad is None for parameter in tokenizer.network.parameters())


def test_the_perceptual_loss_names_its_model(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network()
    folder = hub.save_model(tmp_path / "features", asdict(network.config), network.state_dict(), KIND, "#")
    perceptual_loss = load_perceptual_loss(folder)
    assert (perceptual_loss.name, perceptual_loss.fingerprint) == ("features", hub.fingerprint(folder))
    waveforms, _ = sounds(16_000, 16_000)
    assert perceptual_loss.distance(waveforms, waveforms) == 0.0
    expected = S3Tokenizer(network, "").uncut(torch.cat([waveforms, 0.5 * waveforms.flip(1)]), torch.full((4,), 16_000))
    mean_distance = (expected[:2] - expected[2:]).abs().mean()
    assert perceptual_loss.distance(0.5 * waveforms.flip(1), waveforms) == pytest.approx(float(mean_distance), rel=1e-4)
    assert mean_distance > 0.0


def test_states_are_what_is_quantized(make_network: MakeNetwork) -> None:
    network = make_network()
    tokenizer = S3Tokenizer(network, "")
    waveforms, lengths = sounds(9000, 640, 300, 16_000)
    tokens, states = tokenizer.encode(waveforms, lengths), tokenizer.states(waveforms, lengths)
    assert states.shape == (4, 25, network.config.width)
    assert states.dtype == torch.float32
    for row, count in enumerate(tokens.lengths.tolist()):
        assert not states[row, count:].any()
        assert (states[row, :count].abs().sum(-1) > 0.0).all()  # nonzero wherever there is sound
    valid = torch.arange(25) < tokens.lengths[:, None]
    with torch.inference_mode():
        cut = network.quantizer(network.narrow(states), valid).codes
    assert torch.equal(cut * valid, tokens.tokens)


def test_states_of_a_batch_equal_those_of_one_by_one(make_network: MakeNetwork) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    waveforms, lengths = sounds(9000, 640, 5555)
    together = tokenizer.states(waveforms, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone = tokenizer.states(waveforms[row : row + 1, :samples], lengths[row : row + 1])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [(0,), (1, 399)])
def test_sounds_too_short_have_no_states(make_network: MakeNetwork, samples: tuple[int, ...]) -> None:
    tokenizer = S3Tokenizer(make_network(), "")
    states = tokenizer.states(torch.zeros(len(samples), max(samples)), torch.tensor(samples))
    assert states.shape == (len(samples), 0, tokenizer.network.config.width)
