"""The frontal level below which no frontal speaker is reported, from enrollments of the development part."""

from __future__ import annotations

import numpy as np
import torch

from audio_llm.simulation.scene_plan import SceneConfig, SceneSources
from audio_llm.simulation.scenes import make_scene
from audio_llm.tse.enrollment import EnrollmentEncoder
from audio_llm.tse.frames import CHUNK
from audio_llm.tse.target_speaker import TargetSpeakerNetwork

SEED = 8  # of the scenes
MISSED = 0.01  # accepted fraction of false warnings


@torch.inference_mode()
def least_frontal_level_db(network: TargetSpeakerNetwork, sources: SceneSources, scenes: int) -> float:
    """Return the level relative to the recording, in dB, that nearly all enrollments with a frontal speaker exceed.

    Args:
        network: The trained networks.
        sources: Sources of the enrollment recordings.
        scenes: Number of enrollment recordings.
    """
    encoder = EnrollmentEncoder(network)
    levels = []
    for index in range(scenes):
        enrollment = make_scene(sources, SceneConfig(), SEED, index, with_mixture=False).enrollment
        whole = torch.from_numpy(enrollment[None, :, : enrollment.shape[-1] // CHUNK * CHUNK].copy())
        levels.append(float(encoder.encode(whole).frontal_level_db))
    return float(np.quantile(levels, MISSED))
