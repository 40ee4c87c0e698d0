"""The vocoder: causal but for its lookahead; its stream equals the output of the whole, sample by sample."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audio_llm import hub
from audio_llm.codec import istft
from audio_llm.codec.layers import ConvNeXtStack
from audio_llm.codec.mel import FRAME_RATE, HOP_LENGTH, LOG_FLOOR, N_MELS, log_mel
from audio_llm.codec.vocoder import KIND, Vocoder, VocoderConfig, load_vocoder
from audio_llm.errors import ConfigError, ModelFormatError

torch.set_num_threads(1)


def make_vocoder(lookahead: int = 2) -> Vocoder:
    """Return a vocoder whose weights all have an effect."""
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(16, 1, 2, 2, lookahead))
    with torch.no_grad():
        for parameter in vocoder.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
        vocoder.leave.bias[: istft.BINS] -= 2.0
    return vocoder.eval()


VOCODERS = {lookahead: make_vocoder(lookahead) for lookahead in (0, 1, 2, 5)}


def some_mel(count: int, seed: int = 0) -> Tensor:
    return -5.0 + 2.0 * torch.randn(1, count, N_MELS, generator=torch.Generator().manual_seed(seed))


def in_pieces(vocoder: Vocoder, mel: Tensor, cuts: list[int]) -> list[Tensor]:
    """Return the sound of each piece; the last one takes what is left."""
    state, pieces, edges = vocoder.first_state(), [], [0, *cuts, mel.shape[1]]
    for number, (begin, end) in enumerate(pairwise(edges)):
        sound, state = vocoder.step(mel[:, begin:end], state, last=number == len(edges) - 2)
        pieces.append(sound)
    return pieces


@given(
    count=st.integers(1, 24),
    cuts=st.lists(st.integers(0, 24), max_size=8),
    lookahead=st.sampled_from(sorted(VOCODERS)),
)
def test_a_stream_equals_the_whole(count: int, cuts: list[int], lookahead: int) -> None:
    vocoder, mel = VOCODERS[lookahead], some_mel(count)
    with torch.inference_mode():
        whole = vocoder(mel)
    assert whole.shape == (1, HOP_LENGTH * count)
    assert whole.std() > 1e-3
    streamed = torch.cat(in_pieces(vocoder, mel, sorted(min(cut, count) for cut in cuts)), dim=1)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lookahead", [0, 2, 5])
def test_sound_comes_as_soon_as_it_can(lookahead: int) -> None:
    vocoder = VOCODERS[lookahead]
    sizes = [piece.shape[1] for piece in in_pieces(vocoder, some_mel(20), list(range(1, 20)))]
    ready = [max(0, HOP_LENGTH * (count - lookahead) - istft.SIDE) for count in range(20)]
    assert sizes[:-1] == [after - before for before, after in pairwise(ready)]
    assert sum(sizes) == 20 * HOP_LENGTH


@pytest.mark.parametrize("lookahead", [0, 2, 5])
def test_what_is_beyond_the_lookahead_changes_nothing(lookahead: int) -> None:
    vocoder, mel = VOCODERS[lookahead], some_mel(24)
    for frame in (9, 15, 23):
        changed = mel.clone()
        changed[:, frame] += 2.0
        with torch.inference_mode():
            difference = (vocoder(changed) - vocoder(mel))[0].abs()
        first = HOP_LENGTH * (frame - lookahead) - istft.SIDE  # a frame of the transform begins before its own hop
        assert not difference[:first].any()
        assert difference[first : first + 2 * HOP_LENGTH].max() > 1e-6  # and as far as that it does
        assert (difference[HOP_LENGTH * frame : HOP_LENGTH * (frame + 1)] > 0.0).any()


def test_no_frames_are_no_sound() -> None:
    for vocoder in VOCODERS.values():
        sound, _ = vocoder.step(some_mel(0), vocoder.first_state(), last=True)
        assert sound.shape == (1, 0)
        state = vocoder.first_state()
        for _ in range(3):
            sound, state = vocoder.step(some_mel(0), state)
            assert sound.shape == (1, 0)


def test_no_frames_at_once_are_no_sound_either() -> None:

    with torch.inference_mode():
        assert VOCODERS[2](some_mel(0)).shape == (1, 0)


def test_a_stream_leaves_the_states_before_it_as_they_were() -> None:
    vocoder, mel = VOCODERS[2], some_mel(12)
    _, middle = vocoder.step(mel[:, :7], vocoder.first_state())
    one, _ = vocoder.step(mel[:, 7:], middle, last=True)
    other, _ = vocoder.step(some_mel(5, 3), middle, last=True)
    again, _ = vocoder.step(mel[:, 7:], middle, last=True)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_batch_sounds_as_one_by_one() -> None:
    vocoder, mel = VOCODERS[2], torch.cat([some_mel(10, seed) for seed in range(3)])
    with torch.inference_mode():
        together = vocoder(mel)
        for row in range(3):
            torch.testing.assert_close(together[row], vocoder(mel[row : row + 1])[0], atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_weight() -> None:
    vocoder = make_vocoder().train()
    vocoder(some_mel(8)).square().mean().backward()
    for name, parameter in vocoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_streams_of_many_pieces_do_not_drift() -> None:
    vocoder, mel = VOCODERS[2], some_mel(600)
    with torch.inference_mode():
        whole = vocoder(mel)
    streamed = torch.cat(in_pieces(vocoder, mel, list(range(3, 600, 3))), dim=1)
    assert (streamed - whole).abs().max() < 1e-5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_the_inverse_transform_streams(counts: list[int]) -> None:
    out = torch.randn(2, sum(counts), 2 * istft.BINS, generator=torch.Generator().manual_seed(0))
    if not sum(counts):
        return
    whole = istft.to_sound(out, torch.ones(out.shape[:2], dtype=torch.bool))
    state, parts, position = istft.first_state(2), [], 0
    for count in counts:
        if count:
            sound, state = istft.next_sound(out[:, position : position + count], state)
            parts.append(sound)
            position += count
    streamed = torch.cat([*parts, istft.last_sound(state)], dim=1)[:, istft.SIDE :]
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-4)


def test_frames_of_a_sound_give_it_back() -> None:
    waveform = 0.1 * torch.randn(1, 3200, generator=torch.Generator().manual_seed(0))
    spectra = torch.fft.rfft(istft.windowed_frames(waveform, 20))
    out = torch.cat([spectra.abs().clamp_min(1e-8).log(), spectra.angle()], dim=-1)
    sound = istft.to_sound(out, torch.ones(1, 20, dtype=torch.bool))
    torch.testing.assert_close(sound[:, 240:-240], waveform[:, 240:-240], atol=1e-4, rtol=1e-3)


@given(st.integers(1, 12), st.lists(st.integers(0, 12), max_size=4))
def test_causal_blocks_stream(count: int, cuts: list[int]) -> None:
    torch.manual_seed(1)
    stack = ConvNeXtStack(8, 3, 2, causal=True)
    x = torch.randn(2, count, 8)
    state, parts = stack.first_state(2), []
    with torch.no_grad():
        whole = stack(x, torch.ones(2, count, dtype=torch.bool))
        for begin, end in pairwise([0, *sorted(min(cut, count) for cut in cuts), count]):
            if end > begin:
                output, state = stack.step(x[:, begin:end], state)
                parts.append(output)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (320, 1), (321, 2), (16_000, 50)])
def test_mel_frames_are_those_that_have_begun(samples: int, frames: int) -> None:
    mel = log_mel(torch.zeros(2, samples))
    assert mel.shape == (2, frames, N_MELS)
    assert torch.allclose(mel, torch.tensor(LOG_FLOOR))
    assert FRAME_RATE == 50.0


def test_a_mel_frame_lies_at_its_time_and_knows_its_pitch() -> None:
    time = torch.arange(16_000) / 16_000
    click = torch.zeros(1, 16_000)
    click[0, 320 * 20 + 160] = 0.9
    assert int(log_mel(click)[0].sum(-1).argmax()) == 20
    low, high = (log_mel(0.5 * torch.sin(2 * torch.pi * hertz * time)[None])[0, 25].argmax() for hertz in (200, 4000))
    assert low < 10 < 50 < high
    loud, quiet = (log_mel(level * torch.sin(2 * torch.pi * 500 * time)[None])[0, 25].max() for level in (0.5, 0.05))
    assert float(loud - quiet) == pytest.approx(2.302585, abs=1e-3)
    shifted = torch.nn.functional.pad(click, (640, 0))
    torch.testing.assert_close(log_mel(shifted)[0, 22], log_mel(click)[0, 20])


@pytest.mark.parametrize("wrong", [{"width": 0}, {"blocks": 0}, {"fine_blocks": 0}, {"lookahead": -1}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="lookahead"):
        VocoderConfig(**wrong)


def test_a_saved_vocoder_is_the_same(tmp_path: Path) -> None:
    vocoder = VOCODERS[1]
    folder = hub.save_model(tmp_path / "tiny", asdict(vocoder.config), vocoder.state_dict(), KIND, "Tiny.\n")
    loaded = load_vocoder(folder)
    assert loaded.config == vocoder.config
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(some_mel(6)), vocoder(some_mel(6)))
    hub.save_model(tmp_path / "other", asdict(vocoder.config), vocoder.state_dict(), "codec", "Tiny.\n")
    with pytest.raises(ModelFormatError, match="codec"):
        load_vocoder(tmp_path / "other")
