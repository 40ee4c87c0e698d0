"""No test of the pipeline depends on which models the user has installed."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_installed_models(no_installed_models: None) -> None:
    """No recognizer of these tests is one of the user's."""
