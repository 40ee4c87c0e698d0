"""The trained network against the device: the same vector for an enrollment, the same output for a mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from audio_llm_export import export_tse
from audio_llm_realtime.contract import load_contract
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrollment import Enroller
from audio_llm_realtime.loop import run_blocks
from audio_llm_realtime.worker import Worker

from audio_llm import hub
from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.frames import CHUNK, OVERLAP
from audio_llm.tse.models import load_model, save_model
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork

torch.set_num_threads(1)
TINY = TargetSpeakerConfig(
    ExtractorConfig(channels=16, hidden=16, blocks=2, stride=4, embedding=0, outputs=3, front=True),
    SelectorConfig(16, 2, 3, 5),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and its export in `device`."""
    torch.manual_seed(0)
    hearing = TargetSpeakerNetwork(TINY)
    with torch.no_grad():
        for part in hearing.parameters():
            part.add_(0.05 * torch.randn_like(part))
    root = tmp_path_factory.mktemp("model")
    save_model(root / "model", hearing, "A tiny one.", {})
    export_tse(root / "model", root / "device")
    return root


def sounds(chunks: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    loudness = 0.5 + 0.5 * np.sin(np.arange(chunks * CHUNK) / 3000.0)
    return (0.1 * loudness * rng.standard_normal((2, chunks * CHUNK))).astype(np.float32)


def compare(model_folder: Path, device_folder: Path, chunks: int) -> tuple[float, float]:
    """Return the largest differences of the enrollment vectors and of the outputs for a mixture."""
    model, contract = load_model(model_folder), load_contract(device_folder)
    enrollment, mixture = sounds(250), sounds(chunks)
    with torch.inference_mode():
        vector = model.enrollment_encoder(torch.from_numpy(enrollment)[None])
        whole = model.network(torch.from_numpy(mixture)[None], vector).sound[0].numpy()
    device_vector = Enroller(contract).enroll(enrollment, 16_000).vector
    outs = []
    for sizes in ([CHUNK], [int(size) for size in np.random.default_rng(1).integers(1, 700, 50)]):
        engine = Engine(contract)
        engine.set_conditions(vector.numpy())
        worker = Worker(engine)
        out = run_blocks(worker, mixture, sizes)
        outs.append(out[:, worker.buffer.delay :])
    shortest = min(out.shape[1] for out in outs)
    np.testing.assert_array_equal(outs[0][:, :shortest], outs[1][:, :shortest])
    actual, expected = outs[0][:, :shortest], whole[:, OVERLAP : OVERLAP + shortest]
    size = min(actual.shape[1], expected.shape[1])
    assert np.abs(expected[:, :size]).max() > 0.02
    return float(np.abs(device_vector - vector.numpy()).max()), float(
        np.abs(actual[:, :size] - expected[:, :size]).max()
    )


def test_the_device_computes_what_the_network_computes(folder: Path) -> None:
    vectors, sound = compare(folder / "model", folder / "device", 600)
    assert vectors < 1e-5
    assert sound < 1e-4


@pytest.mark.slow
def test_the_shipped_model_is_the_same_for_ten_thousand_chunks() -> None:
    shipped = hub.PRETRAINED / "tse-small"
    assert max(compare(shipped, shipped, 10_000)) < 1e-4
