"""Real weights for slow tests, installed once by `audio-llm models get` and retained between runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_model(name: str) -> Path:
    """Return the folder of a registered model, in $AUDIO_LLM_TEST_MODELS or the cache of the tests; fail without it."""
    from audio_llm.download.install import get_model
    from audio_llm.errors import AudioLLMError

    cache = os.environ.get("AUDIO_LLM_TEST_MODELS") or os.path.expanduser("~/.cache/audio-llm-ci/models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIO_LLM_CACHE", cache)
        try:
            return get_model(name)
        except AudioLLMError as error:
            pytest.fail(f"slow tests need {name}: {error}")


@pytest.fixture(scope="session")
def whisper_tiny_en() -> Path:
    """Return the folder of whisper-tiny.en."""
    return real_model("whisper-tiny.en")


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Return the folder of whisper-base, which knows many languages."""
    return real_model("whisper-base")
