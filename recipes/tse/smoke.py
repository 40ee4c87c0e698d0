"""The whole recipe in less than a minute on the sample recordings: tiny networks, few steps, an untrained teacher."""

from __future__ import annotations

import json
from pathlib import Path

import data
import numpy as np
import teacher
import torch
from safetensors.torch import save_file

from audio_llm import audio
from audio_llm.simulation.heads import Head, load_head, vary
from audio_llm.simulation.mono import colored_noise, trim_silence
from audio_llm.simulation.rendered import RenderConfig
from audio_llm.simulation.scene_plan import Voice
from audio_llm.simulation.sources import write_sources
from audio_llm.tse.speaker import SpeakerEncoder
from audio_llm.tse.teacher_vectors import write_vectors

SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
CONFIG = Path(__file__).parent / "config" / "smoke.yaml"
_SEPARATOR = ["channels=8", "hidden=8", "blocks=1", "stride=6", "embedding=0", "outputs=3", "front=true"]
_FEW = ["batch_scenes=2", "validation_scenes=2"]
_SHORT = [*_FEW, "scenes.seconds=1.024", "scenes.enrollment_seconds=1.024", "scenes.talkers=[2,2]"]
_JOINT = [*_SHORT, *(f"model.extractor.{setting}" for setting in _SEPARATOR), "model.selector.hidden=16"]
_JOINT += ["model.selector.layers=1", "noisy_prob=0.5"]
ROOMS = RenderConfig(seconds=1.2, talkers=2, rows_per_shard=2)
SETTINGS = {
    "speaker": ["hidden=16", "layers=1", "batch_pieces=4", "validation_pieces=4"],
    "separate": [*_SHORT, *(f"model.{setting}" for setting in _SEPARATOR), "front_weight=1"],
    "choose": _JOINT,
    "hear": [*_JOINT, "streams=joint"],
}


def pack(packed: Path) -> None:
    """Write packs of the sample recordings, each split in two, with different noises and heads in every part."""
    rows = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(0)
    synthetic_teacher = SpeakerEncoder()
    for number, part in enumerate(data.PARTS):
        rng = np.random.default_rng(number)
        voices = []
        for row in rows[number % 2 :: 2]:
            sound = trim_silence(audio.read(SAMPLES / row["audio_filepath"]))
            voices.append(Voice(row["audio_filepath"], "samples", "", tuple(np.array_split(sound, 2))))
        heads: list[Head] = [vary(load_head(), rng)]
        write_sources(packed / part, voices, [colored_noise(48_000, rng, 1.0)], heads)
        write_vectors(packed / part, synthetic_teacher)
    save_file(dict(synthetic_teacher.state_dict()), packed / teacher.NAME)
