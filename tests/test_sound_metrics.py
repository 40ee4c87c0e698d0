"""Figures for sound: exact where they can be worked out, ordered as ears would order them where they cannot."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_llm import sound_metrics
from audio_llm.errors import DataError, MissingDependencyError
from audio_llm.sound_metrics import dnsmos, pesq_wb, si_sdr_db, snr_db, stoi

torch.set_num_threads(1)
RATE = 16_000


def target_and_noise(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return a target and noise of the same energy, orthogonal to it, both with mean 0."""
    generator = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(batch, 4000, generator=generator, dtype=torch.float64) for _ in range(2))
    target = target - target.mean(-1, keepdim=True)
    noise = noise - noise.mean(-1, keepdim=True)
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    return target, noise * target.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)


def speech(seconds: float = 3.0) -> np.ndarray:
    """Return syllables of a buzz with moving formants: (T,) float32."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    pitch = 130.0 + 20.0 * np.sin(2 * np.pi * 0.7 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formant = 700.0 + 400.0 * np.sin(2 * np.pi * 2.0 * time_s)
    buzz = sum(
        (1 / (1 + ((k * pitch - formant) / 150) ** 2) + 0.3 / (1 + ((k * pitch - 2300) / 250) ** 2)) * np.sin(k * phase)
        for k in range(1, 40)
    )
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * time_s), 0.0, 1.0) ** 0.5
    return (0.2 * buzz * syllables / np.abs(buzz).max()).astype(np.float32)


def with_noise(clean: np.ndarray, ratio_db: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(clean))
    gain = np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10 ** (ratio_db / 10))
    return (clean + gain * noise).astype(np.float32)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield a list; packages named in it cannot be imported."""
    names: list[str] = []
    real, real_spec = importlib.import_module, importlib.util.find_spec

    def refuse(name: str, *arguments: Any) -> Any:
        if name in names:
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else real_spec(name, *a))
    sound_metrics._dnsmos_session.cache_clear()
    yield names
    sound_metrics._dnsmos_session.cache_clear()


@pytest.mark.parametrize("wanted_db", [-10.0, 0.0, 7.5, 30.0])
def test_ratios_are_exact_for_orthogonal_noise(wanted_db: float) -> None:
    target, noise = target_and_noise()
    estimate = target + 10 ** (-wanted_db / 20) * noise
    expected = torch.full((2,), wanted_db, dtype=torch.float64)
    torch.testing.assert_close(si_sdr_db(estimate, target), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(snr_db(estimate, target), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.01, -3.0, 50.0])
def test_si_sdr_does_not_hear_scale_or_offset(scale: float) -> None:
    target, noise = target_and_noise()
    estimate = target + 0.5 * noise
    found = si_sdr_db(estimate, target)
    torch.testing.assert_close(si_sdr_db(scale * estimate, target), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(si_sdr_db(estimate + 5.0, target - 2.0), found, atol=1e-5, rtol=0)


def test_snr_depends_on_scale() -> None:
    target, _ = target_and_noise()
    assert snr_db(0.9 * target, target).tolist() == pytest.approx([20.0, 20.0])
    assert snr_db(-target, target).tolist() == pytest.approx([-6.0206] * 2, abs=1e-3)


def test_ratios_keep_the_leading_shape_and_gradients() -> None:
    estimate = torch.randn(3, 2, 500, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randn(3, 2, 500, generator=torch.Generator().manual_seed(2))
    for ratio in (snr_db, si_sdr_db):
        found = ratio(estimate, target)
        assert found.shape == (3, 2)
        assert found[1, 0].item() == pytest.approx(ratio(estimate[1, 0], target[1, 0]).item(), abs=1e-4)
        found.sum().backward()
    assert torch.isfinite(estimate.grad).all()
    silence = torch.zeros(1, 100, requires_grad=True)
    (snr_db(silence, torch.zeros(1, 100)) + si_sdr_db(silence, torch.zeros(1, 100))).sum().backward()
    assert torch.isfinite(silence.grad).all()


def test_pesq_orders_by_noise() -> None:
    pytest.importorskip("pesq")
    clean = speech()
    scores = [pesq_wb(clean, sound) for sound in (clean, with_noise(clean, 20.0), with_noise(clean, 0.0))]
    assert scores[0] == pytest.approx(4.64, abs=0.01)
    assert scores[0] > scores[1] > scores[2] >= 1.0


def test_pesq_of_silence_is_an_error_in_words() -> None:
    pytest.importorskip("pesq")
    silence = np.zeros(RATE, np.float32)
    with pytest.raises(DataError, match="no speech"):
        pesq_wb(silence, silence)


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_orders_by_noise(extended: bool) -> None:
    pytest.importorskip("pystoi")
    clean = speech()
    scores = [stoi(clean, sound, extended) for sound in (clean, with_noise(clean, 10.0), with_noise(clean, -10.0))]
    assert scores[0] == pytest.approx(1.0, abs=1e-3)
    assert scores[0] > scores[1] > scores[2]
    if extended:
        assert stoi(clean, with_noise(clean, 0.0), True) != stoi(clean, with_noise(clean, 0.0))


def test_dnsmos_orders_by_noise_without_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("speechmos") is None:
        pytest.skip("speechmos is not installed")
    for name in ("librosa", "speechmos"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.delitem(sys.modules, "speechmos")
    sound_metrics._dnsmos_session.cache_clear()
    clean, noisy = (dnsmos(sound) for sound in (speech(), with_noise(speech(), 0.0)))
    assert clean.bak > noisy.bak + 0.5
    assert clean.ovrl > noisy.ovrl
    for scores in (clean, noisy):
        assert all(0.9 < value < 5.1 for value in (scores.sig, scores.bak, scores.ovrl))
    assert "speechmos" not in sys.modules


def test_dnsmos_takes_any_length() -> None:
    pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("speechmos") is None:
        pytest.skip("speechmos is not installed")
    short = dnsmos(speech(4.6))
    assert short == dnsmos(np.tile(speech(4.6), 2))  # as often as it takes to fill 9.01 s
    # of longer sound the mean over windows, one a second
    sound = np.concatenate([speech(6.0), with_noise(speech(4.1), 0.0)])
    windows = [dnsmos(sound[start : start + 144_160]) for start in (0, 16_000)]
    assert dnsmos(sound).bak == pytest.approx(np.mean([scores.bak for scores in windows]), abs=1e-5)
    with pytest.raises(DataError, match="no sound"):
        dnsmos(np.zeros(0, np.float32))


@pytest.mark.parametrize("name", ["pesq", "pystoi", "onnxruntime", "speechmos"])
def test_a_missing_package_is_an_error_with_a_remedy(missing: list[str], name: str) -> None:
    if name == "speechmos":
        pytest.importorskip("onnxruntime")
    missing.append(name)
    sound = speech(0.5)
    measure = {"pesq": lambda: pesq_wb(sound, sound), "pystoi": lambda: stoi(sound, sound)}
    with pytest.raises(MissingDependencyError, match=rf"{name} is not installed .*\[metrics\]"):
        measure.get(name, lambda: dnsmos(sound))()
