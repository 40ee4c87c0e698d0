"""The included model: its ONNX files match it, its delay is as stated, and the target speaker matters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("onnxruntime")

from audio_llm_realtime.contract import load_contract
from audio_llm_realtime.engine import Engine
from audio_llm_realtime.enrollment import Enroller

from audio_llm import hub
from audio_llm.tse.extract import read_enrollment
from audio_llm.tse.frames import CHUNK, OVERLAP
from audio_llm.tse.models import load_model

torch.set_num_threads(1)
FOLDER = hub.PRETRAINED / "tse-small"
SAMPLES = Path(__file__).parents[2] / "samples" / "binaural"


@pytest.fixture(scope="module")
def mixture() -> np.ndarray:
    sound, rate = soundfile.read(SAMPLES / "mixture.flac", dtype="float32")
    assert rate == 16_000
    return np.ascontiguousarray(sound[: 300 * CHUNK].T)


@pytest.fixture(scope="module")
def vector() -> np.ndarray:
    recording = read_enrollment(SAMPLES / "enrollment.flac").waveform.numpy()
    return Enroller(load_contract(FOLDER)).enroll(recording, 16_000).vector


def run(sound: np.ndarray, vector: np.ndarray) -> np.ndarray:
    engine = Engine(load_contract(FOLDER))
    engine.set_conditions(vector)
    return np.concatenate([engine.process(chunk).copy() for chunk in np.split(sound, sound.shape[1] // CHUNK, 1)], 1)


def test_the_files_belong_together_and_are_small() -> None:
    contract = json.loads((FOLDER / "tse.json").read_text(encoding="utf-8"))
    assert contract["model"]["fingerprint"] == hub.fingerprint(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000
    hub.verify_model(FOLDER)


def test_the_device_computes_what_the_network_computes(mixture: np.ndarray, vector: np.ndarray) -> None:
    model = load_model(FOLDER)
    recording = read_enrollment(SAMPLES / "enrollment.flac").waveform[None]
    with torch.inference_mode():
        embedding = model.enrollment_encoder(recording)
        expected = model.network(torch.from_numpy(mixture)[None], embedding).sound[0].numpy()
    np.testing.assert_allclose(vector, embedding.numpy(), atol=1e-4)
    np.testing.assert_allclose(run(mixture, embedding.numpy()), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("offset", [0, 1, 64, 127])
def test_the_delay_is_192_samples(mixture: np.ndarray, vector: np.ndarray, offset: int) -> None:
    """A change affects the output from the beginning of its chunk on, which corresponds to 64 samples before.

    The last sample of a chunk counts 191 samples ahead, so that the output is 192 samples late, 12 ms.
    """
    changed = mixture.copy()
    changed[:, 50 * CHUNK + offset :] += 0.05
    different = np.abs(run(mixture[:, : 60 * CHUNK], vector) - run(changed[:, : 60 * CHUNK], vector)).max(axis=0) > 0
    assert int(np.argmax(different)) == 50 * CHUNK
    contract = load_contract(FOLDER)
    assert contract.chunk_samples + contract.lookahead_samples == CHUNK + OVERLAP == 192


def test_the_enrolled_speaker_changes_the_output(mixture: np.ndarray, vector: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    other = np.abs(generator.standard_normal(vector.shape)).astype(np.float32)
    output, other_output = run(mixture, vector), run(mixture, other / np.linalg.norm(other))
    assert np.abs(output - other_output).max() > 1e-3
