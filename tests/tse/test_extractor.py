"""Frames and the streaming extractor: exact reconstruction, no lookahead, chunks equal the whole."""

from __future__ import annotations

import pytest
import torch

from audio_llm.errors import ConfigError
from audio_llm.tse.extractor import PRESETS, Extractor, ExtractorConfig
from audio_llm.tse.frames import BINS, CHUNK, FRAME, OVERLAP, analyze, synthesize, transform, transform_long

torch.set_num_threads(1)
TINY = ExtractorConfig(channels=8, hidden=8, blocks=2, stride=4, embedding=6)
LINEAR = ExtractorConfig(8, 8, 2, 4, kernel=0, embedding=6, recurrence="linear", window=576)


def make_model(config: ExtractorConfig = TINY, seed: int = 0) -> Extractor:
    torch.manual_seed(seed)
    return Extractor(config).eval()


def sound(chunks: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 2, chunks * CHUNK, generator=torch.Generator().manual_seed(seed))


def test_analysis_and_synthesis_are_a_delay_of_64_samples() -> None:
    x = sound(40, 2)
    spectra = analyze(x)
    assert spectra.shape == (2, 2, 40, 2, BINS)
    y = synthesize(spectra)
    assert y.shape == x.shape
    torch.testing.assert_close(y[..., OVERLAP:], x[..., :-OVERLAP], atol=1e-6, rtol=0)
    for place in (0, x.shape[-1] - OVERLAP - 1):
        impulse = torch.zeros(1, 2, 5 * CHUNK)
        impulse[..., min(place, 5 * CHUNK - OVERLAP - 1)] = 1.0
        torch.testing.assert_close(synthesize(analyze(impulse)).roll(-OVERLAP, -1), impulse, atol=1e-6, rtol=0)


def test_presets_have_the_sizes_of_the_design() -> None:
    sizes = {name: sum(p.numel() for p in Extractor(config).parameters()) for name, config in PRESETS.items()}
    assert {name: round(size, -4) for name, size in sizes.items()} == {"B": 400_000, "C": 530_000, "D": 830_000}
    for wrong in ({"kernel": 4}, {"window": 192}, {"window": 600}):
        with pytest.raises(ConfigError):
            ExtractorConfig(**wrong)


@pytest.mark.parametrize("config", [TINY, ExtractorConfig(8, 8, 2, 3, embedding=0, outputs=2), LINEAR])
def test_chunks_give_what_the_whole_gives(config: ExtractorConfig) -> None:
    model = make_model(config)
    x = sound(60, 2)
    film = model.condition(torch.randn(2, config.embedding)) if config.embedding else None
    with torch.inference_mode():
        whole = model(x, film)
        state, pieces = model.initial_state(2), []
        for number in range(60):
            piece, state = model.step(x[..., number * CHUNK : (number + 1) * CHUNK], film, state)
            pieces.append(piece)
    assert whole.shape == (2, config.outputs, 2, 60 * CHUNK)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, atol=1e-5, rtol=1e-4)
    assert all(part.abs().max() > 0 for part in state.tensors().values())


def test_the_long_window_resolves_two_harmonics() -> None:
    time_s = torch.arange(576) / 16_000
    voice = torch.sin(2 * torch.pi * 1000.0 * time_s) + torch.sin(2 * torch.pi * (1000.0 + 4 * 16_000 / 576) * time_s)
    fine = transform_long(voice).square().sum(0)
    assert fine[38] < 0.1 * min(fine[36], fine[40])  # a valley between two peaks
    coarse = transform(voice[-FRAME:]).square().sum(0)
    assert coarse[13] > 0.5 * max(coarse[12], coarse[14])


def test_noise_has_one_level_in_both_windows() -> None:
    noise = torch.randn(200, 576, generator=torch.Generator().manual_seed(0))
    long, short = transform_long(noise), transform(noise[:, -FRAME:])
    level_db = 10 * (long[..., 9:279].square().mean() / short[..., 3:93].square().mean()).log10()
    assert abs(float(level_db)) < 0.2


def test_two_interleaved_streams_are_two_streams() -> None:
    model = make_model()
    xs = [sound(6, seed=seed) for seed in (1, 2)]
    films = [model.condition(torch.randn(1, 6, generator=torch.Generator().manual_seed(s))) for s in (3, 4)]
    with torch.inference_mode():
        states = [model.initial_state(), model.initial_state()]
        for number in range(6):
            for stream in range(2):
                chunk = xs[stream][..., number * CHUNK : (number + 1) * CHUNK]
                piece, states[stream] = model.step(chunk, films[stream], states[stream])
                alone = model(xs[stream], films[stream])[..., number * CHUNK : (number + 1) * CHUNK]
                torch.testing.assert_close(piece, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [TINY, LINEAR])
@pytest.mark.parametrize("changed", [1000, 1023, 1024, 1087])
def test_the_future_changes_nothing_before_its_lookahead(changed: int, config: ExtractorConfig) -> None:
    model = make_model(config)
    x = sound(16)
    other = x.clone()
    other[..., changed:] = 0.3 * torch.randn(other[..., changed:].shape)
    film = model.condition(torch.randn(1, 6))
    with torch.inference_mode():
        before, after = model(x, film), model(other, film)
    first = int((before != after).any(dim=(0, 1, 2)).nonzero()[0])
    chunk_begins = changed // CHUNK * CHUNK
    assert first >= chunk_begins  # the output of a chunk may depend on the whole chunk
    assert first <= changed + OVERLAP
    # in time of the input, outputs being 64 samples late: a frame sees 64 samples beyond the sound it completes
    assert changed - (first - OVERLAP) <= CHUNK + OVERLAP


def test_the_speaker_matters() -> None:
    model = make_model()
    x = sound(30)
    with torch.inference_mode():
        one, other = (model(x, model.condition(torch.randn(1, 6) * 3)) for _ in range(2))
        assert (one - other).abs().max() > 1e-3
        film = model.condition(torch.zeros(1, 6))
        assert torch.equal(film, torch.zeros_like(film))  # no speaker: no modulation


@pytest.mark.parametrize("config", [TINY, LINEAR])
def test_gradients_reach_everything_and_silence_is_harmless(config: ExtractorConfig) -> None:
    model = make_model(config).train()
    film = model.condition(torch.randn(1, 6))
    model(torch.cat([torch.zeros(1, 2, CHUNK * 3), sound(4)], dim=-1), film).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
