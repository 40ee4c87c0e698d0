"""Log-mel features: lengths, masks, and the features of a tone."""

from __future__ import annotations

import numpy as np
import torch

from audio_llm import features


def sounds() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(size, generator=generator) for size in (16_000, 5_037, 400, 399, 0)]


def test_batch_equals_one_by_one() -> None:
    waveforms = sounds()
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    mel, frames = features.log_mel(padded, lengths)
    assert frames.tolist() == [98, 29, 1, 0, 0]
    assert mel.shape == (5, 98, 80)
    normal = features.normalize(mel, frames)
    for i, waveform in enumerate(waveforms[:3]):
        alone, count = features.log_mel(waveform[None], lengths[i : i + 1])
        assert count.item() == frames[i]
        torch.testing.assert_close(mel[i, : count.item()], alone[0], atol=1e-4, rtol=0)
        assert (mel[i, count.item() :] == features.LOG_FLOOR).all()
        torch.testing.assert_close(normal[i, : count.item()], features.normalize(alone, count)[0], atol=1e-3, rtol=0)
        assert (normal[i, count.item() :] == 0).all()


def test_a_tone_lights_the_band_at_its_frequency() -> None:
    filters = features.mel_filters()
    assert filters.shape == (80, 257)
    assert (filters.max(dim=1).values > 0.3).all()
    time_s = torch.arange(16_000) / 16_000
    for hz in (200.0, 1000.0, 4000.0):
        mel, _ = features.log_mel((0.5 * torch.sin(2 * torch.pi * hz * time_s))[None], torch.tensor([16_000]))
        assert int(mel[0, 50].argmax()) == int(filters[:, round(hz / 31.25)].argmax())


def test_level_moves_all_bands_alike_and_normalizing_removes_it() -> None:
    waveform = sounds()[0][None]
    length = torch.tensor([16_000])
    loud, frames = features.log_mel(waveform, length)
    quiet, _ = features.log_mel(waveform * 0.1, length)
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, 2 * np.log(10.0)), atol=1e-2, rtol=0)
    normal = features.normalize(loud, frames)
    torch.testing.assert_close(normal, features.normalize(quiet, frames), atol=5e-2, rtol=0)
    torch.testing.assert_close(normal.mean(dim=1), torch.zeros(1, 80), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std(dim=1), torch.ones(1, 80), atol=5e-2, rtol=0)


def test_eight_bits_lose_little() -> None:
    mel, _ = features.log_mel(sounds()[0][None], torch.tensor([16_000]))
    stored = features.to_uint8(mel)
    assert stored.dtype == torch.uint8
    assert float((features.from_uint8(stored) - mel).abs().max()) <= 0.0501
    loudest = torch.tensor([features.LOG_FLOOR - 5, features.LOG_CEILING + 5])
    assert features.to_uint8(loudest).tolist() == [0, 255]


def test_full_scale_stays_below_the_ceiling() -> None:
    square = torch.sign(torch.sin(2 * torch.pi * 250.0 * torch.arange(16_000) / 16_000))
    mel, _ = features.log_mel(square[None], torch.tensor([16_000]))
    assert float(mel.max()) < features.LOG_CEILING
    silent, frames = features.log_mel(torch.zeros(1, 1000), torch.tensor([1000]))
    torch.testing.assert_close(silent, torch.full_like(silent, features.LOG_FLOOR))
    assert torch.isfinite(features.normalize(silent, frames)).all()
