"""The level of the front below which nobody seems to talk there, from looks at people of the tuning part."""

from __future__ import annotations

import numpy as np
import torch

from audio_llm.simulation.scene_plan import SceneConfig, SceneSources
from audio_llm.simulation.scenes import make_scene
from audio_llm.tse.enrolment import EnrolmentEncoder
from audio_llm.tse.frames import CHUNK
from audio_llm.tse.hearing import TargetHearing

SEED = 8  # of the scenes
MISSED = 0.01  # share of looks at somebody that may lie below


@torch.inference_mode()
def least_front_db(hearing: TargetHearing, sources: SceneSources, scenes: int) -> float:
    """Return the level over that of the look, in dB, above which nearly all looks at somebody lie.

    Args:
        hearing: The trained networks.
        sources: Of the looks.
        scenes: How many looks.
    """
    encoder = EnrolmentEncoder(hearing)
    levels = []
    for index in range(scenes):
        look = make_scene(sources, SceneConfig(), SEED, index, with_mixture=False).look
        whole = torch.from_numpy(look[None, :, : look.shape[-1] // CHUNK * CHUNK].copy())
        levels.append(float(encoder.encode(whole).front_db))
    return float(np.quantile(levels, MISSED))
