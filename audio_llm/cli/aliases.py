"""Former spellings of options, which are accepted and not shown."""

from __future__ import annotations

from collections.abc import Sequence

_TRAIN = {"--start-from": "--init-from", "--tuning": "--dev", "--listener": "--perceptual-loss"}
ALIASES: dict[str, dict[str, str]] = {
    "transcribe": {
        "--asr": "--recognizer",
        "--correct": "--corrector",
        "--correct-model": "--corrector-model",
        "--decode": "--decoding",
        "--hotwords": "--words",
    },
    "correct": {"--with": "--corrector", "--mode": "--decoding", "--decode": "--decoding"},
    "extract": {"--enroll": "--enrollment"},
    "prepare": {"--asr": "--recognizer", "--second-asr": "--second-recognizer"},
    "train": _TRAIN,
}


def with_current_names(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with current spellings for former ones."""
    command = next((word for word in words if not word.startswith("-")), "")
    names = ALIASES.get(command, {})
    current = []
    options = True
    for word in words:
        options = options and word != "--"
        name, equals, value = word.partition("=")
        current.append(f"{names[name]}{equals}{value}" if options and name in names else word)
    return current
