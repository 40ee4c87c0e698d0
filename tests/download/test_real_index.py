"""The pinned wheels as the package index really serves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from audio_llm import installed


@pytest.mark.slow
def test_whisper_tiny_en_is_what_the_registry_pins(whisper_tiny_en: Path) -> None:
    files = installed.checked_files(whisper_tiny_en, full=True)
    assert sorted(files) == ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]
    assert installed.is_ctranslate2(files["model.bin"])
    manifest = installed.read_manifest(whisper_tiny_en)
    assert manifest is not None
    assert manifest.verified_by_project
