"""Evaluation of an exported model on test scenes with the realtime engine: enrollment, then chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from audio_llm.simulation.scenes import Scene
from audio_llm.sound_metrics import si_sdr_db
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE


class Device:
    """The engine and the enroller of the realtime package.

    Args:
        folder: Output of `audio-llm export tse`.
    """

    def __init__(self, folder: Path) -> None:
        from audio_llm_realtime.contract import load_contract
        from audio_llm_realtime.engine import Engine
        from audio_llm_realtime.enrollment import Enroller

        contract = load_contract(folder)
        self._engine, self._enroller = Engine(contract), Enroller(contract)

    def measure(self, scene: Scene) -> dict[str, Any]:
        """Return the SI-SDR improvement of the target with the noisy enrollment, dB; empty if it is silent."""
        whole = scene.mixture.shape[1] // CHUNK * CHUNK
        mixture, target = scene.mixture[:, :whole], scene.target[:, :whole]
        if not target.any():
            return {}
        self._engine.reset()
        self._engine.set_conditions(self._enroller.enroll(scene.enrollment, SAMPLE_RATE).vector)
        chunks = np.split(np.ascontiguousarray(mixture), whole // CHUNK, axis=1)
        output = np.concatenate([self._engine.process(chunk) for chunk in chunks], axis=1)
        return {"noisy_db": _ratio(output[:, OVERLAP:], target) - _ratio(mixture, target)}


def _ratio(estimate: np.ndarray, target: np.ndarray) -> float:
    reference = target[:, : target.shape[1] - OVERLAP]
    return float(si_sdr_db(torch.from_numpy(estimate[:, : reference.shape[1]]), torch.from_numpy(reference)).mean())
