"""Words to phones: the dictionary inside pocketsphinx."""

from __future__ import annotations

from pathlib import Path


def read_dictionary() -> dict[str, tuple[str, ...]]:
    """Return the first pronunciation of every word, as phones without stress."""
    from pocketsphinx import get_model_path

    entries: dict[str, tuple[str, ...]] = {}
    for line in Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8").splitlines():
        word, *phones = line.split()
        entries.setdefault(word.split("(")[0], tuple(phones))
    return entries
