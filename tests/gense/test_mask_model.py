"""The mask network: untrained it passes sound, it sees one frame ahead only, and a stream equals the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.errors import ConfigError, ModelFormatError
from audio_llm.gense.mask_model import (
    BAND_GROUPS,
    BINS,
    HOP_LENGTH,
    LATENCY_S,
    LOOKAHEAD,
    N_FFT,
    MaskConfig,
    MaskNetwork,
    analyze,
    synthesize,
)
from audio_llm.gense.models import MASK, load_mask

torch.set_num_threads(1)
MakeMask = Callable[..., MaskNetwork]
DELAY = N_FFT - HOP_LENGTH + LOOKAHEAD * HOP_LENGTH


def hiss(samples: int, batch: int = 1, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def below_7_khz(samples: int, batch: int = 1) -> Tensor:
    """Return noise without anything above 7 kHz, faded in and out."""
    spectrum = torch.fft.rfft(hiss(samples, batch))
    spectrum[:, torch.fft.rfftfreq(samples, 1 / 16_000) > 7000] = 0
    return torch.fft.irfft(spectrum, samples) * torch.hann_window(samples)


@pytest.mark.parametrize("samples", [1, 255, 256, 257, 4000, 5120])
def test_analysis_and_synthesis_give_back_what_came(samples: int) -> None:
    x = hiss(samples, 2)
    spectra = analyze(x)
    assert spectra.shape == (2, -(-samples // HOP_LENGTH) + 1, 2, BINS)
    torch.testing.assert_close(synthesize(spectra, samples), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("samples", [300, 4096, 6001])
def test_an_untrained_network_lets_sound_pass(make_mask: MakeMask, samples: int) -> None:
    x = below_7_khz(samples, 2)
    with torch.inference_mode():
        y = make_mask(random=False)(x)
    assert y.shape == x.shape
    assert (y - x).abs().max() < 1e-4
    assert x.abs().max() > 0.1


def test_bands_cover_all_bins_but_the_last() -> None:
    assert sum(count * bins for count, bins in BAND_GROUPS) == BINS - 1
    assert DELAY == 512
    assert round(LATENCY_S * 16_000) == DELAY + HOP_LENGTH


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("taps", [2, 4])
def test_a_stream_gives_what_the_whole_gives(make_mask: MakeMask, tiny: MaskConfig, chunk: int, taps: int) -> None:
    network = make_mask(config=replace(tiny, taps=taps))
    size = 42 * HOP_LENGTH
    x = hiss(size, 2)
    with torch.inference_mode():
        whole = network(x)
        state, pieces = network.initial_state(2), []
        padded = torch.nn.functional.pad(x, (0, DELAY + chunk * HOP_LENGTH))
        for start in range(0, size + DELAY, chunk * HOP_LENGTH):
            piece, state = network.step(padded[:, start : start + chunk * HOP_LENGTH], state)
            assert piece.shape == (2, len(padded[0, start : start + chunk * HOP_LENGTH]))
            pieces.append(piece)
    stream = torch.cat(pieces, dim=1)
    assert whole.abs().max() > 1e-2
    assert (whole - x).abs().max() > 1e-2
    torch.testing.assert_close(stream[:, DELAY : DELAY + size], whole, atol=1e-5, rtol=1e-4)


def test_chunks_may_vary_from_step_to_step(make_mask: MakeMask) -> None:
    network, x = make_mask(), hiss(20 * HOP_LENGTH)
    with torch.inference_mode():
        expected, _ = network.step(x, network.initial_state())
        state, pieces, start = network.initial_state(), [], 0
        for hops in (1, 5, 2, 9, 3):
            piece, state = network.step(x[:, start : start + hops * HOP_LENGTH], state)
            pieces.append(piece)
            start += hops * HOP_LENGTH
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-4)


def test_two_interleaved_streams_are_two_streams(make_mask: MakeMask) -> None:
    network = make_mask()
    xs = [hiss(6 * HOP_LENGTH, seed=seed) for seed in (1, 2)]
    with torch.inference_mode():
        alone = [network.step(x, network.initial_state())[0] for x in xs]
        states = [network.initial_state(), network.initial_state()]
        for hop in range(6):
            for stream in range(2):
                chunk = slice(hop * HOP_LENGTH, (hop + 1) * HOP_LENGTH)
                piece, states[stream] = network.step(xs[stream][:, chunk], states[stream])
                torch.testing.assert_close(piece, alone[stream][:, chunk], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", [2560, 2561, 2700, 2815])
def test_the_future_beyond_the_latency_changes_nothing(make_mask: MakeMask, changed: int) -> None:
    network, x = make_mask(), hiss(20 * HOP_LENGTH)
    other = x.clone()
    other[:, changed:] = hiss(other[:, changed:].shape[1], seed=7)
    with torch.inference_mode():
        one, two = network(x), network(other)
    first = int((one != two)[0].nonzero()[0])
    latency = round(LATENCY_S * 16_000)
    assert first > changed - latency
    assert first < changed  # and it does use the lookahead
    torch.testing.assert_close(one[:, : changed - latency], two[:, : changed - latency], atol=0, rtol=0)


def test_the_past_counts_for_a_long_time(make_mask: MakeMask) -> None:
    network, x = make_mask(), hiss(24 * HOP_LENGTH)
    other = x.clone()
    other[:, :HOP_LENGTH] = 0.0
    with torch.inference_mode():
        difference = (network(x) - network(other)).abs()[0]
    assert difference[16 * HOP_LENGTH :].max() > 1e-7


def test_a_batch_equals_one_by_one(make_mask: MakeMask) -> None:
    network, x = make_mask(), hiss(3000, 3)
    with torch.inference_mode():
        together = network(x)
        for row in range(3):
            torch.testing.assert_close(together[row], network(x[row : row + 1])[0], atol=1e-5, rtol=1e-4)


def test_silence_stays_silent(make_mask: MakeMask) -> None:
    network = make_mask()
    x = torch.zeros(1, 3000, requires_grad=True)
    y = network(x)
    assert not y.any()
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_gradients_reach_everything(make_mask: MakeMask) -> None:
    network = make_mask().train()
    network(hiss(6000)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_an_untrained_network_can_learn_from_the_first_step(make_mask: MakeMask) -> None:
    network, x = make_mask(random=False).train(), below_7_khz(6000)
    (network(x) - 0.5 * x).square().mean().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in network.leave)


def test_too_few_taps_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1"):
        MaskConfig(taps=1)


def test_a_saved_network_is_the_same(make_mask: MakeMask, tmp_path: Path) -> None:
    network = make_mask()
    folder = hub.save_model(tmp_path / "tiny", asdict(network.config), network.state_dict(), MASK, "Tiny.\n")
    loaded = load_mask(folder)
    assert loaded.config == network.config
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(hiss(2000)), network(hiss(2000)))
    folder = hub.save_model(tmp_path / "x", asdict(network.config), network.state_dict(), "codec", "Another.\n")
    with pytest.raises(ModelFormatError, match="codec"):
        load_mask(folder)
