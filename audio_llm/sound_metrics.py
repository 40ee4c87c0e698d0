"""Metrics of speech quality: ratios in dB, PESQ, STOI, DNSMOS; the last three need the extra `metrics`."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_llm.errors import DataError, MissingDependencyError

SAMPLE_RATE = 16_000  # Hz
_FLOOR = 1e-8  # of an energy
_DNSMOS_SAMPLES = 144_160  # 9.01 s, the input of the P.835 network


@dataclass(frozen=True)
class Dnsmos:
    """Predicted mean ratings of P.835 (DNSMOS), 1 to 5.

    Attributes:
        sig: Rating of the speech signal.
        bak: Rating of the background noise.
        ovrl: Overall rating.
    """

    sig: float
    bak: float
    ovrl: float


def snr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the energy ratio of target and error in dB: (...,) for (..., T); it depends on the level."""
    error = (estimate - target).square().sum(-1)
    return 10.0 * torch.log10((target.square().sum(-1) + _FLOOR) / (error + _FLOOR))


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio (Le Roux et al. 2019): (...,) for (..., T)."""
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + _FLOOR)
    projection = scale * target
    error = (estimate - projection).square().sum(-1)
    return 10.0 * torch.log10((projection.square().sum(-1) + _FLOOR) / (error + _FLOOR))


def pesq_wb(clean: np.ndarray, estimate: np.ndarray) -> float:
    """Return wide-band PESQ (ITU-T P.862.2), 1 to 4.64, of waveforms (T,) float32 at 16 kHz.

    Raises:
        MissingDependencyError: pesq is not installed.
        DataError: It finds no speech.
    """
    pesq = _import("pesq")
    try:
        return float(pesq.pesq(SAMPLE_RATE, clean, estimate, "wb"))
    except pesq.PesqError as error:
        raise DataError(f"PESQ finds no speech: {error}", remedy="leave silence out") from None


def stoi(clean: np.ndarray, estimate: np.ndarray, extended: bool = False) -> float:
    """Return STOI (Taal et al. 2011), or ESTOI (Jensen and Taal 2016), 0 to 1, of (T,) float32 at 16 kHz.

    Raises:
        MissingDependencyError: pystoi is not installed.
    """
    return float(_import("pystoi").stoi(clean, estimate, SAMPLE_RATE, extended=extended))


def dnsmos(waveform: np.ndarray) -> Dnsmos:
    """Return DNSMOS P.835 (Reddy et al. 2022) of a waveform (T,) float32 at 16 kHz; shorter than 9.01 s it is repeated.

    Raises:
        MissingDependencyError: speechmos, which carries the network, or onnxruntime is not installed.
        DataError: The waveform is empty.
    """
    if not waveform.size:
        raise DataError("there is no sound to rate")
    repeats = -(-_DNSMOS_SAMPLES // waveform.size)
    waveform = np.tile(waveform, repeats) if waveform.size < _DNSMOS_SAMPLES else waveform
    starts = range(0, waveform.size - _DNSMOS_SAMPLES + 1, SAMPLE_RATE)
    inputs = np.stack([waveform[start : start + _DNSMOS_SAMPLES] for start in starts]).astype(np.float32)
    session = _dnsmos_session()
    name = session.get_inputs()[0].name
    raw = np.concatenate([session.run(None, {name: row[None]})[0] for row in inputs])  # SIG, BAK, OVRL
    sig, bak, ovrl = (
        float(np.mean(np.polyval(curve, column))) for curve, column in zip(_DNSMOS_CURVES, raw.T, strict=True)
    )
    return Dnsmos(sig, bak, ovrl)


# Quadratic mapping of the published network's outputs to ratings.
_DNSMOS_CURVES = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


@functools.cache
def _dnsmos_session() -> Any:
    from importlib.util import find_spec
    from pathlib import Path

    onnxruntime = _import("onnxruntime")
    spec = find_spec("speechmos")  # not imported, since that requires librosa
    if spec is None or not spec.submodule_search_locations:
        raise _missing("speechmos")
    path = Path(spec.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise _missing(name) from None


def _missing(name: str) -> MissingDependencyError:
    return MissingDependencyError(f"{name} is not installed", remedy="pip install 'audio-llm[metrics]'")
