"""The export package, a tiny model with random weights, and its export."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "export"))

from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.models import save_model
from audio_llm.tse.selector import SelectorConfig
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork

torch.set_num_threads(1)
TINY = TargetSpeakerConfig(
    ExtractorConfig(channels=8, hidden=8, blocks=2, stride=6, embedding=0, outputs=3, front=True),
    SelectorConfig(12, 2, 3, 5),
    -17.5,
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    hearing = TargetSpeakerNetwork(TINY).eval()
    with torch.no_grad():  # no weight stays zero, which could hide a mistake
        for part in hearing.parameters():
            part.add_(0.05 * torch.randn_like(part))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, hearing, "A tiny one.", {})
    return folder


@pytest.fixture(scope="session")
def exported(model_folder: Path) -> Path:
    from audio_llm_export import export_tse

    return export_tse(model_folder, model_folder.parent / "exported").folder
