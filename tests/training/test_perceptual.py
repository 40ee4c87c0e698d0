from __future__ import annotations

from typing import Any

import pytest
import torch

from audio_llm.codec.train import CodecTrainingConfig
from audio_llm.codec.vocoder_train import VocoderTrainingConfig
from audio_llm.gense.mask_train import MaskTrainingConfig
from audio_llm.training.config import load_config
from audio_llm.training.perceptual import PerceptualLoss, provenance_of


@pytest.mark.parametrize(
    "kind, former, current",
    [
        (MaskTrainingConfig, "listener_weight=0.5", "perceptual_weight=0.5"),
        (CodecTrainingConfig, "sound.listener_weight=0.5", "sound.perceptual_weight=0.5"),
        (VocoderTrainingConfig, "sound.listener_weight=0.5", "sound.perceptual_weight=0.5"),
    ],
)
def test_the_weight_also_loads_under_its_former_key(kind: type[Any], former: str, current: str) -> None:
    assert load_config(kind, None, [former]) == load_config(kind, None, [current]) != load_config(kind, None)


def test_the_distance_is_that_of_the_features_and_moves_what_was_generated_alone() -> None:
    loss = PerceptualLoss("square", "abc", lambda waveforms, lengths: waveforms.square())
    generated, original = torch.full((1, 4), 2.0, requires_grad=True), torch.ones(1, 4, requires_grad=True)
    distance = loss.distance(generated, original)
    distance.backward()
    assert distance == 3.0
    assert generated.grad is not None
    assert torch.equal(generated.grad, torch.ones(1, 4))
    assert original.grad is None


def test_the_provenance_names_the_network_if_there_is_one() -> None:
    loss = PerceptualLoss("square", "abc", lambda waveforms, lengths: waveforms)
    assert provenance_of(loss) == {"listener": {"name": "square", "fingerprint": "abc"}}
    assert provenance_of(None) == {}
